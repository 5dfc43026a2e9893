"""Solvers of the variance-preserving families, through the schedulers of `diffusers`.

The benchmark's sampler decides everything: what a model's own scheduler configuration says of spacing, noise
grids or clipping is overridden, and only its betas, offsets and prediction type are kept.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from harness.diffusion.base import Sampler, Schedule, Step
from harness.diffusion.levels import NoiseLevels, from_ratio, ratio_of
from harness.errors import HarnessError
from harness.quiet import quiet
from harness.registry import nearest

_PLAIN_GRID = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "use_lu_lambdas": False,
        "final_sigmas_type": "zero", "lower_order_final": True, "euler_at_final": False, "thresholding": False}

# Name in the YAML -> scheduler class and what is fixed about it.
SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "thresholding": False}),
    "euler": (EulerDiscreteScheduler, {**_PLAIN_GRID, "final_sigmas_type": "zero", "interpolation_type": "linear"}),
    "heun": (HeunDiscreteScheduler, {**_PLAIN_GRID, "clip_sample": False}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {**_PLAIN_GRID, **_DPM}),
}
SPACINGS = ("trailing", "leading", "linspace")


def build_scheduler(config: dict[str, Any], sampler: Sampler) -> Any:
    """The `diffusers` scheduler for `sampler` from a model's scheduler configuration, its timesteps set.

    Raises:
        HarnessError: an unknown solver or spacing, or a step count that this solver and spacing cannot do.
    """
    if sampler.name not in SOLVERS:
        raise HarnessError(f"sampler: unknown name {sampler.name!r}: {nearest(sampler.name, list(SOLVERS))}")
    idle = [key for key in ("sigma_min", "sigma_max", "precision") if getattr(sampler, key) is not None]
    if idle:
        raise HarnessError(f"sampler: {idle[0]} means nothing without rho, which asks for the EDM sampler: add "
                           f"'rho: 7', or leave {idle[0]} out")
    if sampler.spacing not in SPACINGS:
        raise HarnessError(f"sampler: unknown spacing {sampler.spacing!r}: {nearest(sampler.spacing, list(SPACINGS))}")
    cls, fixed = SOLVERS[sampler.name]
    with quiet():  # settings of another scheduler class in the configuration are no news
        scheduler = cls.from_config(config, timestep_spacing=sampler.spacing, **fixed)
    trained = scheduler.config.num_train_timesteps
    if sampler.steps > trained:
        raise HarnessError(f"sampler: {sampler.steps} steps, but the model was trained with {trained} timesteps")
    scheduler.set_timesteps(sampler.steps, device="cpu")
    grid = grid_of(scheduler)
    falling = all(a > b for a, b in pairwise(grid))
    if len(grid) != sampler.steps or not falling or grid[-1] < 0 or grid[0] >= trained:
        # The library rounds some grids badly: 61 trailing steps become 62 that end at timestep -1.
        raise HarnessError(
            f"sampler: {sampler.name} with {sampler.spacing} spacing has no valid grid of {sampler.steps} steps; "
            f"take one step more or less"
        )
    return scheduler


def grid_of(scheduler: Any) -> list[float]:
    """The timestep at which each solver step starts, noisiest first."""
    timesteps: list[float] = scheduler.timesteps.tolist()
    return timesteps[::2] if scheduler.order == 2 else timesteps


class DiffusersSchedule(Schedule):
    """One batch's solver. `advance` must be called for evaluation 0, 1, 2, ... in turn."""

    def __init__(self, config: dict[str, Any], sampler: Sampler) -> None:
        self.scheduler = build_scheduler(config, sampler)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        if hasattr(self.scheduler, "is_scale_input_called"):
            self.scheduler.is_scale_input_called = True  # network_input does it, without the scheduler's state
        self.name = sampler.name
        self.levels = NoiseLevels(self.scheduler.alphas_cumprod)
        grid = grid_of(self.scheduler)
        self.starts = [self.levels.ratio(t) for t in grid]
        self.arrivals = [self._arrival(grid, index) for index in range(sampler.steps)]
        self.evaluations = [
            Step(index=index, total=sampler.steps, sigma=self.starts[index], timestep=timestep)
            for i, timestep in enumerate(self.scheduler.timesteps.tolist())
            for index in [i // self.scheduler.order]
        ]

    def _arrival(self, grid: list[float], index: int) -> float:
        if self.name == "ddim":
            # The library's DDIM lands on t - (1000 // steps), which is not always the next place of its grid.
            previous = int(grid[index]) - self.scheduler.config.num_train_timesteps // len(grid)
            if previous < 0:
                return ratio_of(float(self.scheduler.final_alpha_cumprod))
            return self.levels.ratio(previous)
        return self.levels.ratio(grid[index + 1]) if index + 1 < len(grid) else 0.0

    @property
    def _exploding(self) -> bool:
        """Whether the state is x0 + sigma * noise (Euler, Heun) and not what the network sees."""
        return self.name in ("euler", "heun")

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise to the solver's first state."""
        state: Tensor = noise * self.scheduler.init_noise_sigma
        return state

    def network_input(self, state: Tensor, i: int) -> Tensor:
        """The variance-preserving x_t of evaluation `i`."""
        if not self._exploding:
            return state
        sigma = self.scheduler.sigmas[i]
        scaled: Tensor = state / ((sigma**2 + 1) ** 0.5)
        return scaled

    def advance(self, prediction: Tensor, state: Tensor, i: int, renoise: Tensor | None = None) -> Tensor:
        """The state after evaluation `i`; `renoise` (CFG++) with the DDIM solver alone.

        Raises:
            HarnessError: `renoise` with a solver of another kind.
        """
        timestep = self.scheduler.timesteps[i]
        if renoise is not None:
            return self._renoised(prediction, renoise, state, i)
        if self.name == "ddim":
            timestep = int(timestep)
        after: Tensor = self.scheduler.step(prediction, timestep, state, return_dict=False)[0]
        return after

    def _renoised(self, prediction: Tensor, renoise: Tensor, state: Tensor, i: int) -> Tensor:
        if self.name != "ddim":
            raise HarnessError(f"this guidance re-noises with a prediction of its own, which {self.name!r} cannot "
                               f"take; set sampler.name to 'ddim'")
        alpha, sigma = self.levels.alpha_sigma(self.evaluations[i].timestep)
        alpha_next, sigma_next = from_ratio(self.arrivals[i])
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            x0, epsilon = (state - sigma * prediction) / alpha, renoise
        elif kind == "v_prediction":
            x0, epsilon = alpha * state - sigma * prediction, alpha * renoise + sigma * state
        else:
            x0, epsilon = prediction, (state - alpha * renoise) / sigma
        return alpha_next * x0 + sigma_next * epsilon
