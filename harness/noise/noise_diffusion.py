"""Noise Diffusion: part of the noise is replaced, round by round, by the candidate that a judge's gradient favours.

Source: Miao et al., "Noise Diffusion for Enhancing Semantic Faithfulness in Text-to-Image Synthesis", CVPR 2025,
arXiv 2411.16503; the authors' run.py at commit 681f9b8, and their pipelines at 4f957f2 where `variant: published`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.noise.base import NoiseContext, Refined, per_row
from harness.noise.choice import Best, numbers, positive

CHUNK = 16  # candidates compared at once


@dataclass(frozen=True)
class NoiseDiffusion:
    """`rounds` times: n <- sqrt(1 - gamma) * n + sqrt(gamma) * c, c the best of fresh Gaussian candidates.

    gamma = 1 - sqrt(s), s the judge's value of the present image on a scale from 0 to 1, so a poor image is
    nearly redrawn and a perfect one kept. Of the candidates, the one is taken whose displacement v of n has the
    largest <v, g> / |v|^2, g the gradient of the judge's value. What is handed on is the best round's noise with
    its latents. Costs (1 + M) * T * g evaluations in all, and M gradient passes through decoder and judge; none
    goes through the denoiser.

    The authors take g with respect to n by repeating the sampling with the predictions held fixed. Where these are
    of epsilon or v, the clean latent is then a positive number times n plus a constant, so g here is the gradient
    with respect to the clean latent: a positive factor changes no choice. For a network that predicts x0, hold the
    epsilon that it implies.

    Attributes:
        rounds: M; 0 samples the row's own noise.
        candidates: N, drawn anew in each round.
        low: the judge's value that counts as the worst, s = 0 (s = 1 for a judge where lower is better).
        high: the judge's value that counts as the best, s = 1 (likewise s = 0). Values beyond are taken as the
            ends, for gamma alone: the gradient and the best round follow the judge's own value. The defaults
            suit a probability, as the authors' VQAScore is. A cosine from -1 to 1, as CLIPScore is, counts as 0
            below 0 with them, and one of 0.3 makes gamma 0.45: give the ends of what good and bad images get.
        variant: `described` shows the judge images in [0, 1]. `published` shows them in [-1, 1], as the authors'
            later pipelines do by an oversight; s is then the value of such images.
    """

    # Of the pipelines, `published` does not emulate: pixels that the decoder makes beyond [-1, 1] (they are cut
    # off, as in their older script), and the candidates, which they draw from the process's unseeded generator.

    rounds: int = 50
    candidates: int = 50
    low: float = 0.0
    high: float = 1.0
    variant: Literal["described", "published"] = "described"

    version = 1
    needs_judge = True
    needs_gradient = True

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be 0 or more, got {self.rounds}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, both finite, got {self.low} and {self.high}")
        positive(candidates=self.candidates)

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Refines every row; records what happened in each round.

        `scores` holds the judge's value of the first image and of every round's, `chosen` the place of the best
        among them, `gammas` every round's gamma, `candidates` the candidate taken. A row without a score or with
        a gradient that is not finite keeps its noise for that round (both None), and one with gamma = 0 does
        (candidate None).
        """
        judge = ctx.required_judge
        best = Best(highest=judge.higher_is_better)
        noise = ctx.noise
        gammas: list[np.ndarray] = []
        taken: list[np.ndarray] = []
        for index in range(self.rounds + 1):
            latents = ctx.sample(noise)
            scores, uphill = self._judged(ctx, latents, gradient=index < self.rounds)
            best.offer(noise, latents, scores)
            if index == self.rounds:
                break
            finite = uphill.flatten(1).isfinite().all(dim=1).cpu().numpy()
            gamma = np.where(finite, self.gamma(scores, judge.higher_is_better), np.nan)
            noise, candidate = choose(ctx, noise, uphill, gamma, index, self.candidates)
            gammas.append(gamma)
            taken.append(candidate)
        return Refined(best.noise, self._records(best, gammas, taken), best.latents)

    def gamma(self, values: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
        """The share of the variance of each row's noise to replace, 1 - sqrt(s), float64 `[B]`; NaN for NaN."""
        s = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        return np.asarray(1 - np.sqrt(s if higher_is_better else 1 - s))

    def _judged(self, ctx: NoiseContext, latents: Tensor, gradient: bool) -> tuple[np.ndarray, Tensor]:
        """The judge's values, float64 `[B]`, and the direction in which the latents get better, `[B, C, H, W]`."""
        with torch.set_grad_enabled(gradient):
            clean = latents.detach().requires_grad_(gradient)
            images = ctx.model.decode_differentiable(clean).float()  # a judge answers in its images' dtype
            if self.variant == "published":
                images = images * 2 - 1
            values = ctx.rate(images)
            scores = values.detach().double().cpu().numpy()
            if not gradient:
                return scores, torch.zeros_like(latents)
            (uphill,) = torch.autograd.grad(values.sum(), clean)
        if ctx.model.counter is not None:
            ctx.model.counter.add_gradient(ctx.conditioning.rows)
        return scores, uphill if ctx.required_judge.higher_is_better else -uphill

    def _records(self, best: Best, gammas: list[np.ndarray], taken: list[np.ndarray]) -> list[dict[str, Any]]:
        records = best.records()
        for row, record in enumerate(records):
            record["gammas"] = numbers(gamma[row] for gamma in gammas)
            record["candidates"] = [None if k[row] < 0 else int(k[row]) for k in taken]
        return records


def choose(
    ctx: NoiseContext, noise: Tensor, uphill: Tensor, gamma: np.ndarray, index: int, count: int
) -> tuple[Tensor, np.ndarray]:
    """The noise after one round, and which candidate each row took (int64 `[B]`; -1 where it kept its noise).

    `uphill` is the judge's gradient, `gamma` float64 `[B]` the share to replace. Candidate k of round `index`
    comes from the row's generator `candidate-<index>`, number k. The first of equal candidates is taken.
    """
    rows, kept = len(noise), ~(gamma > 0)  # NaN included
    share = per_row(torch.from_numpy(np.where(kept, 0.0, gamma)).to(noise.device), noise)
    z, g = noise.double(), uphill.double()
    best = torch.full((rows,), -math.inf, dtype=torch.float64, device=noise.device)
    taken = torch.zeros(rows, dtype=torch.int64, device=noise.device)
    draw = torch.zeros_like(noise)
    for first in range(0, count, CHUNK):
        numbered = range(first, min(first + CHUNK, count))
        fresh = torch.stack([ctx.draw(f"candidate-{index}", k) for k in numbered], dim=1)  # [B, K, C, H, W]
        v = ((1 - share).sqrt() - 1) * z
        moved = v.unsqueeze(1) + share.sqrt().unsqueeze(1) * fresh.double()
        gain = (moved * g.unsqueeze(1)).flatten(2).sum(2) / moved.flatten(2).square().sum(2)
        value, place = gain.max(dim=1)
        better = value > best
        best = torch.where(better, value, best)
        taken = torch.where(better, first + place, taken)
        draw = torch.where(per_row(better, noise), fresh[torch.arange(rows, device=noise.device), place], draw)
    after = ((1 - share).sqrt() * z + share.sqrt() * draw.double()).to(noise.dtype)
    still = torch.from_numpy(kept).to(noise.device)
    after = torch.where(per_row(still, noise), noise, after)
    return after, torch.where(still, -1, taken).cpu().numpy()
