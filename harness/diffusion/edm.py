"""The deterministic EDM sampler: Euler or Heun along the probability flow, on noise levels spaced by a power.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364,
algorithm 1 and equation 5, without added noise (S_churn = 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.diffusion.base import Diffusion, Sampler, Schedule, Step
from harness.diffusion.levels import NoiseLevels
from harness.diffusion.schedules import DiffusersSchedule, build_scheduler
from harness.errors import HarnessError
from harness.registry import nearest

ORDERS = {"euler": 1, "heun": 2}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Grid:
    """The settings of a sampling's noise levels and state; of a family those that a benchmark leaves to it."""

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    precision: Literal["float32", "float64"] = "float64"


def karras_grid(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """The noise levels at which the steps start, from `sigma_max` down to `sigma_min` themselves, in double precision.

    sigma_i = (sigma_max^(1/rho) + i / (steps - 1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho; the last step goes
    from the last of them to 0. One step alone starts at `sigma_max`.

    Raises:
        HarnessError: in floating point the levels of this `rho` do not fall, or are not finite.
    """
    try:
        first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        between = [(first + i / (steps - 1) * (last - first)) ** rho for i in range(1, steps - 1)]
    except OverflowError:
        between = [math.inf]
    if not all(a > b for a, b in pairwise([sigma_max, *between, sigma_min])):
        raise HarnessError(f"sampler: rho {rho:g} gives noise levels that do not fall from {sigma_max:.6g} to "
                           f"{sigma_min:.6g} in floating point; usual are 7 (EDM) and 3 (SDXL)")
    return [sigma_max, *between, sigma_min][:steps]


def settings(sampler: Sampler, own: Grid) -> Grid:
    """The grid that `sampler` asks for, what it leaves out filled in from the family's `own`.

    Raises:
        HarnessError: another solver, a spacing (these noise levels have none), or ends that are upside down.
    """
    if sampler.name not in ORDERS:
        raise HarnessError(f"sampler: the noise levels of rho are sampled by heun or euler, not by {sampler.name!r}: "
                           f"{nearest(sampler.name, list(ORDERS))}")
    if sampler.spacing != Sampler.spacing:
        raise HarnessError(f"sampler: spacing {sampler.spacing!r} means nothing here, the noise levels follow from "
                           f"rho, sigma_min and sigma_max; leave it out")
    asked = {key: getattr(sampler, key) for key in ("rho", "sigma_min", "sigma_max", "precision")}
    grid = replace(own, **{key: value for key, value in asked.items() if value is not None})
    if grid.sigma_min >= grid.sigma_max:
        raise HarnessError(f"sampler: sigma_min must be below sigma_max, got {grid.sigma_min:.6g} and "
                           f"{grid.sigma_max:.6g}")
    return grid


Timestep = Callable[[float], float]


def evaluations(sampler: Sampler, own: Grid, timestep: Timestep) -> list[tuple[Step, float]]:
    """Every evaluation of the network with the noise level that it is made at (`Step.sigma` is that of its step).

    A step of Heun evaluates where it starts and where Euler's step arrives, but for the last, which arrives at 0
    and is Euler's alone. `timestep` turns a noise level into what the model calls a timestep.

    Raises:
        HarnessError: as `settings` and `karras_grid`, and what `timestep` raises.
    """
    grid = settings(sampler, own)
    starts = karras_grid(sampler.steps, grid.sigma_min, grid.sigma_max, grid.rho)
    return [
        (Step(index, sampler.steps, starts[index], timestep(level)), level)
        for index in range(sampler.steps)
        for level in starts[index : index + ORDERS[sampler.name]]
    ]


def _starts(placed: list[tuple[Step, float]]) -> list[float]:
    return list({step.index: step.sigma for step, _ in placed}.values())


class EDMSchedule(Schedule):
    """One batch's solver; its state is x0 + sigma * noise in the grid's precision.

    Raises:
        HarnessError: as `evaluations`.
    """

    def __init__(self, model: Diffusion, sampler: Sampler, own: Grid, timestep: Timestep = float) -> None:
        self.model = model
        self.dtype = DTYPES[settings(sampler, own).precision]
        placed = evaluations(sampler, own, timestep)
        self.evaluations = [step for step, _ in placed]
        self.levels = [level for _, level in placed]
        self.arrivals = [*_starts(placed)[1:], 0.0]
        self._before: Tensor
        self._slope: Tensor

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise to the solver's first state."""
        return noise.to(self.dtype) * self.levels[0]

    def network_input(self, state: Tensor, i: int) -> Tensor:
        """What the network sees at evaluation `i`: the state itself where alpha is 1."""
        return state * self.model.alpha_sigma(self.evaluations[i].timestep)[0]

    def advance(self, prediction: Tensor, state: Tensor, i: int, renoise: Tensor | None = None) -> Tensor:
        """The state after evaluation `i`: where Euler's step arrives, then corrected by Heun's second slope.

        Raises:
            HarnessError: `renoise`, which this solver cannot take.
        """
        if renoise is not None:
            raise HarnessError("this guidance re-noises with a prediction of its own, which the EDM sampler cannot "
                               "take; set sampler.name to 'ddim' where the model's family has it")
        step = self.evaluations[i]
        denoised = self.model.to_x0(prediction, self.network_input(state, i), step.timestep)
        slope = (state - denoised) / self.levels[i]
        length = self.arrivals[step.index] - step.sigma
        if i > 0 and self.evaluations[i - 1].index == step.index:
            return self._before + length * (0.5 * self._slope + 0.5 * slope)
        self._before, self._slope = state, slope
        return state + length * slope


class VarianceExploding(Diffusion):
    """A family in the coordinates x0 + sigma * noise, whose timesteps are the noise levels themselves."""

    samplers = tuple(ORDERS)
    timesteps = False
    grid: ClassVar[Grid]  # where the sampler says nothing else

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """1 and sigma."""
        return 1.0, float(timestep)

    def at_ratio(self, ratio: float) -> tuple[float, float]:
        """1 and sigma."""
        return 1.0, ratio

    def schedule(self, sampler: Sampler) -> Schedule:
        """A fresh solver for one batch."""
        return EDMSchedule(self, sampler, self.grid)

    @classmethod
    def sampler_problems(cls, sampler: Sampler) -> list[str]:
        """What makes no sense of a sampler."""
        try:
            cls.step_levels(None, sampler)
        except HarnessError as error:
            return [str(error)]
        return []

    @classmethod
    def step_levels(cls, folder: Path | None, sampler: Sampler) -> list[float]:
        """The noise level at which each solver step starts: the sampler and the family alone decide."""
        return _starts(evaluations(sampler, cls.grid, float))


def discrete_schedule(model: Diffusion, config: dict[str, Any], levels: NoiseLevels, sampler: Sampler) -> Schedule:
    """The solver of a family with training timesteps, for one batch: with `rho` the EDM sampler, in float32 and over
    all of the model's noise levels where the sampler says nothing else; without it that of `schedules.py`."""
    if sampler.rho is None:
        return DiffusersSchedule(config, sampler)
    return EDMSchedule(model, sampler, _own(levels), levels.timestep)


def discrete_levels(config: dict[str, Any], sampler: Sampler) -> list[float]:
    """The noise levels at which the steps of `discrete_schedule` start, of a model with this scheduler configuration.

    Raises:
        HarnessError: as `discrete_schedule`.
    """
    if sampler.rho is None:
        return DiffusersSchedule(config, sampler).starts
    levels = NoiseLevels(build_scheduler(config, Sampler()).alphas_cumprod)
    return _starts(evaluations(sampler, _own(levels), levels.timestep))


def _own(levels: NoiseLevels) -> Grid:
    low, high = levels.range
    return Grid(sigma_min=low, sigma_max=high, precision="float32")
