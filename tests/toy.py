"""A diffusion model whose prediction is a formula, so that a method's arithmetic can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule
from harness.diffusion.edm import Grid, VarianceExploding, discrete_schedule
from harness.diffusion.levels import NoiseLevels
from harness.diffusion.schedules import build_scheduler
from harness.prompts import Prompt

SD_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "steps_offset": 1,
}

Epsilon = Callable[[Tensor, float, Tensor], Tensor]  # (x, timestep, condition [B]) -> epsilon


class Toy(Diffusion):
    """epsilon = a function of x, timestep and a number a prompt (its text; the null prompt is 0)."""

    family = "toy"
    samplers = ("ddim", "euler", "heun", "dpmsolver++")

    def __init__(self, epsilon: Epsilon, native: str = "epsilon") -> None:
        self.epsilon = epsilon
        self.native = native
        self.config = {**SD_SCHEDULE, "prediction_type": native}
        self.levels = NoiseLevels(build_scheduler(self.config, Sampler("ddim", 1)).alphas_cumprod)
        self.latent_shape = (4, 8, 8)
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def load(cls, weights: str, **settings: Any) -> Toy:  # type: ignore[override]
        raise NotImplementedError

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        numbers = torch.tensor([float(prompt.text) for prompt in prompts])
        return Conditioning({"n": numbers}, {"n": torch.zeros_like(numbers)}, torch.arange(len(prompts)))

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        epsilon = self.epsilon(x, float(timestep), conditioning.tensors["n"].view(-1, 1, 1, 1)).expand_as(x)
        return self.to_native(epsilon, x, float(timestep), "epsilon")

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        return self.levels.alpha_sigma(timestep)

    def schedule(self, sampler: Sampler) -> Schedule:
        return discrete_schedule(self, self.config, self.levels, sampler)

    def decode(self, latents: Tensor) -> np.ndarray:
        images: np.ndarray = (self.decode_differentiable(latents).numpy() * 255).round().astype(np.uint8)
        return images

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        return (latents[:, :3].permute(0, 2, 3, 1).unsqueeze(1) * 0.5 + 0.5).clamp(0, 1)

    def flops_per_evaluation(self, network: str = "main") -> float:
        return 10.0


class Exploding(VarianceExploding, Toy):
    """The same in the coordinates x0 + sigma * noise."""

    family = "exploding"
    grid = Grid()


def numbers(*values: float) -> list[Prompt]:
    """Prompts that the toy reads as numbers."""
    return [Prompt(str(i), str(value)) for i, value in enumerate(values)]
