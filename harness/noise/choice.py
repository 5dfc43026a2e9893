"""Choosing among candidate noises: sampled a few at a time, offered one by one, and only the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.noise.base import NoiseContext, per_row


class Best:
    """Keeps, row by row, the candidate with the highest (or lowest) score; the first of equals.

    A score that is NaN never wins; where all are, candidate 0 stays.
    """

    def __init__(self, highest: bool = True) -> None:
        self.sign = 1.0 if highest else -1.0
        self.scores: list[np.ndarray] = []
        self.noise: Tensor
        self.latents: Tensor

    def offer(self, noise: Tensor, latents: Tensor, scores: np.ndarray) -> None:
        """One more candidate for every row: noise and latents `[B, C, H, W]`, scores float64 `[B]`."""
        value = np.where(np.isnan(scores), -np.inf, self.sign * scores)
        if not self.scores:
            self.noise, self.latents, self.best = noise, latents, value
            self.chosen = np.zeros(len(scores), dtype=np.int64)
        else:
            better = value > self.best
            self.best = np.where(better, value, self.best)
            self.chosen = np.where(better, len(self.scores), self.chosen)
            mask = per_row(torch.from_numpy(better).to(noise.device), noise)
            self.noise = torch.where(mask, noise, self.noise)
            self.latents = torch.where(mask, latents, self.latents)
        self.scores.append(scores)

    def records(self) -> list[dict[str, Any]]:
        """A record a row: every candidate's score (None for NaN) and the place of the chosen one."""
        return [
            {"chosen": int(chosen), "scores": numbers(row)}
            for chosen, row in zip(self.chosen, np.stack(self.scores, axis=1), strict=True)
        ]


def try_all(
    ctx: NoiseContext, best: Best, noises: Iterable[Tensor], together: int,
    score: Callable[[Tensor, Tensor], np.ndarray],
) -> None:
    """Samples every candidate of `noises` (each `[B, C, H, W]`) and offers it to `best`, in order.

    `together` candidates make one batch of `together * B` rows; `score(noise, latents)` gives a float64 value
    a row of it. The choice does not depend on `together` but for the rounding of a larger batch.
    """
    noises, rows = iter(noises), len(ctx.noise)
    while group := list(islice(noises, together)):
        noise = torch.cat(group)
        latents = ctx.sample(noise)
        scores = score(noise, latents)
        for first in range(0, len(noise), rows):
            part = slice(first, first + rows)
            best.offer(noise[part], latents[part], scores[part])


def numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers for a record: NaN, which JSON does not have, as None."""
    return [None if math.isnan(value) else float(value) for value in values]


def positive(**counts: int) -> None:
    """Raises ValueError for a count below 1, by its parameter's name."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
