"""CMMD (Jayasumana et al. 2024, arXiv:2401.09603): MMD on image embeddings of OpenAI's CLIP ViT-L/14 for 336 pixels.

The authors' code (google-research, `cmmd`) runs the network in JAX; the weights are those that open_clip publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional

from harness import artifacts
from harness.metrics import openclip
from harness.metrics.clip import stills
from harness.metrics.clip_pixels import bicubic, normalised, unit
from harness.metrics.distances import GaussianMMD
from harness.metrics.feature_metric import FeatureMetric


def central_square(images: np.ndarray, side: int) -> Tensor:
    """uint8 `[N, H, W, 3]` to `[N, 3, side, side]` in [0, 1]: the central square, then bicubic by Pillow in 8 bits.

    The margins above and on the left are the smaller ones where they cannot be equal.
    """
    height, width = images.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    squares = images[:, top : top + edge, left : left + edge]
    return unit(bicubic(squares, side, side))


@dataclass(frozen=True)
class CMMD(GaussianMMD, FeatureMetric):
    """1000 times the squared MMD of embeddings of length 1, kernel Gaussian with σ = 10, the diagonals included."""

    name: ClassVar[str] = "cmmd"
    only_stills: ClassVar[bool] = True
    extractor: ClassVar[str] = "clip-l-14-336"
    preprocessing: ClassVar[str] = "clip-336"
    needs_features: ClassVar[bool] = True

    weights: str = "clip-l-14-336"

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        object.__setattr__(self, "_clip", openclip.opened(artifacts.find(self.weights), device))

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[B, 1, H, W, 3]` to embeddings of length 1, float32 `[B, D]`, D = 768 of ViT-L."""
        clip: openclip.OpenClip = self.loaded("_clip")
        embedded = clip.images(stills(images, self.name), lambda x: normalised(central_square(x, clip.size)))
        return np.asarray(functional.normalize(embedded).cpu().numpy(), np.float32)
