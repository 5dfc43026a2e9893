"""Zero-order search: from a pivot noise to the best of its neighbours, again and again.

Source: Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps", arXiv
2501.09732, section 3 (zero-order search). The paper leaves open how a neighbour is drawn; the one here turns the
noise by an angle and keeps its norm, as the public implementation github.com/sayakpaul/tt-scale-flux does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import Best, positive, try_all
from harness.registry import HOW


@dataclass(frozen=True)
class ZeroOrderSearch:
    """`rounds` times: draw neighbours of the pivot, and make the one whose image the judge likes best the pivot.

    The first pivot is the row's own noise. A pivot stays where no neighbour is better, so the score never falls.
    Costs (1 + N * R) * T * g evaluations in all: the pivot's image is known. The winner's latents are handed on.

    Attributes:
        rounds: R; 0 samples the row's own noise.
        neighbours: N, in each round.
        radius: distance of a neighbour from its pivot, relative to the pivot's norm; above 0, at most 2. The
            default makes their cosine 1 - radius^2 / 2 = 0.95.
        together: neighbours that make one batch, where a micro-batch alone does not fill the device.
    """

    rounds: int = 4
    neighbours: int = 4
    radius: float = math.sqrt(0.1)
    together: int = field(default=1, metadata=HOW)

    version = 1
    needs_judge = True

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be 0 or more, got {self.rounds}")
        if not 0 < self.radius <= 2:
            raise ValueError(f"radius must be above 0 and at most 2, got {self.radius}")
        positive(neighbours=self.neighbours, together=self.together)

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Searches for every row; `scores` holds the first pivot's, then round by round those of the neighbours.

        `chosen` is the place of the last pivot among them. Where a score is NaN it loses.
        """
        best = Best(highest=ctx.required_judge.higher_is_better)
        try_all(ctx, best, [ctx.noise], 1, lambda noise, latents: ctx.score(latents))
        for index in range(self.rounds):
            neighbours = self._neighbours(ctx, best.noise, index)
            try_all(ctx, best, neighbours, self.together, lambda noise, latents: ctx.score(latents))
        return Refined(best.noise, best.records(), best.latents)

    def _neighbours(self, ctx: NoiseContext, pivot: Tensor, index: int) -> Iterator[Tensor]:
        for k in range(self.neighbours):
            yield neighbour(pivot, ctx.draw("neighbour", index * self.neighbours + k), self.radius)


def neighbour(pivot: Tensor, draw: Tensor, radius: float) -> Tensor:
    """Noise of the pivot's norm at distance `radius` times it, in the direction of `draw`'s part across the pivot.

    Both `[B, C, H, W]`, row by row, in double precision inside. With cos = 1 - radius^2 / 2 it is
    |pivot| * (cos * pivot / |pivot| + sqrt(1 - cos^2) * w), w the unit vector of the orthogonal part.
    """
    z, w = pivot.flatten(1).double(), draw.flatten(1).double()
    unit = z / z.norm(dim=1, keepdim=True)
    across = torch.nn.functional.normalize(w - (w * unit).sum(1, keepdim=True) * unit, dim=1)
    cosine = 1 - radius**2 / 2
    turned: Tensor = z * cosine + z.norm(dim=1, keepdim=True) * math.sqrt(1 - cosine**2) * across
    return turned.view_as(pivot).to(pivot.dtype)
