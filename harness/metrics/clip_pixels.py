"""What CLIPs are shown: the shorter side resized, the centre cut out, the channels normalised.

Exactly as published (8-bit, by Pillow), and the same steps on tensors, with gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, for pixels in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)

# Where the margins of a centre crop cannot be equal: "even" takes the even one of both offsets, as torchvision's
# `CenterCrop` does (so OpenAI's code and open_clip's), "floor" the smaller, as the processors of transformers do.
Odd = Literal["even", "floor"]


def shortest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """Height and width after a resize of the shorter side to `edge`; the longer is cut off towards zero."""
    long = int(edge * max(height, width) / min(height, width))
    return (edge, long) if height <= width else (long, edge)


def centre(height: int, width: int, crop: tuple[int, int], odd: Odd) -> tuple[int, int]:
    """Top and left of a centre crop. Raises ValueError where the image is smaller than the crop."""
    margins = height - crop[0], width - crop[1]
    if min(margins) < 0:
        raise ValueError(f"images of {(height, width)} pixels are smaller than the crop {crop}")
    top, left = (round(margin / 2) if odd == "even" else margin // 2 for margin in margins)
    return top, left


def normalised(x: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """`[N, 3, H, W]` in [0, 1] less the mean, over the standard deviation, by channel."""
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def resized(x: Tensor, target: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Float `[N, 3, H, W]` resized with antialias: along the rows, then the columns, as Pillow does, and as there cut
    off at 0 and 1 after either (a cubic overshoots)."""
    for size in ((x.shape[-2], target[1]), target):
        if size != tuple(x.shape[-2:]):
            x = functional.interpolate(x, size, mode=mode, antialias=mode != "nearest").clamp(0, 1)
    return x


def bicubic(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[N, H, W, 3]` to `[N, height, width, 3]`, by Pillow."""
    return np.stack([
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in images
    ])


def unit(images: np.ndarray) -> Tensor:
    """uint8 `[N, H, W, 3]` to float `[N, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def fitted(images: np.ndarray, edge: int, odd: Odd) -> Tensor:
    """uint8 `[N, H, W, 3]` to `[N, 3, edge, edge]` in [0, 1]: bicubic by Pillow, in 8 bits, then the centre."""
    height, width = shortest_edge(images.shape[1], images.shape[2], edge)
    top, left = centre(height, width, (edge, edge), odd)
    return unit(bicubic(images, height, width)[:, top : top + edge, left : left + edge])


def fitted_tensor(images: Tensor, edge: int, odd: Odd) -> Tensor:
    """Float `[N, H, W, 3]` in [0, 1] to `[N, 3, edge, edge]`: `fitted` without its rounding to 8 bits.

    Equal to `fitted` where no resize is needed, otherwise within one grey level of it; but for images more than twice
    as tall as wide, for which Pillow 13 turns to the columns first.
    """
    x = images.permute(0, 3, 1, 2)
    x = resized(x, shortest_edge(x.shape[-2], x.shape[-1], edge))
    top, left = centre(x.shape[-2], x.shape[-1], (edge, edge), odd)
    return x[..., top : top + edge, left : left + edge]
