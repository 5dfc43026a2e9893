"""Stage 1, the autoencoder: ``AutoencoderTiny``, 64x64 pixels to 4 channels of 16x16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from harness.shapes.data import load_world
from harness.shapes.loop import Draws, Stage

WIDTH = 24
CROP = 24


def make_autoencoder(width: int = WIDTH) -> AutoencoderTiny:
    """A fresh autoencoder with factor 4."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
        latent_magnitude=3,
        latent_shift=0.5,
    )


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class AutoencoderStage(Stage):
    """L1 + 4 MSE on crops, noisy latents, and a pull of the latents to mean 0, variance 1, no correlation."""

    name = "autoencoder"
    lr = 2e-3
    decay = 0.6
    ema = 0.99

    model: Any

    def __init__(
        self, data: str, scenes: int, rank: int = 0, device: str = "cpu", batch: int = 20, init: str | None = None
    ) -> None:
        self.world, self.batch, self.device = load_world(data, scenes, 1), batch, device
        self.model = AutoencoderTiny.from_pretrained(init).float() if init else make_autoencoder()

    def samples(self) -> int:
        """Crops of one step on one rank."""
        return self.batch

    def crops(self, draws: Draws) -> Tensor:
        """Crops of CROP x CROP pixels, each around a random object: plain background teaches nothing."""
        index = draws.numpy.integers(len(self.world), size=self.batch)
        things = self.world.scenes[index, :-1].reshape(-1, 4, 5)
        pick = (draws.numpy.random(self.batch) * (things[..., 0] < 6).sum(1)).astype(int)
        centre = things[np.arange(self.batch), pick, 2:4] + draws.numpy.uniform(-10, 10, (self.batch, 2))
        corner = (centre - CROP / 2).round().astype(int).clip(0, 64 - CROP)
        images = self.world.image(index)
        return to_pixels(np.stack([im[y : y + CROP, x : x + CROP] for im, (x, y) in zip(images, corner, strict=True)]))

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """See the class."""
        x = self.crops(draws).to(self.device)
        z = self.model.encode(x).latents
        noise = torch.randn(z.shape, generator=draws.torch).to(z)
        level = torch.rand(len(z), 1, 1, 1, generator=draws.torch).to(z) * 0.12
        y = self.model.decode(z + noise * level).sample
        mse = (y - x).square().mean()
        flat = z.transpose(0, 1).reshape(4, -1)
        mean = flat.mean(1)
        cov = (flat - mean[:, None]) @ (flat - mean[:, None]).T / flat.shape[1]
        moments = mean.square().mean() + (cov - torch.eye(4, device=z.device)).square().mean()
        loss = (y - x).abs().mean() + 4 * mse + 0.02 * moments
        psnr = -10 * float(torch.log10(mse.detach() / 4))
        return loss, {"psnr": psnr, "moments": float(moments.detach())}

    @torch.no_grad()
    def export(self, out: Path) -> dict[str, Any]:
        """Set the scaling factor to unit variance over 512 scenes and save as ``out/vae``."""
        x = to_pixels(self.world.image(np.arange(min(512, len(self.world)))))
        z = torch.cat([self.model.encode(part.to(self.device)).latents for part in x.split(64)])
        y = torch.cat([self.model.decode(part).sample for part in z.split(64)]).clamp(-1, 1)
        self.model.register_to_config(scaling_factor=round(float(1 / z.std()), 4))
        self.model.half().save_pretrained(out / "vae")
        config = json.loads((out / "vae" / "config.json").read_text())
        config.pop("block_out_channels", None)  # the class writes it, and then warns of it when it loads
        (out / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self.model.float()
        mse = (y.cpu() - x).square().mean()
        return {"psnr": -10 * float(torch.log10(mse / 4)), "scaling_factor": self.model.config.scaling_factor}
