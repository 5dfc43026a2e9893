"""What EDM2's networks make, turned into images: latents of a Stable Diffusion autoencoder, or RGB pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from harness import flops
from harness.diffusion import folders
from harness.quiet import quiet

DECODED_TOGETHER = 8  # latents, whatever the micro-batch
LATENT_STD = 0.5  # of the latents that networks see, a channel


class Images(Protocol):
    """A way from latents to pixels."""

    factor: int  # pixels a latent, along a side

    def unit(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], float32 `[B, 3, H, W]`, with gradients."""
        ...

    def bytes(self, latents: Tensor) -> Tensor:
        """Images, uint8 `[B, 3, H, W]`."""
        ...

    def flops(self, shape: tuple[int, ...], gradient: bool) -> float:
        """Floating-point operations of one row of `shape`, or of the way back."""
        ...


class Pixels:
    """RGB in [-1, 1]."""

    factor = 1

    def unit(self, latents: Tensor) -> Tensor:
        """Half of it and a half."""
        return (latents.float() * 0.5 + 0.5).clamp(0, 1)

    def bytes(self, latents: Tensor) -> Tensor:
        """127.5 x + 128 without its fraction: to the nearest grey level."""
        return (latents.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def flops(self, shape: tuple[int, ...], gradient: bool) -> float:
        """No network is at work."""
        return 0.0


class Autoencoded:
    """Latents of an autoencoder, each channel scaled to mean 0 and a standard deviation of 0.5, all in float32.

    EDM2 gives images in [0, 1] to Stability's autoencoder, which was made for [-1, 1], and takes what it decodes for
    such images; so is it here. `AutoencoderTiny` maps to [-1, 1] itself, whatever it is given, and is mapped back.
    """

    def __init__(self, folder: Path, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        config = folders.config(folder.parent, folder.name)
        with quiet():
            vae = folders.open_network(folders.AUTOENCODERS[config["_class_name"]], folder, torch_dtype=torch.float32)
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.factor = folders.factor(config)
        scale = np.float32(LATENT_STD) / np.asarray(std, dtype=np.float32)
        self.scale = torch.from_numpy(scale).to(device).view(1, -1, 1, 1)
        self.bias = torch.from_numpy(-np.asarray(mean, dtype=np.float32) * scale).to(device).view(1, -1, 1, 1)

    def unit(self, latents: Tensor) -> Tensor:
        """Decoded a few at a time."""
        raw = (latents.float() - self.bias) / self.scale
        images = torch.cat([_decode(self.vae, rows) for rows in raw.split(DECODED_TOGETHER)])
        return (images * 0.5 + 0.5 if isinstance(self.vae, AutoencoderTiny) else images).clamp(0, 1)

    def bytes(self, latents: Tensor) -> Tensor:
        """255 times it without its fraction, as EDM2's code writes its images."""
        return self.unit(latents).mul(255).to(torch.uint8)

    def flops(self, shape: tuple[int, ...], gradient: bool) -> float:
        """Counted on shapes alone (`harness.flops`)."""
        with torch.device("meta"), quiet():
            vae = type(self.vae).from_config(self.vae.config).eval().requires_grad_(False)
            latents = torch.empty(1, *shape)
            if gradient:
                return flops.of_backward(lambda x: _decode(vae, x), latents)
            return flops.of_forward(lambda: _decode(vae, latents))


def _decode(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]
