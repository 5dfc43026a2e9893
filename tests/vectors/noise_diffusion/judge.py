"""A small differentiable judge, in the place of the authors' 11-billion-parameter VQA model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.metrics.base import SampleMetric, Scores
from harness.prompts import Prompt


def value(images: Tensor) -> Tensor:
    """Between 0 and 1, `[N]`, from images `[N, 3, 64, 64]`: how they resemble a fixed random pattern, curved."""
    pattern = torch.randn((3, 8, 8), generator=torch.Generator().manual_seed(5)).repeat_interleave(8, 1)
    pattern = pattern.repeat_interleave(8, 2)
    return torch.sigmoid(((images.sin() * pattern).mean(dim=(1, 2, 3))) * 30 - 0.5)


@dataclass(frozen=True)
class Pattern(SampleMetric):
    """The same value as a metric."""

    name = "pattern"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        shown = torch.from_numpy(images.astype(np.float32) / 255)
        return Scores(self.differentiable(shown, prompts).double().numpy())

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return value(images[:, 0].permute(0, 3, 1, 2))
