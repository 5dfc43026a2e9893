"""CLIP-S: the likeness of two images, as the cosine of their CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics import clip
from harness.metrics.base import PairedMetric


@dataclass(frozen=True)
class CLIPSimilarity(PairedMetric):
    """The cosine itself, -1 to 1 (the same image), higher is better.

    Papers on novel views report it as CLIP-S and mostly do not say with which CLIP: a number goes with its `weights`.
    """

    name: ClassVar[str] = "clip-s"
    version: ClassVar[int] = 1

    weights: str = "clip-b-32"

    def artifacts(self) -> dict[str, str]:
        """The CLIP."""
        return {"weights": self.weights}

    def missing(self) -> str | None:
        """What keeps the weights from being opened."""
        try:
            self._folder()
        except HarnessError as error:
            return str(error)
        return None

    def content(self) -> dict[str, Any]:
        """The hash of the weights, and the preprocessing."""
        return super().content() | {"preprocessing": clip.preprocessing(self._folder())}

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        object.__setattr__(self, "_clip", clip.opened(self._folder(), device))

    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The cosine of each pair, in float64."""
        if not hasattr(self, "_clip"):
            raise HarnessError("clip-s is not open: call open(device) first, or use load_metric")
        embedded = [self._clip.images(side) for side in (images, references)]
        return np.asarray(clip.cosine(*embedded).cpu().numpy())

    def _folder(self) -> Path:
        return clip.locate(str(artifacts.find(self.weights)))
