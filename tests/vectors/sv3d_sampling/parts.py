"""What both sides of the vectors are given: a network with a formula for weights, noises, conditions, pictures."""

from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from harness.identity import seed64

FRAMES, CLIPS = 5, 2
LATENT = (4, 4, 4)  # of a frame
WIDTH = 6  # of an embedding


class Formula(nn.Module):
    """Called as the library's spatio-temporal UNet; sees neighbouring frames, picture, embedding and noise level."""

    dtype = torch.float32

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, added_time_ids: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        noisy, picture = sample.chunk(2, dim=2)
        told = encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        level = torch.as_tensor(timestep, dtype=sample.dtype).reshape(-1, 1, 1, 1, 1)
        mixed = 0.7 * noisy + 0.2 * noisy.roll(1, dims=1) * picture - 0.5 * picture + told + 0.1 * level
        return (torch.tanh(mixed + 0.1 * mixed.flip(-1)),)


def tensors() -> dict[str, Tensor]:
    """Noise `[B, F, C, H, W]`, the picture's latent `[B, C, H, W]` and the embedding `[B, 1, D]`."""
    g = torch.Generator().manual_seed(11)
    return {
        "noise": torch.randn((CLIPS, FRAMES, *LATENT), generator=g),
        "picture": torch.randn((CLIPS, *LATENT), generator=g),
        "embedding": torch.randn((CLIPS, 1, WIDTH), generator=g),
    }


def drawn() -> dict[str, Image.Image]:
    """Pictures with transparency: an object off the middle, one as high as the picture, one that fades."""
    found = {}
    for name, box in {"corner": (3, 8, 25, 41), "high": (20, 0, 47, 63), "odd": (31, 17, 52, 60)}.items():
        picture = Image.new("RGBA", (64, 64), (10, 200, 30, 0))
        ImageDraw.Draw(picture).ellipse(box, fill=(200, 40, 90, 255), outline=(20, 20, 250, 120))
        found[name] = picture
    fading = Image.linear_gradient("L").resize((64, 64)).point(lambda level: max(0, level - 60))
    fractal = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50)
    found["fading"] = Image.merge("RGBA", (fractal, fractal.rotate(90), fractal.rotate(180), fading))
    return found


def waves(size: int) -> Tensor:
    """A picture `[1, 3, size, size]` in [-1, 1]."""
    place = torch.linspace(0, 9, size)
    rows = [torch.sin(place[:, None] * (k + 1)) * torch.cos(place[None, :] * (3 - k) + k) for k in range(3)]
    return torch.stack(rows)[None]


WHOLE = {"steps": 8, "shape": "triangle", "scale": 2.5}
WHOLE_SHAPE = (3, 4, 8, 8)  # of one clip's latents


def small_picture() -> Image.Image:
    """A picture of 16 x 16 pixels without transparency."""
    levels = ((waves(16)[0].permute(1, 2, 0) * 0.5 + 0.5) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.numpy())


def picture_noise() -> Tensor:
    """What is added to it at a strength of 1e-5, as the prompt "whole" draws it."""
    generator = torch.Generator().manual_seed(seed64("cond_aug/whole"))
    return torch.randn((3, 16, 16), generator=generator)


def whole_noise() -> Tensor:
    """The noise `[1, F, C, H, W]` of a clip of the tiny weights."""
    return torch.randn((1, *WHOLE_SHAPE), generator=torch.Generator().manual_seed(5))


def settings() -> dict[str, dict[str, Any]]:
    """The sampled cases: steps and guidance."""
    return {
        "triangle": {"steps": 50, "shape": "triangle", "scale": 2.5},
        "linear": {"steps": 12, "shape": "linear", "scale": 4.0},
        "constant": {"steps": 12, "shape": None, "scale": 3.0},
    }
