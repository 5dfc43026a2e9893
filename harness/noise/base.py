"""Noise stages: what happens to the initial noise before sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Step
from harness.errors import HarnessError
from harness.metrics.base import SampleMetric
from harness.prompts import Prompt
from harness.seeding import RowKey, normals

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass
class NoiseContext:
    """All that a noise stage may use. Rows are the samples of one micro-batch.

    `sample` runs this method's own sampler and guidance from a noise to clean latents; `invert` walks clean
    latents back to noise on the same grid by DDIM inversion. Both take float32 `[k * B, C, H, W]`, the rows of
    the micro-batch in order k times over, and give float32 back.
    """

    noise: Tensor  # float32 [B, C, H, W] on the model's device
    prompts: Sequence[Prompt]
    conditioning: Conditioning
    model: Diffusion
    sampler: Sampler
    sample: Callable[[Tensor], Tensor]
    invert: Callable[..., Tensor]  # invert(latents, scale=1.0): scale 1 conditional, 0 unconditional
    keys: Sequence[RowKey]
    judge: SampleMetric | None = None

    def generators(self, purpose: str, k: int | None = None) -> list[torch.Generator]:
        """A generator a row, for one purpose (and its k-th use)."""
        return [key.generator(purpose, k) for key in self.keys]

    def draw(self, purpose: str, k: int | None = None) -> Tensor:
        """Fresh standard normal noise like `noise`, each row from its own generator."""
        return normals(self.generators(purpose, k), tuple(self.noise.shape[1:])).to(self.noise.device)

    def candidate(self, k: int) -> Tensor:
        """The k-th candidate noise; candidate 0 is the row's own noise, so K = 1 changes nothing."""
        return self.noise if k == 0 else self.draw("candidate", k)

    @property
    def required_judge(self) -> SampleMetric:
        """The judge, for a stage that cannot do without one.

        Raises:
            HarnessError: the method has none.
        """
        if self.judge is None:
            raise HarnessError("this noise stage needs a judge: name a metric that scores each image")
        return self.judge

    def score(self, latents: Tensor) -> np.ndarray:
        """What the judge says of the images of clean latents `[k * B, C, H, W]`, float64 `[k * B]`.

        Raises:
            HarnessError: there is no judge, or it answers for another number of images.
        """
        judge = self.required_judge
        scores = np.asarray(judge.score(self.model.decode(latents), self._texts(latents)).values, dtype=np.float64)
        return self._judged(scores, len(latents))

    def rate(self, images: Tensor) -> Tensor:
        """What the judge says of images, float `[k * B, F, H, W, 3]` in [0, 1], with their gradient; `[k * B]`.

        Raises:
            HarnessError: there is no judge, or it answers for another number of images.
        """
        return self._judged(self.required_judge.differentiable(images, self._texts(images)), len(images))

    def _texts(self, rows: Tensor) -> list[Prompt]:
        return [*self.prompts] * (len(rows) // len(self.prompts))

    def _judged(self, scores: Values, images: int) -> Values:
        """The scores, checked and counted."""
        if tuple(scores.shape) != (images,):
            name = self.required_judge.name
            raise HarnessError(f"judge {name!r} gave scores {tuple(scores.shape)} for {images} images")
        if self.model.counter is not None:
            self.model.counter.add_judged(images)
        return scores


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """A value a row `[B]` in the shape that multiplies `like` `[B, ...]`, stills and clips alike."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass
class Refined:
    """What a stage hands on: the noise, a record a row for the Parquet file, and the clean latents where the
    winner has already been sampled.

    A stage that also acts during sampling gives `on_step(step, state)`, called before every evaluation with
    the solver's state, which it may replace by what it returns.
    """

    noise: Tensor
    records: list[dict[str, Any]] = field(default_factory=list)
    latents: Tensor | None = None
    on_step: Callable[[Step, Tensor], Tensor | None] | None = None


class NoiseStage(Protocol):
    """A frozen dataclass whose fields are its parameters.

    Optional attributes, of the class or of the instance: `version` (int), `needs_judge` (bool), `needs_gradient`
    (bool: the judge must be differentiable), `needs` (kinds of prediction that it asks of the model) and
    `needs_networks` (names of the model's further networks), `needs_timesteps` (bool: it asks at a timestep of the
    model's training), so that a family, a model block or a judge without
    them is refused when the benchmark is read, and `published_seeding` (bool: `seeding: published` means
    something to it).
    """

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Refines the noise of every row; must not depend on the other rows of the batch."""
        ...
