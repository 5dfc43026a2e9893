"""A diffusion model and metrics that cost nothing and do on command what goes wrong in life.

The commands are words of the prompt, so that the tests of worker and engine need no other channel:
`raise`, `nan`, `oom-above-N` (out of memory in batches of more than N), `sleep-S`, `die` (the process, once for
every mark file), `once-PATH` (makes `die` and `sleep` happen only while PATH does not exist).
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule, Step
from harness.metrics.base import DistributionMetric, PairedMetric, Reference, SampleMetric, Scores
from harness.prompts import Prompt
from harness.registry import HOW
from harness.units import GenerateUnit, Part, Row

SIZE = 8


class FakeSchedule(Schedule):
    """Every step halves the state and adds a quarter of the prediction."""

    def __init__(self, steps: int) -> None:
        self.evaluations = [Step(i, steps, float(steps - i), float(100 - i)) for i in range(steps)]
        self.arrivals = [float(steps - i - 1) for i in range(steps)]

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, state: Tensor, i: int) -> Tensor:
        return state

    def advance(self, prediction: Tensor, state: Tensor, i: int, renoise: Tensor | None = None) -> Tensor:
        return state * 0.5 + prediction * 0.25


class FakeDiffusion(Diffusion):
    """Images are the noise itself, tinted by the prompt's length: right pixels are easily told."""

    family = "fake"
    native = "epsilon"
    samplers = ("ddim",)
    latent_shape = (4, SIZE, SIZE)
    loads = 0  # in this process
    batches: ClassVar[list[int]] = []  # sizes seen by `encode` in this process

    @classmethod
    def load(
        cls, weights: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu",
        size: int | None = None, networks: dict[str, dict[str, Any]] | None = None,
    ) -> "FakeDiffusion":
        if weights == "missing":
            raise FileNotFoundError("no weights at all")
        cls.loads += 1
        model = cls()
        model.device, model.dtype = torch.device(device), torch.float32
        model.latent_shape = (4, size or SIZE, size or SIZE)
        return model

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        type(self).batches.append(len(prompts))
        for prompt in prompts:
            for word in prompt.text.split():
                _obey(word, prompt.text, len(prompts))
        values = [float("nan") if "nan" in p.text.split() else len(p.text) / 100 for p in prompts]
        tint = torch.tensor(values).reshape(-1, 1, 1, 1)
        return Conditioning({"tint": tint}, {"tint": torch.zeros_like(tint)}, torch.arange(len(prompts)))

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        return x + conditioning.tensors["tint"]

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        return 0.6, 0.8

    def schedule(self, sampler: Sampler) -> Schedule:
        return FakeSchedule(sampler.steps)

    def decode(self, latents: Tensor) -> np.ndarray:
        pixels = ((latents[:, :3] + 2) * 64).clamp(0, 255).nan_to_num().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1)[:, None].contiguous().numpy()

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        return ((latents[:, :3] + 2) / 4).clamp(0, 1).permute(0, 2, 3, 1)[:, None]

    def flops_per_evaluation(self, network: str = "main") -> float:
        return 1000.0


def _obey(word: str, text: str, batch: int) -> None:
    marks = [Path(w.removeprefix("once-")) for w in text.split() if w.startswith("once-")]
    fresh = all(not mark.exists() for mark in marks)
    if word == "raise":
        raise ValueError("this prompt is cursed")
    if word.startswith("oom-above-") and batch > int(word.rsplit("-", 1)[1]):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
    if word.startswith("lost") and fresh:
        for mark in marks:
            mark.touch()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if word.startswith("sleep-") and fresh:
        for mark in marks:
            mark.write_text(str(os.getpid()))
        time.sleep(float(word.removeprefix("sleep-")))
    if word == "die" and fresh:
        for mark in marks:
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Brightness(SampleMetric):
    """The mean pixel, with a failure for images of prompts that say so."""

    name = "brightness"
    offset: float = 0.0
    batch: int = field(default=32, metadata=HOW)
    opened = 0  # in this process
    batches: ClassVar[list[int]] = []  # sizes seen by `score` in this process

    def open(self, device: str = "cpu") -> None:
        type(self).opened += 1

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        type(self).batches.append(len(images))
        for word in " ".join(prompt.text for prompt in prompts).split():
            if word.startswith("oom-above-"):
                _obey(word, "", len(prompts))
        if any("unscorable" in prompt.text for prompt in prompts):
            raise ValueError("cannot score this")
        values = images.reshape(len(images), -1).mean(axis=1) + self.offset
        values = [np.nan if "unclear" in p.text else v for p, v in zip(prompts, values, strict=True)]
        return Scores(np.array(values, dtype=np.float64), [{"words": len(p.text.split())} for p in prompts])


@dataclass
class Dimmest(Brightness):
    """The mean pixel of the `lowest` darkest images."""

    name = "dimmest"
    aggregation = "mean_of_lowest"
    lowest: int = 3


@dataclass
class Absent(SampleMetric):
    """A metric whose weights are not here."""

    name = "absent"

    def missing(self) -> str | None:
        return "its weights are not on this machine; `harness fetch absent` gets them"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        raise AssertionError("never opened")


@dataclass
class Colours(DistributionMetric):
    """Features: the mean of each channel. More than `room` images do not fit into memory."""

    name = "colours-distance"
    extractor = "colours"
    room: int = field(default=1000, metadata=HOW)
    batches: ClassVar[list[int]] = []  # sizes seen by `features` in this process

    def features(self, images: np.ndarray) -> np.ndarray:
        type(self).batches.append(len(images))
        if len(images) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
        return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)

    def reference(self) -> Reference:
        return Reference(np.zeros(3), np.eye(3), 10, None, "none", "0")

    def distance(self, features: np.ndarray, reference: Reference) -> float:
        return float(((features.mean(axis=0) - reference.mean) ** 2).sum())


@dataclass(frozen=True)
class Difference(PairedMetric):
    """The mean absolute difference of pixels."""

    name = "difference"
    higher_is_better = False

    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        return np.abs(images.astype(float) - references).mean(axis=(1, 2, 3))


def part(name: str = "0-0-3", model: str = "model", method: str = "plain") -> Part:
    return Part(model, method, "prompts", name)


def unit(texts: Sequence[str], name: str = "0-0-3", batch: int = 4, model: str = "model", **other: str) -> GenerateUnit:
    """A shard with these prompts; ids are the texts' places, after the shard's name."""
    rows = tuple(
        Row(f"{model}-{name}-{i}", Prompt(f"{name}-{i}", text, category="fake")) for i, text in enumerate(texts)
    )
    return GenerateUnit(part(name, model, **other), "fake-set", 0, "identity", batch, rows)
