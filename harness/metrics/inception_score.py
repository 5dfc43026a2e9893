"""Inception Score of a cell (Salimans et al. 2016); the arithmetic is in `harness.inception_score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.inception_score import inception_score, inception_score_without
from harness.metrics.base import Reference
from harness.metrics.inception import Inception


@dataclass(frozen=True)
class InceptionScore(Inception):
    """The mean over `splits` of exp(mean KL(p(y|x) || p(y))), 1 to 1008, higher is better; needs no reference.

    From the features that FID uses, so that the images pass the network once.
    """

    name: ClassVar[str] = "inception-score"
    higher_is_better: ClassVar[bool] = True
    lowest: ClassVar[float] = 1.0
    compares: ClassVar[bool] = False

    splits: int = 10

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise ValueError("splits must be at least 1")

    def distance(self, features: np.ndarray, reference: Reference | None = None) -> float:
        """The score of float32 `[N, 2048]` features, N at least `splits`."""
        return inception_score(self.logits(features), splits=self.splits)

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None = None) -> np.ndarray:
        """With the splits of `distance`, less each group's rows."""
        return inception_score_without(self.logits(features), group, splits=self.splits)
