"""Judges whose value and gradient are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.metrics.base import SampleMetric, Scores
from harness.prompts import Prompt


@dataclass
class Brightness(SampleMetric):
    """The mean of the image, 0 to 255, without a gradient; no score for row `blind`."""

    blind: int = -1
    name = "brightness"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        values = images.mean(axis=(1, 2, 3, 4), dtype=np.float64)
        values[[i for i, prompt in enumerate(prompts) if prompt.id == str(self.blind)]] = np.nan
        return Scores(values)


@dataclass
class Darkness(Brightness):
    """The same, lower is better."""

    higher_is_better = False


@dataclass
class Smooth(SampleMetric):
    """sigmoid(gain * (mean of the image - 0.5)), differentiable; NaN for row `blind`."""

    blind: int = -1
    gain: float = 4.0
    name = "smooth"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        return Scores(self.differentiable(torch.from_numpy(images / 255), prompts).numpy())

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        seen = torch.tensor([float("nan") if p.id == str(self.blind) else 1.0 for p in prompts])
        return torch.sigmoid(self.gain * (images.mean(dim=(1, 2, 3, 4)) - 0.5)) * seen


@dataclass
class Rough(Smooth):
    """One minus it, lower is better: the same wish."""

    higher_is_better = False

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 1 - super().differentiable(images, prompts)


@dataclass
class Constant(SampleMetric):
    """Always `value`; its gradient is that of the image's mean, so that it points somewhere."""

    value: float = 1.0
    name = "constant"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        return Scores(np.full(len(images), self.value))

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        mean = images.mean(dim=(1, 2, 3, 4))
        return self.value + mean - mean.detach()
