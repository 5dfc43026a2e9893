"""The picture as Stable Video Diffusion and SV3D show it to their CLIP."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from harness.metrics.clip_pixels import normalised


def clip_pixels(images: Tensor, side: int = 224) -> Tensor:
    """Float `[B, 3, H, W]` in [0, 1] to the normalised `[B, 3, side, side]` that the vision tower takes.

    Nothing is cut off: both sides are resized to `side`, first smoothed where they shrink (a Gaussian of standard
    deviation (factor - 1) / 2), then bicubic with aligned corners, not clamped.
    As `FrozenOpenCLIPImageEmbedder.preprocess` of Stability-AI's generative-models does, by kornia's `resize` with
    antialias. Differentiable.
    """
    factors = [length / side for length in images.shape[-2:]]
    if max(factors) > 1:
        sigmas = [max((factor - 1) / 2, 0.001) for factor in factors]
        kernels = [int(max(4 * sigma, 3)) // 2 * 2 + 1 for sigma in sigmas]  # odd
        images = gaussian_blur(images, kernels[::-1], sigmas[::-1])  # torchvision's order is x, y
    return normalised(functional.interpolate(images, (side, side), mode="bicubic", align_corners=True))
