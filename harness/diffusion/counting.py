"""A model without weights that counts: it runs a method's real code and says what the method will cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule
from harness.diffusion.edm import EDMSchedule, Grid, discrete_schedule
from harness.diffusion.levels import NoiseLevels
from harness.diffusion.schedules import DiffusersSchedule
from harness.metrics.base import SampleMetric, Scores
from harness.prompts import Prompt


class Counting(Diffusion):
    """Predicts zeros. `counter` then holds the evaluations of one sample of a method, stages included."""

    family = "counting"
    samplers = ()
    native = "epsilon"

    def __init__(
        self, scheduler_config: dict[str, Any], requests: frozenset[str], networks: tuple[str, ...],
        unconditional: str = "main", grid: Grid | None = None, clips: bool = False,
    ) -> None:
        """`grid` is that of a variance-exploding family, which has no scheduler's configuration; `clips`: its rows are
        clips and not stills."""
        self.scheduler_config, self.grid = scheduler_config, grid
        self.unconditional: ClassVar[str] = unconditional  # type: ignore[misc]
        self.requests: ClassVar[frozenset[str]] = requests  # type: ignore[misc]
        self.networks = networks
        self.latent_shape = (2, 4, 8, 8) if clips else (4, 8, 8)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @classmethod
    def load(cls, weights: str, **settings: Any) -> Counting:
        """There is nothing to load."""
        raise NotImplementedError("a counting model is made from a scheduler's configuration")

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Empty texts."""
        nothing = torch.zeros(len(prompts), 1)
        return Conditioning({"text": nothing}, {"text": nothing}, torch.arange(len(prompts)))

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """Zeros, counted."""
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        return torch.zeros_like(x)

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """As on the schedule's noise levels."""
        return self._levels.alpha_sigma(timestep) if self.grid is None else (1.0, timestep)

    def at_ratio(self, ratio: float) -> tuple[float, float]:
        """Likewise."""
        return super().at_ratio(ratio) if self.grid is None else (1.0, ratio)

    @cached_property
    def _levels(self) -> NoiseLevels:
        return DiffusersSchedule(self.scheduler_config, Sampler()).levels

    def schedule(self, sampler: Sampler) -> Schedule:
        """The real solver: how often it calls the network is its own affair."""
        if self.grid is not None:
            return EDMSchedule(self, sampler, self.grid)
        return discrete_schedule(self, self.scheduler_config, self._levels, sampler)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Black images."""
        return np.zeros((len(latents), 1, 8, 8, 3), dtype=np.uint8)

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Images that depend on the latents, so that gradients flow."""
        return latents.flatten(1)[:, :192].sigmoid().view(-1, 1, 8, 8, 3)

    def flops_per_evaluation(self, network: str = "main") -> float:
        """Unknown here."""
        return 0.0


class AnyJudge(SampleMetric):
    """Likes all images alike, and counts them."""

    name = "any"

    def __init__(self) -> None:
        self.judged = 0

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """Zeros."""
        self.judged += len(prompts)
        return Scores(np.zeros(len(prompts)))

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Zeros with a gradient, which is zero."""
        self.judged += len(prompts)
        return images.flatten(1).sum(dim=1) * 0
