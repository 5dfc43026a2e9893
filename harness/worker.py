"""What a worker does with a unit: generate its images, or score them. Knows nothing of who calls it.

A worker lives as long as its process and keeps what is slow to make: the model at hand, methods, judges, metrics.
"""

import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from harness import registry
from harness.diffusion.base import Diffusion
from harness.errors import HarnessError
from harness.files import StoreError
from harness.images import Encoded, encode
from harness.job import Job, MethodJob, MetricJob, ModelJob, Slot
from harness.method import Method, Result, load_method
from harness.metrics.base import DistributionMetric, Metric, SampleMetric
from harness.metrics.load import load_metric
from harness.prompts import Prompt
from harness.seeding import row_key
from harness.store import NO_IMAGE, Store
from harness.units import GenerateUnit, Part, Report, Row, ScoreUnit

__all__ = ["DeviceLost", "Job", "MethodJob", "MetricJob", "ModelJob", "Slot", "Worker"]

T = TypeVar("T")
SCORE_BATCH = 32  # images a metric sees at once


class DeviceLost(Exception):
    """The GPU no longer works in this process, whatever runs on it: only a fresh process helps."""


class Worker:
    """Does units of one job, one after the other, in this process.

    Two threads may call `run`: while the images of one unit are encoded and written, the next one computes.
    """

    def __init__(self, job: Job, slot: Slot) -> None:
        # Before anything computes: the number of threads is part of what decides the last bits.
        torch.set_num_threads(slot.threads)
        with contextlib.suppress(RuntimeError):  # can be set once a process only
            torch.set_num_interop_threads(1)
        # float32 is float32 on a GPU too (convolutions there default to TF32), by the same kernels every time.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        sys.path[:0] = [folder for folder in job.sys_path if folder not in sys.path]
        self.job, self.slot = job, slot
        self.device = _device(slot.device)
        self.store = Store(job.root, job.codec)
        if not Path(job.root).is_dir():
            raise HarnessError(
                f"the run folder {job.root} is not visible on this machine: on a cluster, --results must name "
                f"storage that all nodes share"
            )
        self.versions = _versions()
        self.computing = threading.Lock()
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._model: tuple[str, Diffusion] | None = None
        self._methods: dict[str, Method] = {}
        self._metrics: dict[str, Metric] = {}
        self._broken: dict[tuple[str, str], HarnessError] = {}

    def run(self, unit: GenerateUnit | ScoreUnit) -> Report:
        """Does a unit. What goes wrong with it is in the report.

        Raises:
            StoreError: the run folder cannot be written, so that going on makes no sense.
            DeviceLost: this process must be replaced; the unit may go well in the next one.
        """
        started = time.monotonic()
        stage = "generate" if isinstance(unit, GenerateUnit) else "score"
        try:
            if isinstance(unit, GenerateUnit):
                return self.generate(unit)
            with self.computing:
                return self.score(unit)
        except (StoreError, DeviceLost):
            raise
        except Exception as error:
            reason = {"error": _reason(error), "unit": True}
            return Report(unit.part, stage, 0, time.monotonic() - started, [reason])

    # ---- generating ----

    def generate(self, unit: GenerateUnit) -> Report:
        """Makes the unit's images in micro-batches of `unit.batch` and writes them as one part.

        The last micro-batch is padded to the same size by repeating its last row. A batch that raises is
        halved until the bad row is alone; that row is kept with its error and without an image.
        """
        started = time.monotonic()
        rows: list[dict[str, Any]] = []
        pending: list[Future[Encoded] | None] = []
        with self.computing:
            model = self._load_model(unit.part.model)
            method = self._load_method(unit.part.method)
            for first in range(0, len(unit.rows), unit.batch):
                for row, image in self._micro_batch(unit, unit.rows[first : first + unit.batch], model, method):
                    rows.append(row)
                    # Encoded in the background while the next micro-batch is at work.
                    pending.append(None if image is None else self.encoder.submit(encode, image, self.job.codec))
        images = [None if future is None else future.result() for future in pending]
        self.store.write_images(unit.part, rows, images)
        failed = [
            {key: row[key] for key in ("sample_id", "prompt_id", "error")} for row in rows if row["error"] is not None
        ]
        return Report(unit.part, "generate", len(rows), time.monotonic() - started, failed)

    def _micro_batch(
        self, unit: GenerateUnit, rows: Sequence[Row], model: Diffusion, method: Method, retried: bool = False
    ) -> list[tuple[dict[str, Any], np.ndarray | None]]:
        # A batch that was split is not padded: the split may be for want of memory.
        padded = [*rows, *[rows[-1]] * (0 if retried else unit.batch - len(rows))]
        started = time.monotonic()
        try:
            keys = [
                row_key(
                    unit.seeding, unit.prompt_set, row.prompt.id, unit.seed, row.prompt.columns,
                    place=row.place, batch=unit.batch,
                )
                for row in padded
            ]
            result = method.run(model, [row.prompt for row in padded], keys)
        except Exception as error:
            reason = _survivable(error)
            if len(rows) == 1 and (retried or unit.batch == 1):
                return [(self._row(unit, rows[0], model, retried) | {"error": reason}, None)]
            middle = max(1, len(rows) // 2)
            halves = [half for half in (rows[:middle], rows[middle:]) if half]
            return [pair for half in halves for pair in self._micro_batch(unit, half, model, method, True)]
        seconds = (time.monotonic() - started) / len(padded)
        bad = _not_finite(result)
        pairs: list[tuple[dict[str, Any], np.ndarray | None]] = []
        for i, row in enumerate(rows):
            made = self._row(unit, row, model, retried) | {
                "nfe": int(result.nfe[i]),
                "nfe_by_network": result.nfe_by_network[i],
                "grad_evals": int(result.grad_evals[i]),
                "flops": float(result.flops[i]),
                "record": result.records[i] if result.records else {},
                "seconds": seconds,
                "batch": len(padded),
            }
            if bad[i]:
                pairs.append((made | {"error": "the latents are not finite (NaN or infinity)"}, None))
            else:
                pairs.append((made, result.images[i]))
        return pairs

    def _row(self, unit: GenerateUnit, row: Row, model: Diffusion, retried: bool) -> dict[str, Any]:
        return {
            "sample_id": row.sample_id,
            "model": unit.part.model,
            "method": unit.part.method,
            "prompts": unit.part.prompts,
            "prompt_id": row.prompt.id,
            "prompt": row.prompt.text,
            "category": row.prompt.category,
            "seed": unit.seed,
            "error": None,
            "batch": unit.batch,
            "retried": retried,
            "device": _device_name(self.device),
            "dtype": self.job.models[unit.part.model].dtype,
            "versions": self.versions,
            "created": datetime.now(UTC),
        }

    # ---- scoring ----

    def score(self, unit: ScoreUnit) -> Report:
        """Scores one image part with every metric of the unit and extracts its features; a part each.

        A metric that cannot be opened is reported and left out; one that raises on a batch costs the rows on
        which it still raises when they are alone.
        """
        started = time.monotonic()
        self._model = None  # generation is over here; its memory is the metrics'
        by_id = {prompt.id: prompt for prompt in unit.prompts}
        rows, images = self.store.read_images(unit.part)
        prompts = [
            by_id.get(row["prompt_id"]) or Prompt(row["prompt_id"], row["prompt"], row["category"]) for row in rows
        ]
        failed: list[dict[str, Any]] = []
        for label in (*unit.metrics, *unit.extractors):
            try:
                metric = self._load_metric(label)
                if isinstance(metric, DistributionMetric):
                    failed += self._extract(metric, unit.part, rows, images)
                elif isinstance(metric, SampleMetric):
                    failed += self._score_with(metric, label, unit.part, list(zip(rows, images, prompts, strict=True)))
                else:
                    raise HarnessError(f"metric {label!r} of kind {metric.kind!r} cannot be computed from images alone")
            except (StoreError, DeviceLost):
                raise
            except Exception as error:
                failed.append({"metric": label, "error": _reason(error), "unit": True})
        return Report(unit.part, "score", len(rows), time.monotonic() - started, failed)

    def _score_with(
        self, metric: SampleMetric, label: str, part: Part,
        samples: Sequence[tuple[dict[str, Any], np.ndarray | None, Prompt]],
    ) -> list[dict[str, Any]]:
        rows, images, prompts = zip(*samples, strict=True)

        def compute(chosen: Sequence[int]) -> list[tuple[float, dict[str, Any]] | str]:
            scores = metric.score(np.stack([images[i] for i in chosen]), [prompts[i] for i in chosen])
            details = scores.details or [{} for _ in chosen]
            if len(scores.values) != len(chosen) or len(details) != len(chosen):
                raise ValueError(f"{label} gave {len(scores.values)} values for {len(chosen)} images")
            return [(float(value), detail) for value, detail in zip(scores.values, details, strict=True)]

        found = _in_batches(compute, images)
        out: list[dict[str, Any]] = []
        for i, row in enumerate(rows):
            outcome = found.get(i, NO_IMAGE)
            line = {"sample_id": row["sample_id"], "metric_digest": self.job.metrics[label].digest, "error": None}
            if isinstance(outcome, str):
                out.append(line | {"value": None, "error": outcome})
            else:
                value, detail = outcome
                error = None if np.isfinite(value) else str(detail.get("reason") or f"the metric gave {value}")
                out.append(line | {"value": value, "detail": detail, "error": error})
        self.store.write_scores(label, part, out)
        return [
            {"metric": label, "sample_id": line["sample_id"], "error": line["error"]}
            for line in out if line["error"] not in (None, NO_IMAGE)  # that one was reported when it was made
        ]

    def _extract(
        self, metric: DistributionMetric, part: Part, rows: Sequence[dict[str, Any]],
        images: Sequence[np.ndarray | None],
    ) -> list[dict[str, Any]]:
        def compute(chosen: Sequence[int]) -> list[np.ndarray | str]:
            features = metric.features(np.stack([images[i] for i in chosen]))  # type: ignore[misc]
            if features.ndim != 2 or len(features) != len(chosen):
                raise ValueError(f"features of shape {list(features.shape)} for {len(chosen)} images")
            bad = ~np.isfinite(features).all(axis=1)
            return ["the features are not finite" if bad[k] else features[k] for k in range(len(chosen))]

        found = _in_batches(compute, images)
        good = {rows[i]["sample_id"]: value for i, value in sorted(found.items()) if not isinstance(value, str)}
        if good:
            self.store.write_features(metric.shelf, part, list(good), np.stack(list(good.values())))
        return [
            {"metric": metric.extractor, "sample_id": rows[i]["sample_id"], "error": value}
            for i, value in sorted(found.items()) if isinstance(value, str)
        ]

    # ---- what is slow to make ----

    def _load_model(self, label: str) -> Diffusion:
        if self._model is not None and self._model[0] == label:
            return self._model[1]
        self._model = None  # before the next one comes: two may not fit
        _free_memory()

        def load() -> Diffusion:
            spec = self.job.models[label]
            model: Diffusion = registry.load("model", spec.family).load(  # type: ignore[attr-defined]
                spec.weights, revision=spec.revision, dtype=spec.dtype, device=self.device, size=spec.size,
                networks=spec.networks,
            )
            return model

        model = self._tried("model", label, load)
        self._model = (label, model)
        return model

    def _load_method(self, label: str) -> Method:
        if label not in self._methods:
            spec = self.job.methods[label]
            judge = cast(SampleMetric | None, None if spec.judge is None else self._load_metric(spec.judge))
            self._methods[label] = self._tried(
                "method", label,
                lambda: load_method(noise=spec.noise, guidance=spec.guidance, sampler=spec.sampler, judge=judge),
            )
        return self._methods[label]

    def _load_metric(self, label: str) -> Metric:
        def load() -> Metric:
            spec = self.job.metrics[label]
            return load_metric(spec.name, device=self.device, **spec.parameters)

        if label not in self._metrics:
            self._metrics[label] = self._tried("metric", label, load)
        return self._metrics[label]

    def _tried(self, kind: str, label: str, load: Callable[[], T]) -> T:
        """What `load` gives; a failure is remembered, so that a thousand units do not each wait for it."""
        if (kind, label) in self._broken:
            raise self._broken[kind, label]
        try:
            return load()
        except Exception as error:
            broken = HarnessError(f"{kind} {label!r} cannot be loaded: {_reason(error)}")
            self._broken[kind, label] = broken
            raise broken from error


def _in_batches(
    compute: Callable[[Sequence[int]], list[T | str]], images: Sequence[np.ndarray | None]
) -> dict[int, T | str]:
    """What `compute` gives for every image that there is, or why it gave nothing, by place.

    Images of one shape go together; a batch that raises is halved until the bad one is alone.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        if image is not None:
            shapes.setdefault(image.shape, []).append(i)
    found: dict[int, T | str] = {}

    def attempt(chosen: list[int]) -> None:
        try:
            found.update(zip(chosen, compute(chosen), strict=True))
        except Exception as error:
            reason = _survivable(error)
            if len(chosen) == 1:
                found[chosen[0]] = reason
                return
            attempt(chosen[: len(chosen) // 2])
            attempt(chosen[len(chosen) // 2 :])

    for places in shapes.values():
        for first in range(0, len(places), SCORE_BATCH):
            attempt(places[first : first + SCORE_BATCH])
    return found


def _not_finite(result: Result) -> np.ndarray:
    """Which rows went wrong without an exception."""
    latents = torch.as_tensor(result.latents)
    return ~torch.isfinite(latents).flatten(1).all(dim=1).cpu().numpy()


def _reason(error: Exception) -> str:
    """One line for people: a message of ours as it is, another one with its kind."""
    text = " ".join(str(error).split())
    if isinstance(error, HarnessError):
        return text
    return f"{type(error).__name__}: {text}"[:2000] if text else type(error).__name__


def _survivable(error: Exception) -> str:
    """The reason as a line, if this process can go on after the error.

    After any CUDA error but a want of memory every further call fails; as row errors these would be taken for
    the rows' own fault.
    """
    reason = _reason(error)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower():
        traceback.clear_frames(error.__traceback__)  # they hold the batch's tensors
        _free_memory()
    elif "CUDA error" in str(error) or isinstance(error, torch.AcceleratorError):
        raise DeviceLost(reason) from error
    return reason


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise HarnessError(
            f"device {wanted!r}: this worker has no GPU that PyTorch can use; give the model 'device: cpu' or 'auto'"
        )
    return wanted


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _versions() -> dict[str, str]:
    found = {}
    for name, package in (
        ("torch", "torch"), ("diffusers", "diffusers"), ("transformers", "transformers"),
        ("harness", "diffusion-noise-harness"),
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(package)
    return found
