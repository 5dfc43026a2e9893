"""What the official parts and ours are given: two clips of three frames, float32."""

import torch
from torch import Tensor

from harness.identity import seed64

CLIPS, FRAMES = 2, 3
SIDE = 8  # of the latents
STATES = 48  # width of the CLIP's output


def _drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed64(f"sv3d-inputs/{name}")))


def unet_sample() -> Tensor:
    """`[clips, frames, 8, side, side]`: noisy latents and those of the picture."""
    return _drawn("sample", CLIPS, FRAMES, 8, SIDE, SIDE)


def timesteps() -> Tensor:
    """`[clips]`: ln(sigma) / 4, as SV3D conditions on noise, for sigma 20 and 0.1."""
    return torch.tensor([20.0, 0.1]).log() / 4


def context() -> Tensor:
    """`[clips, 1, states]`: another picture each clip."""
    return _drawn("context", CLIPS, 1, STATES)


def augmentation() -> Tensor:
    """`[clips]`: the strength of the noise on the picture; 1e-5 is SV3D's."""
    return torch.tensor([1e-5, 0.3])


def picture() -> Tensor:
    """`[1, 3, 40, 32]` in [-1, 1]."""
    return _drawn("picture", 1, 3, 40, 32).clamp(-2, 2) / 2


def latents() -> Tensor:
    """`[clips, frames, 4, side, side]`."""
    return _drawn("latents", CLIPS, FRAMES, 4, SIDE, SIDE)
