"""Precision, recall, density and coverage of a cell; the arithmetic is in `harness.prdc`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.metrics.base import Reference
from harness.metrics.distances import needed, rows
from harness.metrics.inception import Inception
from harness.prdc import PRDC, prdc, prdc_without

_KNOWN: dict[tuple[str, ...], list[PRDC]] = {}  # all four come from one pass over the distances; they are small


@dataclass(frozen=True)
class _Neighbourhoods(Inception):
    """What the four have in common. They depend on the number of images on both sides: compare equal ones only."""

    higher_is_better: ClassVar[bool] = True
    highest: ClassVar[float] = 1.0
    needs_features: ClassVar[bool] = True
    part: ClassVar[str]  # of `PRDC`

    neighbours: int = 3  # as guided-diffusion; Naeem et al. and dgm-eval take 5

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError("neighbours must be at least 1")

    def distance(self, features: np.ndarray, reference: Reference | None) -> float:
        """The share, of float32 `[N, 2048]` features; both sides need more than `neighbours` rows."""
        return float(getattr(self._all(features, None, reference)[0], self.part))

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None) -> np.ndarray:
        """From one pass over the distances."""
        return np.array([getattr(found, self.part) for found in self._all(features, group, reference)])

    def _all(self, features: np.ndarray, group: np.ndarray | None, reference: Reference | None) -> list[PRDC]:
        """All four, of all rows, or with each group left out; kept for the other three metrics."""
        known, k = rows(reference, self.name), self.neighbours
        given = [hashlib.blake2b(x.tobytes()).hexdigest() for x in (features, group) if x is not None]
        key = (*given, needed(reference, self.name).sha256, str(k))
        if key not in _KNOWN:
            _KNOWN[key] = (
                [prdc(features, known, k)] if group is None else prdc_without(features, group, known, k)
            )
        return _KNOWN[key]


@dataclass(frozen=True)
class Precision(_Neighbourhoods):
    """The share of generated images inside the ball of a reference image (Kynkäänniemi et al. 2019)."""

    name: ClassVar[str] = "precision"
    part: ClassVar[str] = "precision"


@dataclass(frozen=True)
class Recall(_Neighbourhoods):
    """The share of reference images inside the ball of a generated image (Kynkäänniemi et al. 2019)."""

    name: ClassVar[str] = "recall"
    part: ClassVar[str] = "recall"


@dataclass(frozen=True)
class Density(_Neighbourhoods):
    """How many reference balls hold a generated image, over k; 0 upwards, about 1 for like sets (Naeem et al. 2020)."""

    name: ClassVar[str] = "density"
    part: ClassVar[str] = "density"
    highest: ClassVar[float] = np.inf


@dataclass(frozen=True)
class Coverage(_Neighbourhoods):
    """The share of reference images whose own ball holds a generated image (Naeem et al. 2020)."""

    name: ClassVar[str] = "coverage"
    part: ClassVar[str] = "coverage"
