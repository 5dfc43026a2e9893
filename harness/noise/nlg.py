"""NLG: the initial noise walks along the guidance direction at the noisiest timestep.

Source: Mannering, Huang, Prügel-Bennett, "Noise-Level Diffusion Guidance: Well Begun is Half Done",
arXiv 2509.13936; behaviour of the authors' script at commit e4e9e19 where `variant: published`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from harness.diffusion.base import Step
from harness.diffusion.sampling import evaluate
from harness.guidance.base import COND, UNCOND
from harness.noise.base import NoiseContext, Refined
from harness.seeding import normals

BOUND = 3.0  # of every element, with `boundary`


@dataclass(frozen=True)
class NLG:
    """`steps` times: n <- n - step_size * (eps_cond - eps_uncond), clipped, noised, clamped, normalised in turn.

    The defaults are the setting that the authors recommend (there with sampling without guidance). Costs
    `2 * steps` evaluations before sampling.

    Attributes:
        steps: refining steps R; 0 changes nothing.
        step_size: eta, times the direction.
        clip_threshold: the direction's L2 norm is clipped to it, row by row; null: no clipping.
        normalise: scales each row back to norm sqrt(C*H*W) after every step.
        noise_variance: variance of the Gaussian noise added after every step; 0: none.
        formula: the direction is gamma * eps_cond + (1 - gamma) * eps_uncond instead of the difference.
        gamma: used with `formula` alone.
        boundary: clamps every element to [-3, 3] after every step.
        variant: `described` draws fresh noise at every step. `published` adds one and the same draw at every
            step, as the authors' script does by restoring its random state.
    """

    # Of the script, `published` does not emulate: that all batches share the repeated draw (here it belongs to
    # the row, so that a row's result does not depend on its place in a batch), and that the first batch of a
    # process reads alpha and sigma of t = 0, which makes its directions 14.6 times longer before clipping (a
    # property of the order of work, and of 8 of 30,000 images). The script takes every network for one that
    # predicts v; here the conversion to epsilon follows the network.

    steps: int = 20
    step_size: float = 1.0
    clip_threshold: float | None = 0.5
    normalise: bool = True
    noise_variance: float = 0.001
    formula: bool = False
    gamma: float = 3.0
    boundary: bool = False
    variant: Literal["described", "published"] = "described"

    version = 1
    needs = frozenset({"cond", "uncond"})

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")
        if self.clip_threshold is not None and not self.clip_threshold > 0:
            raise ValueError(f"clip_threshold must be above 0, or null for none, got {self.clip_threshold}")
        if not self.noise_variance >= 0:
            raise ValueError(f"noise_variance must be 0 or more, got {self.noise_variance}")

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Refines every row; records `norms`, the direction's L2 norm at each step before clipping."""
        schedule = ctx.model.schedule(ctx.sampler)
        first = schedule.evaluations[0]  # t = 999 with trailing or linspace spacing
        generators = ctx.generators("nlg")
        extra: Tensor | None = None
        norms = []
        n = ctx.noise
        for _ in range(self.steps):
            direction = self._direction(ctx, schedule.network_input(schedule.start(n), 0), first)
            norm = direction.flatten(1).norm(dim=1)
            norms.append(norm)
            if self.clip_threshold is not None:
                # Where the norm is 0 the direction is 0 too, and stays.
                shrink = (self.clip_threshold / norm.clamp_min(1e-30)).clamp(max=1)
                direction = direction * shrink.view(-1, 1, 1, 1)
            n = n - self.step_size * direction
            if self.noise_variance > 0:
                if extra is None or self.variant == "described":
                    extra = normals(generators, tuple(n.shape[1:])).to(n.device)
                n = n + math.sqrt(self.noise_variance) * extra
            if self.boundary:
                n = n.clamp(-BOUND, BOUND)
            if self.normalise:
                length = n.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                n = n * (math.sqrt(n[0].numel()) / length)
        return Refined(n, _records(norms, len(n)))

    def _direction(self, ctx: NoiseContext, x: Tensor, first: Step) -> Tensor:
        given = evaluate(ctx.model, x, first, ctx.conditioning, (UNCOND, COND))
        conditional = ctx.model.to_epsilon(given[COND], x, first.timestep)
        unconditional = ctx.model.to_epsilon(given[UNCOND], x, first.timestep)
        if self.formula:
            return self.gamma * conditional + (1 - self.gamma) * unconditional
        return conditional - unconditional


def _records(norms: list[Tensor], rows: int) -> list[dict[str, Any]]:
    if not norms:
        return [{"norms": []} for _ in range(rows)]
    return [{"norms": row} for row in torch.stack(norms, dim=1).tolist()]
