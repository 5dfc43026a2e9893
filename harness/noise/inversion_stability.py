"""Noise selection by inversion stability: how well does sampling and inverting give the noise back?

Source: Qi, Bai, Xiong, Xie, "Not All Noises Are Created Equally", arXiv 2407.14041, algorithm 1. The paper
compares the most stable of 100 noises with the least stable, which stands for `pick: least`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import Best


@dataclass(frozen=True)
class InversionStability:
    """The candidate noise with the highest (or lowest) cosine to its own inversion.

    Samples and inverts every candidate with this method's own sampler and guidance; the winner's latents are
    handed on, so that it is not sampled again. Costs K * T * (g_sampling + g_inversion) evaluations in all.

    Attributes:
        candidates: K; candidate 0 is the row's own noise.
        pick: the most or the least stable.
        inversion_scale: guidance of the inversion: 1 conditional, 0 unconditional, else guided (two a step).
    """

    candidates: int = 8
    pick: Literal["most", "least"] = "most"
    inversion_scale: float = 1.0

    version = 1

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Chooses for every row; records all cosines and the chosen candidate."""
        best = Best(highest=self.pick == "most")
        for k in range(self.candidates):
            noise = ctx.candidate(k)
            latents = ctx.sample(noise)
            best.offer(noise, latents, cosine(noise, ctx.invert(latents, self.inversion_scale)))
        return Refined(best.noise, best.records(), best.latents)


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    """Cosine of each row of `a` with that of `b`, both flattened, float64 `[B]`.

    In double precision: the squared norm of an SDXL latent alone is more than float16 can hold.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    values: np.ndarray = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).cpu().numpy()
    return values
