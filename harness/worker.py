"""What a worker does with a unit: generate its images, or score them. Knows nothing of who calls it.

A worker lives as long as its process and keeps what is slow to make: the model at hand, methods, judges, metrics.
"""

import contextlib
import gc
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from harness import registry
from harness.diffusion.base import Diffusion
from harness.errors import HarnessError, PartError
from harness.exact import exact_float32
from harness.files import StoreError
from harness.images import Encoded, decode, encode
from harness.job import Job, MethodJob, MetricJob, ModelJob, Slot
from harness.method import Method, Result, load_method
from harness.metrics.base import DistributionMetric, Metric, PairedMetric, SampleMetric, Scores
from harness.metrics.load import load_metric
from harness.prompts import Prompt
from harness.seeding import row_key
from harness.store import NO_IMAGE, Store
from harness.units import PICTURE, Counterpart, GenerateUnit, Part, Report, Row, ScoreUnit
from harness.weights import sha256_of

__all__ = ["DeviceLost", "Job", "MethodJob", "MetricJob", "ModelJob", "Slot", "Worker"]

T = TypeVar("T")
DECODERS = 4  # threads that decode the images of one unit while another is computed
NOT_ASKED = "this sample is not to be scored"


class DeviceLost(Exception):
    """The GPU no longer works in this process, whatever runs on it: only a fresh process helps."""


class Worker:
    """Does units of one job, one after the other, in this process.

    Two threads may call `run`: while one unit computes, the images of the other are decoded, or encoded and written.
    """

    def __init__(self, job: Job, slot: Slot) -> None:
        # Before anything computes: the number of threads is part of what decides the last bits.
        torch.set_num_threads(slot.threads)
        with contextlib.suppress(RuntimeError):  # can be set once a process only
            torch.set_num_interop_threads(1)
        exact_float32()
        registry.look_in(job.sys_path)
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
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
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
            return self.generate(unit) if isinstance(unit, GenerateUnit) else self.score(unit)
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
            # Before the model opens them: one that is replaced meanwhile then never passes for the one that was read.
            pictures = [_picture_read(model, row.prompt) for row in rows]
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
                "record": (result.records[i] if result.records else {}) | pictures[i],
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

        A metric that cannot be opened is reported and left out; an image that cannot be read costs its row, and
        a metric that raises on a batch the rows on which it still raises when they are alone.
        """
        started = time.monotonic()
        samples = self._samples(unit)
        found: dict[str, list[Any]] = {}
        failed: list[dict[str, Any]] = []
        with self.computing:
            self._model = None  # generation is over here; its memory is the metrics'
            for label in (*unit.metrics, *unit.extractors):
                try:
                    found[label] = self._outcomes(label, samples)
                except DeviceLost:
                    raise
                except Exception as error:
                    failed.append({"metric": label, "error": _reason(error), "unit": True})
        for label, outcomes in found.items():
            keep = self._keep_scores if label in unit.metrics else self._keep_features
            failed += keep(label, unit.part, samples, outcomes)
        return Report(unit.part, "score", len(samples), time.monotonic() - started, failed)

    def _samples(self, unit: ScoreUnit) -> "list[_Sample]":
        """The unit's samples with their images, and those that they are compared with, decoded."""
        prompts = {prompt.id: prompt for prompt in unit.prompts}
        rows, images = self.store.read_images(unit.part, each=self.decoders.map)
        wanted = {c for given in unit.counterparts.values() for c in given.values() if isinstance(c, Counterpart)}
        others = self._counterparts(wanted)
        samples = []
        for row, image in zip(rows, images, strict=True):
            given = {label: counterparts.get(row["sample_id"]) for label, counterparts in unit.counterparts.items()}
            samples.append(_Sample(
                row["sample_id"],
                prompts.get(row["prompt_id"]) or Prompt(row["prompt_id"], row["prompt"], row["category"]),
                (row["damaged"] or NO_IMAGE) if image is None else image,
                {
                    label: (others[c], c.id) if isinstance(c, Counterpart) else (c or NOT_ASKED, "")
                    for label, c in given.items()
                },
            ))
        return samples

    def _counterparts(self, wanted: set[Counterpart]) -> dict[Counterpart, np.ndarray | str]:
        """The images to compare with, or why there is none; every file and part is read once."""
        found: dict[Counterpart, np.ndarray | str] = dict.fromkeys(wanted, "the image to compare with is gone")
        for part in {c.source for c in wanted if isinstance(c.source, Part)}:
            ids = {c.id: c for c in wanted if c.source == part}
            try:
                rows, images = self.store.read_images(part, ids, each=self.decoders.map)
            except PartError as error:
                found |= dict.fromkeys(ids.values(), str(error))
                continue
            for row, image in zip(rows, images, strict=True):
                if image is not None or row["damaged"]:
                    found[ids[row["sample_id"]]] = row["damaged"] if image is None else image
        files = {c: c.source for c in wanted if isinstance(c.source, tuple)}
        paths = [(path, c.size) for c, source in files.items() for path in source]
        loaded = iter(list(self.decoders.map(_picture, paths)))  # all at once: a still is a single one
        return found | {c: _clip([next(loaded) for _ in source]) for c, source in files.items()}

    def _outcomes(self, label: str, samples: "Sequence[_Sample]") -> list[Any]:
        """What a metric makes of every sample, in their order: (value, detail) or features, or why neither."""
        metric = self._load_metric(label)
        inputs = [sample.inputs(label, metric) for sample in samples]

        def compute(chosen: Sequence[int]) -> list[Any]:
            images, *others = (np.stack(column) for column in zip(*(inputs[i] for i in chosen), strict=True))
            if isinstance(metric, DistributionMetric):
                return _features(metric, images)
            if isinstance(metric, SampleMetric):
                return _pairs(metric.score(images, [samples[i].prompt for i in chosen]), len(chosen))
            if isinstance(metric, PairedMetric):
                return _pairs(metric.score_pairs(images, *others), len(chosen))
            raise HarnessError(f"metric {label!r} is of the unknown kind {metric.kind!r}")

        return _in_batches(compute, inputs, metric.batch)

    def _keep_scores(
        self, label: str, part: Part, samples: "Sequence[_Sample]",
        outcomes: Sequence[tuple[float, dict[str, Any]] | str],
    ) -> list[dict[str, Any]]:
        """Writes a metric's score rows; returns those without a value."""
        rows: list[dict[str, Any]] = []
        for sample, outcome in zip(samples, outcomes, strict=True):
            if isinstance(outcome, str) and outcome == NOT_ASKED:
                continue
            row = {"sample_id": sample.id, "metric_digest": self.job.metrics[label].digest, "error": None}
            if isinstance(outcome, str):
                rows.append(row | {"value": None, "error": outcome})
            else:
                value, detail = outcome
                error = None if np.isfinite(value) else str(detail.get("reason") or f"the metric gave {value}")
                if label in sample.others:
                    detail = detail | {"reference": sample.others[label][1]}
                rows.append(row | {"value": value, "detail": detail, "error": error})
        self.store.write_scores(label, part, rows)
        return [
            {"metric": label, "sample_id": row["sample_id"], "error": row["error"]}
            for row in rows if row["error"] not in (None, NO_IMAGE)  # that one was reported when it was made
        ]

    def _keep_features(
        self, label: str, part: Part, samples: "Sequence[_Sample]", outcomes: Sequence[np.ndarray | str]
    ) -> list[dict[str, Any]]:
        """Writes the features that there are; returns the samples without."""
        metric = cast(DistributionMetric, self._metrics[label])
        good = {s.id: f for s, f in zip(samples, outcomes, strict=True) if not isinstance(f, str)}
        if good:
            self.store.write_features(metric.shelf, part, list(good), np.stack(list(good.values())))
        return [
            {"metric": metric.extractor, "sample_id": sample.id, "error": outcome}
            for sample, outcome in zip(samples, outcomes, strict=True)
            if isinstance(outcome, str) and outcome != NO_IMAGE
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


@dataclass(frozen=True)
class _Sample:
    """A sample as metrics see it. A text in an image's place says why there is none."""

    id: str
    prompt: Prompt
    image: np.ndarray | str  # uint8 [F, H, W, 3]
    others: dict[str, tuple[np.ndarray | str, str]]  # by paired metric: the image to compare with, and its id

    def inputs(self, label: str, metric: Metric) -> tuple[np.ndarray, ...] | str:
        """What the metric needs of this sample, or why it cannot have it."""
        other = self.others[label][0] if isinstance(metric, PairedMetric) else None
        if isinstance(self.image, str) or other is None:
            return self.image if isinstance(self.image, str) else (self.image,)
        return other if isinstance(other, str) else (self.image, other)


def _pairs(scores: Scores, expected: int) -> list[tuple[float, dict[str, Any]]]:
    """Scores as (value, detail) for each row."""
    details = scores.details or [{} for _ in range(expected)]
    if len(scores.values) != expected or len(details) != expected:
        raise ValueError(f"the metric gave {len(scores.values)} values for {expected} images")
    return [(float(value), detail) for value, detail in zip(scores.values, details, strict=True)]


def _features(metric: DistributionMetric, images: np.ndarray) -> list[np.ndarray | str]:
    """The features of each image, or why there are none."""
    features = metric.features(images)
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(f"features of shape {list(features.shape)} for {len(images)} images")
    bad = ~np.isfinite(features).all(axis=1)
    return ["the features are not finite" if bad[k] else features[k] for k in range(len(images))]


def _picture_read(model: Diffusion, prompt: Prompt) -> dict[str, str]:
    """What a sample's record says of the picture that it is made from: a changed one makes another sample."""
    if not model.reads_pictures or prompt.image is None:
        return {}
    try:
        return {PICTURE: sha256_of(Path(prompt.image))}
    except OSError as error:
        raise HarnessError(f"prompt {prompt.id!r}: its picture {prompt.image} cannot be read: {error}") from error


def _picture(wanted: tuple[str, tuple[int, int] | None]) -> np.ndarray | str:
    """The picture in a file, uint8 `[H, W, 3]`, for a sample of a size, or why it cannot be had."""
    path, size = wanted
    try:
        return decode(Path(path).read_bytes(), size)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error}); put a good PNG, JPEG or WebP file in its place"


def _clip(pictures: Sequence[np.ndarray | str]) -> np.ndarray | str:
    """Pictures as the frames of one sample, uint8 `[F, H, W, 3]`, or why they are none."""
    frames = [picture for picture in pictures if not isinstance(picture, str)]
    if len(frames) < len(pictures):
        return next(picture for picture in pictures if isinstance(picture, str))
    shapes = dict.fromkeys(frame.shape[:2] for frame in frames)
    if len(shapes) > 1:
        sizes = ", ".join(f"{width} x {height}" for height, width in shapes)
        return f"the pictures to compare with have different sizes: {sizes}"
    return np.stack(frames)


def _in_batches(
    compute: Callable[[Sequence[int]], list[Any]], inputs: Sequence[tuple[np.ndarray, ...] | str], size: int
) -> list[Any]:
    """What `compute` gives for every place, or why there is nothing: the text that stands there as input, or the
    error.

    Images of one shape go together, at most `size` of them; a batch that raises is halved until the bad one is alone.
    """
    found: list[Any] = list(inputs)
    shapes: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i, arrays in enumerate(inputs):
        if not isinstance(arrays, str):
            shapes.setdefault(tuple(array.shape for array in arrays), []).append(i)

    def attempt(chosen: list[int]) -> None:
        try:
            for i, outcome in zip(chosen, compute(chosen), strict=True):
                found[i] = outcome
        except Exception as error:
            reason = _survivable(error)
            if len(chosen) == 1:
                found[chosen[0]] = reason
                return
            attempt(chosen[: len(chosen) // 2])
            attempt(chosen[len(chosen) // 2 :])

    for places in shapes.values():
        for first in range(0, len(places), size):
            attempt(places[first : first + size])
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
