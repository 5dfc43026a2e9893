"""Noise selection by inversion stability: how well does sampling and inverting give the noise back?

Source: Qi, Bai, Xiong, Xie, "Not All Noises Are Created Equally", arXiv 2407.14041, algorithm 1. The paper
compares the most stable of 100 noises with the least stable, which stands for `pick: least`.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from harness.guidance.cfg import CFG
from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import Best, positive, try_all
from harness.noise.cosine import cosine
from harness.registry import HOW


@dataclass(frozen=True)
class InversionStability:
    """The candidate noise with the highest (or lowest) cosine to its own inversion.

    Samples and inverts every candidate with this method's own sampler and guidance; the winner's latents are
    handed on, so that it is not sampled again. Costs K * T * (g_sampling + g_inversion) evaluations in all.

    Attributes:
        candidates: K; candidate 0 is the row's own noise.
        pick: the most or the least stable.
        inversion_scale: guidance of the inversion: 1 conditional, 0 unconditional, else guided (two a step).
        together: candidates that make one batch, where a micro-batch alone does not fill the device.
    """

    candidates: int = 8
    pick: Literal["most", "least"] = "most"
    inversion_scale: float = 1.0
    together: int = field(default=1, metadata=HOW)

    version = 1

    @property
    def needs(self) -> frozenset[str]:
        """What the inversion's guidance asks for."""
        return CFG(self.inversion_scale).needs

    def __post_init__(self) -> None:
        positive(candidates=self.candidates, together=self.together)

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Chooses for every row; records all cosines and the chosen candidate."""

        def stability(noise: Tensor, latents: Tensor) -> np.ndarray:
            return cosine(noise, ctx.invert(latents, self.inversion_scale))

        best = Best(highest=self.pick == "most")
        try_all(ctx, best, map(ctx.candidate, range(self.candidates)), self.together, stability)
        return Refined(best.noise, best.records(), best.latents)
