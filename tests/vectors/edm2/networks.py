"""The random networks that the vectors were made with: any network's tensors from a seed, whoever wrote its code."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.diffusion.edm2_network import CLASS, WEIGHTS, EDM2Config, EDM2Network

MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)  # EDM2's, of the raw latents of Stability's autoencoder
CONFIGS = {
    "cond": EDM2Config(8, 4, 5, 32, (1, 2), blocks=1, attention=(8, 4), head_width=16, uncertainty_width=8),
    "guide": EDM2Config(8, 4, 0, 16, (1, 2), blocks=1, attention=(4,), head_width=16, uncertainty_width=8),
    "deep": EDM2Config(16, 3, 3, 16, (1, 2, 3), blocks=2, attention=(8, 4), head_width=8, uncertainty_width=8),
}
CONFIGS["cond-weak"] = CONFIGS["cond"]
SEEDS = {"cond": 1, "guide": 2, "deep": 3, "cond-weak": 4}


def fill(network: nn.Module, seed: int) -> None:
    """Draws every tensor of the state dict in the order of names (without a leading `unet.`) from one generator.

    Weights are standard normal, gains 0.8 + 0.1 n, frequencies and phases 2 pi n.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name.removeprefix("unet."): tensor for name, tensor in network.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("gain"):
                drawn = 0.8 + 0.1 * drawn
            elif name.endswith(("freqs", "phases")):
                drawn = 2 * math.pi * drawn
            tensor.copy_(drawn)


def network(name: str) -> EDM2Network:
    """One of `CONFIGS`, filled."""
    made = EDM2Network(CONFIGS[name])
    fill(made, SEEDS[name])
    return made


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """x `[4, C, S, S]` at the noise levels sigma `[4]`, and labels one-hot (a row of zeros where there is none)."""
    config = CONFIGS[name]
    sigma = torch.tensor([0.002, 0.4, 5.0, 80.0])
    side = config.resolution
    noise = torch.randn(4, config.channels, side, side, generator=torch.Generator().manual_seed(9))
    labels = torch.zeros(4, config.classes)
    for row in range(3 * bool(config.classes)):
        labels[row, row % config.classes] = 1
    return noise * (sigma**2 + 0.25).sqrt().view(4, 1, 1, 1), sigma, labels


def write(folder: Path, name: str, vae: str | None = None, half: bool = False) -> Path:
    """A folder of one of `CONFIGS`, as `harness.diffusion.edm2_folder` describes it."""
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {} if vae is None else {"latent_mean": MEAN, "latent_std": STD}
    config = {"_class_name": CLASS, **asdict(CONFIGS[name]), "vae": vae, **statistics, "trained": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = network(name).state_dict()
    save_file({key: value.half() if half else value for key, value in tensors.items()}, folder / WEIGHTS)
    return folder
