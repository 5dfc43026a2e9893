"""Kernel Inception Distance of a cell (Bińkowski et al. 2018); the arithmetic is in `harness.kid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.kid import kid, kid_without
from harness.metrics.base import Reference
from harness.metrics.distances import rows
from harness.metrics.inception import Inception


@dataclass(frozen=True)
class KID(Inception):
    """The mean over `subsets` draws of `subset_size` rows a side; lower is better, a little below 0 for like sets.

    Not multiplied by 1000, as some papers do. Values of one `subset_size` only may be compared.
    """

    name: ClassVar[str] = "kid"
    lowest: ClassVar[float] = -np.inf
    needs_features: ClassVar[bool] = True

    subset_size: int = 1000
    subsets: int = 100

    def __post_init__(self) -> None:
        if self.subset_size < 2 or self.subsets < 1:
            raise ValueError("subset_size must be at least 2, subsets at least 1")

    def distance(self, features: np.ndarray, reference: Reference | None) -> float:
        """The distance of float32 `[N, 2048]` features, N and the reference's rows at least `subset_size`."""
        return kid(features, rows(reference, self.name), subset_size=self.subset_size, subsets=self.subsets)

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None) -> np.ndarray:
        """With the subsets of `distance`, less each group's rows."""
        known = rows(reference, self.name)
        return kid_without(features, group, known, subset_size=self.subset_size, subsets=self.subsets)
