"""NLG: the initial noise walks along the guidance direction at the noisiest timestep.

Source: Mannering, Huang, Prügel-Bennett, "Noise-Level Diffusion Guidance: Well Begun is Half Done",
arXiv 2509.13936; behaviour of the authors' script at commit e4e9e19 where `variant: published`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.base import Step
from harness.diffusion.sampling import evaluate
from harness.guidance.base import Request
from harness.noise.base import NoiseContext, Refined, per_row
from harness.seeding import RowKey, normals

BOUND = 3.0  # of every element, with `boundary`


@dataclass(frozen=True)
class NLG:
    """`steps` times: n <- n - step_size * (eps_strong - eps_weak), clipped, noised, clamped, normalised in turn.

    The defaults are the setting that the authors recommend (there with sampling without guidance). Costs
    `2 * steps` evaluations before sampling.

    Attributes:
        steps: refining steps R; 0 changes nothing.
        step_size: eta, times the direction.
        clip_threshold: the direction's L2 norm is clipped to it, row by row; null: no clipping.
        normalise: scales each row back to norm sqrt(C*H*W) after every step.
        noise_variance: variance of the Gaussian noise added after every step; 0: none.
        formula: the direction is gamma * eps_strong + (1 - gamma) * eps_weak instead of the difference.
        gamma: used with `formula` alone.
        boundary: clamps every element to [-3, 3] after every step.
        variant: `described` draws fresh noise at every step. `published` adds one and the same draw at every
            step, as the authors' script does by restoring its random state.
        strong: the prediction to walk towards: "cond", "uncond" or "network:NAME" (conditional, by that further
            network of the model).
        weak: the prediction to walk away from, likewise. The defaults are classifier-free guidance's pair, a
            smaller or less trained network as `weak` is autoguidance's.
    """

    # `published` under the benchmark's `seeding: published` also has what in the script depends on the order of
    # work: the repeated draw belongs to the place in the batch, the same for all batches, and the first batch
    # reads alpha and sigma at t = 0 (before the scheduler's set_timesteps), which makes the directions of a
    # network that predicts v 14.6 times longer before clipping. Under another seeding the draw belongs to the
    # row, which then depends on no place. The script takes every network for one that predicts v; here the
    # conversion to epsilon follows the network.

    steps: int = 20
    step_size: float = 1.0
    clip_threshold: float | None = 0.5
    normalise: bool = True
    noise_variance: float = 0.001
    formula: bool = False
    gamma: float = 3.0
    boundary: bool = False
    variant: Literal["described", "published"] = "described"
    strong: str = "cond"
    weak: str = "uncond"

    version = 1

    @property
    def pair(self) -> tuple[Request, Request]:
        """The requests of the strong and of the weak prediction."""
        return _request("strong", self.strong), _request("weak", self.weak)

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of prediction that the pair asks for."""
        return frozenset(request.kind for request in self.pair)

    @property
    def needs_networks(self) -> frozenset[str]:
        """The further networks that the pair asks."""
        return frozenset(request.network for request in self.pair if request.kind == "network")

    @property
    def needs_timesteps(self) -> bool:
        """The published variant reads a timestep of training, t = 0."""
        return self.variant == "published"

    @property
    def published_seeding(self) -> bool:
        """`seeding: published` means something to the published variant."""
        return self.variant == "published"

    def __post_init__(self) -> None:
        if len(set(self.pair)) == 1:
            raise ValueError(f"strong and weak are both {self.weak!r}: there is no direction between them")
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
        extra = self._repeated(ctx.keys, ctx.noise)
        norms = []
        n = ctx.noise
        for _ in range(self.steps):
            # A solver's state may be of double precision, noise is not.
            direction = self._direction(ctx, schedule.network_input(schedule.start(n), 0), first).to(n.dtype)
            norm = direction.flatten(1).norm(dim=1)
            norms.append(norm)
            if self.clip_threshold is not None:
                # Where the norm is 0 the direction is 0 too, and stays.
                shrink = (self.clip_threshold / norm.clamp_min(1e-30)).clamp(max=1)
                direction = direction * per_row(shrink, n)
            n = n - self.step_size * direction
            if self.noise_variance > 0:
                fresh = normals(generators, tuple(n.shape[1:])).to(n.device) if extra is None else extra
                n = n + math.sqrt(self.noise_variance) * fresh
            if self.boundary:
                n = n.clamp(-BOUND, BOUND)
            if self.normalise:
                length = per_row(n.flatten(1).norm(dim=1), n)
                n = n * (math.sqrt(n[0].numel()) / length)
        return Refined(n, _records(norms, len(n)))

    def _direction(self, ctx: NoiseContext, x: Tensor, first: Step) -> Tensor:
        given = evaluate(ctx.model, x, first, ctx.conditioning, self.pair)
        strong, weak = (ctx.model.to_epsilon(given[request], x, first.timestep) for request in self.pair)
        misread = [self.published_seeding and key.first for key in ctx.keys]
        if any(misread):
            rows = per_row(torch.tensor(misread, device=x.device), x)
            strong, weak = (
                torch.where(rows, ctx.model.to_epsilon(given[request], x, 0.0), right)
                for request, right in zip(self.pair, (strong, weak), strict=True)
            )
        if self.formula:
            return self.gamma * strong + (1 - self.gamma) * weak
        return strong - weak

    def _repeated(self, keys: Sequence[RowKey], noise: Tensor) -> Tensor | None:
        """The published variant's one draw of every row, `[B, C, H, W]`; None where each step draws afresh."""
        if self.variant == "described" or self.noise_variance == 0:
            return None
        return torch.cat([_repeated_draw(key, tuple(noise.shape[1:])) for key in keys]).to(noise.device)


def _repeated_draw(key: RowKey, shape: tuple[int, ...]) -> Tensor:
    """One row, float32 `[1, *shape]`: the row's own, or under `seeding: published` that of its place in a batch."""
    if key.place is None:
        return normals([key.generator("nlg")], shape)
    # The script seeds NumPy's global generator once and restores its state after every draw of a whole batch.
    batch = np.random.RandomState(key.seed % 2**32).randn(key.place + 1, *shape)
    return torch.from_numpy(batch[-1:]).float()


def _request(name: str, value: str) -> Request:
    kind, _, network = value.partition(":")
    if value in ("cond", "uncond"):
        return Request(value)
    if kind == "network" and network not in ("", "main"):  # "main" is the model itself: cond
        return Request("network", network=network)
    raise ValueError(f"{name} must be cond, uncond or network:NAME, got {value!r}")


def _records(norms: list[Tensor], rows: int) -> list[dict[str, Any]]:
    if not norms:
        return [{"norms": []} for _ in range(rows)]
    return [{"norms": row} for row in torch.stack(norms, dim=1).tolist()]
