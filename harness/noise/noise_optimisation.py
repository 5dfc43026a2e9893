"""Noise optimisation by inversion stability: the noise descends on 1 - cos(noise, its own inversion).

Source: Qi, Bai, Xiong, Xie, "Not All Noises Are Created Equally", arXiv 2407.14041, algorithm 2. The inverted
noise counts as a constant, so the gradient has a closed form and nothing goes back through a network.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.guidance.cfg import CFG
from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import numbers
from harness.noise.cosine import cosine


@dataclass(frozen=True)
class NoiseOptimisation:
    """`steps` times: n <- n - rate_i * m, with momentum m <- momentum * m + gradient of 1 - cos(n, inverted n).

    The rate is annealed, rate_i = rate / 2 * (1 + cos(pi * i / steps)) for i = 1 ... steps: it ends at 0, so the
    last step only measures the final noise, whose latents are handed on. The paper does not state where its
    annealing ends. Costs `steps` * T * (g_sampling + g_inversion) evaluations in all.

    Attributes:
        steps: round trips n, of which all but the last move the noise; 0 and 1 change nothing.
        learning_rate: the paper's 100 for a latent of `learning_rate_size` elements.
        learning_rate_size: a step turns a noise of D elements by an angle that goes with rate / D, so the rate is
            `learning_rate` * D / `learning_rate_size`; 65536 is SDXL's latent. null: `learning_rate` as it is.
        momentum: of the gradients, from 0.
        inversion_scale: guidance of the inversion: 1 conditional, 0 unconditional, else guided (two a step).
    """

    steps: int = 100
    learning_rate: float = 100.0
    learning_rate_size: int | None = 65_536
    momentum: float = 0.5
    inversion_scale: float = 1.0

    version = 1

    @property
    def needs(self) -> frozenset[str]:
        """What the inversion's guidance asks for."""
        return CFG(self.inversion_scale).needs

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if self.learning_rate_size is not None and self.learning_rate_size < 1:
            raise ValueError(f"learning_rate_size must be at least 1, or null, got {self.learning_rate_size}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")

    def rates(self, size: int) -> list[float]:
        """The rate of every step for a latent of `size` elements."""
        whole = self.learning_rate * (1 if self.learning_rate_size is None else size / self.learning_rate_size)
        return [whole / 2 * (1 + math.cos(math.pi * i / self.steps)) for i in range(1, self.steps + 1)]

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Optimises every row; records `cosines` and the noise's L2 `norms`, both before each step's move."""
        noise, m = ctx.noise, torch.zeros_like(ctx.noise)
        latents: Tensor | None = None
        cosines: list[np.ndarray] = []
        norms: list[np.ndarray] = []
        for rate in self.rates(noise[0].numel()):
            latents = ctx.sample(noise)
            inverted = ctx.invert(latents, self.inversion_scale)
            cosines.append(cosine(noise, inverted))
            norms.append(noise.flatten(1).double().norm(dim=1).cpu().numpy())
            m = self.momentum * m + gradient(noise, inverted)
            noise = noise - rate * m  # the last rate is 0: `latents` are those of the final noise
        curves = zip(np.reshape(cosines, (-1, len(noise))).T, np.reshape(norms, (-1, len(noise))).T, strict=True)
        return Refined(noise, [{"cosines": numbers(c), "norms": numbers(n)} for c, n in curves], latents)


def gradient(noise: Tensor, inverted: Tensor) -> Tensor:
    """The gradient of 1 - cos(noise, inverted) with respect to `noise` alone, row by row, `[B, C, H, W]` as it.

    With unit vectors n and v and c = n . v it is -(v - c * n) / |noise|: across the noise, of length
    sqrt(1 - c^2) / |noise|. In double precision inside (half precision would lose its small elements).
    """
    n, v = noise.flatten(1).double(), inverted.flatten(1).double()
    length = n.norm(dim=1, keepdim=True)
    n, v = n / length, v / v.norm(dim=1, keepdim=True)
    across = v - (n * v).sum(dim=1, keepdim=True) * n
    found: Tensor = -across / length
    return found.view_as(noise).to(noise.dtype)
