"""Noise levels: what a timestep of a training schedule stands for, and the way from one level to another."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import cached_property

from torch import Tensor

from harness.errors import HarnessError

ROUNDING = 1e-9  # a level or fraction that was computed may be this much off, relative to it


class NoiseLevels:
    """alpha = sqrt(abar) and sigma = sqrt(1 - abar) of a training schedule, in double precision.

    Between two training timesteps the ratio sigma/alpha is interpolated linearly, as the Euler and Heun
    schedulers do.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.abar: list[float] = alphas_cumprod.double().tolist()

    def ratio(self, timestep: float) -> float:
        """sigma/alpha: the noise level of the literature (infinite where nothing of the image is left)."""
        low = math.floor(timestep)
        ratio = ratio_of(self.abar[low])
        if timestep == low:
            return ratio
        return ratio + (timestep - low) * (ratio_of(self.abar[low + 1]) - ratio)

    def timestep(self, ratio: float) -> float:
        """The timestep at a noise level sigma/alpha: the exact inverse of `ratio`.

        Raises:
            HarnessError: the training schedule has no such noise level.
        """
        low, high = self.range
        if not low * (1 - ROUNDING) <= ratio <= high * (1 + ROUNDING):
            raise HarnessError(f"sampler: the noise level {ratio:.6g} lies outside of what the model was trained with, "
                               f"{low:.6g} to {high:.6g}; set sigma_min and sigma_max within it")
        place = min(bisect_right(self._ratios, ratio), len(self._ratios) - 1) - 1
        if place < 0:
            return 0.0
        below, above = self._ratios[place : place + 2]
        return place + min((ratio - below) / (above - below), 1.0)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest finite noise level sigma/alpha."""
        return self._ratios[0], self._ratios[-1]

    @cached_property
    def _ratios(self) -> list[float]:
        return [ratio_of(abar) for abar in self.abar if abar > 0]

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar) at a timestep."""
        if timestep == int(timestep):
            abar = self.abar[int(timestep)]
            return math.sqrt(abar), math.sqrt(1 - abar)
        return from_ratio(self.ratio(timestep))


def ratio_of(abar: float) -> float:
    """sigma/alpha where alpha^2 = `abar`."""
    return math.sqrt((1 - abar) / abar) if abar > 0 else math.inf


def from_ratio(ratio: float) -> tuple[float, float]:
    """alpha and sigma of a variance-preserving process at the noise level sigma/alpha = `ratio`."""
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio) if math.isfinite(ratio) else 1.0


def move(x: Tensor, epsilon: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """A latent carried along the straight path of a constant `epsilon` from one noise level to another.

    `start` and `end` are (alpha, sigma) = (sqrt(abar), sqrt(1 - abar)); this is the DDIM step, in either
    direction: alpha_end / alpha_start * x + alpha_end * (sigma_end / alpha_end - sigma_start / alpha_start) * epsilon.
    """
    scale = end[0] / start[0]
    return scale * x + (end[1] - scale * start[1]) * epsilon
