"""Teacher pairs: for every row its noise and the clean latent that guided sampling makes of it, made once and kept.

A part file holds the rows of one micro-batch that the metric let through. Noise is never stored: a row's own key
draws it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from harness import prompts as prompt_sets
from harness import registry, weights
from harness.benchmark import ModelSpec, named
from harness.diffusion.base import Diffusion
from harness.display import Display
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.identity import digest
from harness.method import Method, load_method, method_identity
from harness.metrics.base import SampleMetric
from harness.metrics.load import metric_digest
from harness.noise_refine.recipe import KeepSpec, Recipe, TeacherSpec
from harness.prompts import Prompt, PromptSet
from harness.seeding import RowKey

CAPTION_SEED = 12


def open_model(spec: ModelSpec, device: str) -> Diffusion:
    """The model block's model on a device."""
    model: Diffusion = registry.load("model", spec.family).load(  # type: ignore[attr-defined]
        spec.weights, revision=spec.revision, dtype=spec.dtype, device=device, size=spec.size
    )
    return model


def shapes_training(number: int) -> PromptSet:
    """Captions of random training scenes of the shapes world, with their truth; none names a held-out composition."""
    from harness.shapes.grammar import describe, sample_scene

    rng = np.random.default_rng(CAPTION_SEED)
    captions = [describe(sample_scene(rng), rng) for _ in range(number)]
    rows = (Prompt(str(i), c.text, c.tag, truth=c.truth()) for i, c in enumerate(captions))
    return PromptSet("shapes-training", tuple(rows))


@dataclass
class Source:
    """One teacher of a recipe, made definite: the rows it makes, in whole micro-batches, and how."""

    spec: TeacherSpec
    prompts: PromptSet
    method: Method
    batch: int

    @staticmethod
    def make(spec: TeacherSpec, batch: int, here: Path) -> Source:
        """Reads the prompts and builds the guidance.

        Raises:
            HarnessError: an unknown prompt set, guidance, sampler or parameter.
        """
        if spec.prompts == "shapes-training":
            prompts = shapes_training(-(-spec.generate // batch) * batch)
        else:
            prompts = prompt_sets.load(spec.prompts, here)
        return Source(spec, prompts, load_method(guidance=spec.guidance, sampler=spec.sampler), batch)

    @property
    def parts(self) -> int:
        """Part files of this source."""
        return -(-self.spec.generate // self.batch)

    def rows(self, part: int) -> list[int]:
        """The rows of a part."""
        return list(range(part * self.batch, (part + 1) * self.batch))

    def prompt(self, row: int) -> Prompt:
        """A row's prompt."""
        return self.prompts.prompts[row % len(self.prompts.prompts)]

    def key(self, row: int) -> RowKey:
        """A row's randomness: that of a benchmark with the same prompt set, prompt and seed."""
        return RowKey(self.prompts.id, self.prompt(row).id, row // len(self.prompts.prompts))

    def identity(self) -> dict[str, Any]:
        """What decides its rows, but for how many there are: a larger `generate` keeps those that it has."""
        prompts = self.prompts.prompts
        if self.spec.prompts == "shapes-training":
            prompts = prompts[: self.batch]  # the others follow from the same seed
        return {
            "method": method_identity(self.method), "batch": self.batch,
            "prompts": [self.prompts.id, [[prompt.id, prompt.text] for prompt in prompts]],
        }


@dataclass
class Teacher:
    """A recipe's teacher, and the folder where its pairs lie."""

    recipe: Recipe
    folder: Path
    here: Path  # where relative paths of prompt files start

    @cached_property
    def sources(self) -> list[Source]:
        """The recipe's teachers in order."""
        return [Source.make(spec, self.recipe.model.batch, self.here) for spec in self.recipe.teacher]

    @cached_property
    def folders(self) -> list[Path]:
        """Where each source's part files lie: another folder for every other definition of them.

        Raises:
            HarnessError: weights that are not here, or a metric that cannot decide what is kept.
        """
        model, keep, metric = self.recipe.model, self.recipe.keep, _metric(self.recipe.keep)
        common = {
            "family": model.family, "dtype": model.dtype, "size": model.size,
            "weights": weights.content_digest(weights.resolve(model.weights, model.revision)),
            "keep": [metric_digest(named(keep.metric)[0], metric), keep.threshold] if keep and metric else None,
        }
        return [self.folder / f"pairs-{digest(common | source.identity())[:8]}" for source in self.sources]

    def path(self, source: int, part: int) -> Path:
        """A part's file."""
        return self.folders[source] / f"{part:06d}.safetensors"

    def wanted(self) -> list[tuple[int, int]]:
        """(source, part) of all files."""
        return [(s, part) for s, source in enumerate(self.sources) for part in range(source.parts)]

    def missing(self) -> list[tuple[int, int]]:
        """(source, part) of the files still to be made."""
        return [which for which in self.wanted() if not self.path(*which).is_file()]

    def make(self, which: Sequence[tuple[int, int]], device: str) -> Iterator[Path]:
        """Makes these parts, one after the other, and names each when it is there."""
        model, metric = open_model(self.recipe.model, device), _metric(self.recipe.keep)
        if metric is not None:
            metric.open(device)
        for s, part in which:
            source = self.sources[s]
            rows = source.rows(part)
            prompts = [source.prompt(row) for row in rows]
            result = source.method.run(model, prompts, [source.key(row) for row in rows])
            good = torch.isfinite(result.latents).flatten(1).all(dim=1).numpy()
            scores = np.full(len(rows), np.nan)
            if metric is not None and self.recipe.keep is not None:
                scores = np.asarray(metric.score(result.images, prompts).values, dtype=np.float64)
                sign = 1 if metric.higher_is_better else -1
                good &= sign * scores > sign * self.recipe.keep.threshold  # a NaN is no better than anything
            kept = torch.from_numpy(np.flatnonzero(good))
            tensors = {
                "row": torch.tensor(rows)[kept],
                "latents": result.latents[kept].half(),
                "scores": torch.from_numpy(scores),
            }
            write_atomic(self.path(s, part), save(tensors))
            yield self.path(s, part)


def _metric(keep: KeepSpec | None) -> SampleMetric | None:
    """The metric that decides what is kept, not yet opened."""
    if keep is None:
        return None
    name, parameters = named(keep.metric)
    metric = registry.build("metric", name, parameters)
    if not isinstance(metric, SampleMetric):
        raise HarnessError(f"keep.metric: {name!r} does not score each image: expected a metric that does")
    missing = metric.missing()
    if missing is not None:
        raise HarnessError(f"keep.metric: {name!r}: {missing}")
    return metric


def make_pairs(teacher: Teacher, processes: int, device: str, display: Display) -> None:
    """Makes the parts that are missing, in so many processes."""
    todo = teacher.missing()
    if not todo:
        return
    left = _images(teacher, todo)
    display.start("pairs", left, _images(teacher, teacher.wanted()) - left)

    def report() -> None:
        nonlocal left
        now = _images(teacher, teacher.missing())
        if now < left:
            display.advance(left - now)
        left = now

    if processes == 1:
        for _ in teacher.make(todo, device):
            report()
    else:
        started = spawn(_make, (teacher, todo, processes, device), nprocs=processes, join=False)
        while not started.join(timeout=2):  # True when all have ended well; what failed in one is raised here
            report()
        report()
    display.finish()


def _images(teacher: Teacher, parts: Sequence[tuple[int, int]]) -> int:
    return sum(teacher.sources[s].batch for s, _ in parts)


def _make(rank: int, teacher: Teacher, todo: list[tuple[int, int]], processes: int, device: str) -> None:
    torch.set_num_threads(1)
    for _ in teacher.make(todo[rank::processes], f"cuda:{rank}" if device == "cuda" else device):
        pass


@dataclass
class Pairs:
    """All rows that were kept."""

    prompts: list[Prompt]
    keys: list[RowKey]
    targets: Tensor  # float16 [N, C, H, W], clean latents
    generated: int

    @staticmethod
    def read(teacher: Teacher) -> Pairs:
        """Opens the finished parts.

        Raises:
            HarnessError: a damaged part, or not one row that was good enough.
        """
        prompts, keys, targets, generated = [], [], [], 0
        for s, part in teacher.wanted():
            path, source = teacher.path(s, part), teacher.sources[s]
            try:
                tensors: dict[str, Any] = load_file(path)
            except (OSError, SafetensorError) as error:
                raise HarnessError(f"{path} cannot be read ({error}); delete it, and the same command makes it "
                                   f"again") from error
            rows = tensors["row"].tolist()
            prompts += [source.prompt(row) for row in rows]
            keys += [source.key(row) for row in rows]
            targets.append(tensors["latents"])
            generated += len(tensors["scores"])
        if not keys:
            raise HarnessError(f"of {generated} teacher images none passed the recipe's 'keep': lower its threshold")
        return Pairs(prompts, keys, torch.cat(targets), generated)

    def __len__(self) -> int:
        return len(self.keys)
