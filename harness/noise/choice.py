"""Choosing among candidate noises, one by one, so that the batch keeps its shape and only the best is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


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
            mask = torch.from_numpy(better).to(noise.device).view(-1, 1, 1, 1)
            self.noise = torch.where(mask, noise, self.noise)
            self.latents = torch.where(mask, latents, self.latents)
        self.scores.append(scores)

    def records(self) -> list[dict[str, Any]]:
        """A record a row: every candidate's score (None for NaN) and the place of the chosen one."""
        return [
            {"chosen": int(chosen), "scores": [None if np.isnan(s) else float(s) for s in row]}
            for chosen, row in zip(self.chosen, np.stack(self.scores, axis=1), strict=True)
        ]
