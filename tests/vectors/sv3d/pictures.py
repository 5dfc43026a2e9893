"""The pictures that kornia and ours were shown: by (height, width, side of the result)."""

import torch
from torch import Tensor

# The real size and a wide one; both larger, the sides one larger and one smaller, both smaller, equal.
PICTURES = ((576, 576, 224), (40, 33, 14), (30, 9, 14), (7, 200, 14), (9, 11, 14), (14, 14, 14))


def picture(height: int, width: int) -> Tensor:
    """float32 `[2, 3, height, width]`, uniform in [0, 1)."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1000 * height + width))


def kept(pixels: Tensor) -> Tensor:
    """What of a result is kept: every 16th pixel of a large one."""
    return pixels[..., ::16, ::16].contiguous() if pixels.shape[-1] > 100 else pixels.contiguous()
