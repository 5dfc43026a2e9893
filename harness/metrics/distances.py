"""How a cell's features are compared with a reference: the Fréchet distance and MMD, whatever network made them.

A metric is one of these and an extractor: `class FID(Frechet, Inception)`.
"""

from __future__ import annotations

import numpy as np

from harness.frechet import frechet_distance_of, frechet_without, gaussian_mmd, mean_kernel, mmd_without
from harness.metrics.base import DistributionMetric, Reference


def needed(reference: Reference | None, metric: str) -> Reference:
    """The reference. Raises ValueError where there is none."""
    if reference is None:
        raise ValueError(f"{metric} compares with a reference, and none is given")
    return reference


def rows(reference: Reference | None, metric: str) -> np.ndarray:
    """The features `[M, D]` of a reference. Raises ValueError where it holds none."""
    features = needed(reference, metric).features
    if features is None:
        raise ValueError(
            f"the reference holds moments only; {metric} needs its features: make it by `harness reference --features`"
        )
    return features


class Frechet(DistributionMetric):
    """The Fréchet distance, 0 to infinity, lower is better; falls with n, so compare equal n only."""

    def distance(self, features: np.ndarray, reference: Reference | None) -> float:
        """The distance of float32 `[N, D]` features, N at least 2."""
        known = needed(reference, self.name)
        return frechet_distance_of(features, known.mean, known.covariance, factor=known.factor)

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None) -> np.ndarray:
        """From one pass over the moments."""
        known = needed(reference, self.name)
        return frechet_without(features, group, known.mean, known.covariance, factor=known.factor)


class GaussianMMD(DistributionMetric):
    """1000 times the squared MMD (Gaussian, σ = 10) of embeddings made 1 long; 0 upwards, lower is better."""

    def distance(self, features: np.ndarray, reference: Reference | None) -> float:
        """The distance of float32 `[N, D]` features, N at least 1."""
        y, own = self._known(reference)
        return gaussian_mmd(_unit(features), y, own=own)

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None) -> np.ndarray:
        """From one pass over the kernel."""
        y, own = self._known(reference)
        return mmd_without(_unit(features), group, y, own=own)

    def _known(self, reference: Reference | None) -> tuple[np.ndarray, float]:
        """The reference's rows and the mean kernel among them."""
        known = needed(reference, self.name)
        y = _unit(rows(known, self.name))
        if known.sha256 not in _OWN:
            _OWN[known.sha256] = mean_kernel(y)
        return y, _OWN[known.sha256]


_OWN: dict[str, float] = {}  # a reference's hash -> the mean kernel of its rows: the same for every cell


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    x = np.asarray(features, np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
