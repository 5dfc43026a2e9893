"""CLIP-S: the likeness of two images, as the cosine of their CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness import artifacts
from harness.metrics import clip, openclip
from harness.metrics.base import PairedMetric


@dataclass(frozen=True)
class CLIPSimilarity(PairedMetric):
    """The cosine itself, -1 to 1 (the same image), higher is better.

    Papers on novel views report it as CLIP-S and mostly do not say with which CLIP: a number goes with its `weights`,
    a CLIP in the layout of open_clip or of transformers.
    """

    name: ClassVar[str] = "clip-s"
    version: ClassVar[int] = 1

    weights: str = "clip-b-32"

    def artifacts(self) -> dict[str, str]:
        """The CLIP."""
        return {"weights": self.weights}

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        folder = artifacts.find(self.weights)
        layout = openclip if (folder / openclip.CONFIG).is_file() else clip
        object.__setattr__(self, "_clip", layout.opened(folder, device))

    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The cosine of each pair, in float64."""
        embedded = [self.loaded("_clip").images(side) for side in (images, references)]
        return np.asarray(clip.cosine(*embedded).cpu().numpy())
