"""HPSv2 and HPSv2.1: a CLIP ViT-H/14 that was fine-tuned on choices between images (Wu et al., arXiv 2306.09341)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness import artifacts
from harness.metrics import openclip
from harness.metrics.clip_pixels import normalised
from harness.metrics.embedding_scorer import EmbeddingScorer
from harness.prompts import Prompt

HEAD_WIDTH = 80  # of the vision transformer of ViT-H/14


@dataclass(frozen=True)
class HPSv2(EmbeddingScorer):
    """100 times the cosine of image and prompt, higher is better; about 20 to 30 for trained weights.

    The scale of the benchmark's tables (`evaluate` of github.com/tgxs002/HPSv2); `score` there gives the cosine
    itself, which is in the detail. Values of HPSv2 and HPSv2.1 cannot be compared. In float32, where the official
    code on a GPU computes the cosine in float16.

    Preprocessing: the longer side is resized to the network's (224) by bicubic interpolation of the float pixels,
    the shorter padded with black to a square. `antialias` belongs to that resize: the official code leaves it to
    torchvision, which did without when that code was written and antialiases today.
    """

    name: ClassVar[str] = "hpsv2"

    weights: str = "hpsv2"
    antialias: bool = True

    def artifacts(self) -> dict[str, str]:
        """The checkpoint, a `.pt` file."""
        return {"weights": self.weights}

    def load(self, device: str) -> openclip.OpenClip:
        """The CLIP, of this checkpoint's sizes."""
        return openclip.opened(artifacts.file_of(self.weights, ".pt"), device, HEAD_WIDTH)

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[B, H, W, 3]` as the network's input; one by one, as large images in float32 fill the memory."""
        return torch.cat([self._input(torch.from_numpy(image)[None].float() / 255) for image in images])

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[B, H, W, 3]` in [0, 1] as the network's input: the very same steps as for 8 bits."""
        return self._input(images.to(self.clip.device, torch.float32))

    def _input(self, images: Tensor) -> Tensor:
        return normalised(padded(images.permute(0, 3, 1, 2), self.clip.size, self.antialias))

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """100 · cos and cos."""
        cosine = self.cosines(embedded, prompts)
        return 100 * cosine, {"cosine": cosine}


@dataclass(frozen=True)
class HPSv21(HPSv2):
    """HPSv2 with the weights of version 2.1, trained on more and better choices."""

    name: ClassVar[str] = "hpsv2.1"

    weights: str = "hpsv2.1"


def padded(x: Tensor, size: int, antialias: bool) -> Tensor:
    """`[B, 3, H, W]` with its longer side resized to `size` and its shorter padded with 0 to it, the larger half
    below or to the right. A bicubic resize overshoots: values below 0 and above 1 stay, as they do officially.

    An image whose longer side is `size` already is padded, too; the official code does not, and fails on it.

    Raises:
        ValueError: the shorter side would be rounded to 0 pixels.
    """
    height, width = x.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        target = round(height * scale), round(width * scale)
        if min(target) < 1:
            raise ValueError(f"images of {height} x {width} pixels are too narrow for HPSv2: a side would vanish")
        x = functional.interpolate(x, target, mode="bicubic", align_corners=False, antialias=antialias)
    below, right = size - x.shape[-2], size - x.shape[-1]
    return functional.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
