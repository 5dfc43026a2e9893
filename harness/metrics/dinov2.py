"""FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675): the Fréchet distance on features of DINOv2 ViT-L/14.

The features are those of the authors' hub model, `dinov2_vitl14` at 224 pixels: the class token after the last norm.
transformers' model is the same but for one thing: it shrinks the 37 x 37 grid of position embeddings to 16 x 16 with
the exact ratio, the hub with (16 + 0.1) / 37. The hub's grid is computed here and put in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Model

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics.clip import must_fit, stills
from harness.metrics.clip_pixels import bicubic, normalised, unit
from harness.metrics.distances import Frechet
from harness.metrics.feature_metric import FeatureMetric
from harness.quiet import quiet

SIZE = 224  # pixels, of the network's input; images are squeezed to a square
OFFSET = 0.1  # of the hub's ratio
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
CHUNK = 32  # images a forward pass


def pillow_resize(images: np.ndarray) -> Tensor:
    """uint8 `[N, H, W, 3]` to `[N, 3, 224, 224]` in [0, 1]: bicubic by Pillow, in 8 bits, as dgm-eval does."""
    return unit(bicubic(images, SIZE, SIZE))


def torch_resize(images: np.ndarray) -> Tensor:
    """The same sizes: bicubic by torch with antialias, neither rounded nor cut off, as EDM2 does."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return functional.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True) / 255


@dataclass(frozen=True)
class FDDINOv2(Frechet, FeatureMetric):
    """With dgm-eval's preprocessing."""

    name: ClassVar[str] = "fd-dinov2"
    only_stills: ClassVar[bool] = True
    extractor: ClassVar[str] = "dinov2"
    preprocessing: ClassVar[str] = "dinov2-pil-224"
    resize = staticmethod(pillow_resize)

    weights: str = "dinov2-large"

    def open(self, device: str = "cpu") -> None:
        """Loads the network, or finds it loaded by another metric."""
        folder = artifacts.find(self.weights)
        object.__setattr__(self, "_network", _opened(folder, device, artifacts.content(self.weights)))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[B, 1, H, W, 3]` to float32 `[B, D]`, D = 1024 of ViT-L."""
        network = self.loaded("_network")
        shown = stills(images, self.name)
        found = [np.zeros((0, network.config.hidden_size), np.float32)]
        for first in range(0, len(shown), CHUNK):
            pixels = normalised(self.resize(shown[first : first + CHUNK]), MEAN, STD)
            found.append(network(pixel_values=pixels.to(network.device)).last_hidden_state[:, 0].cpu().numpy())
        return np.concatenate(found)


@dataclass(frozen=True)
class FDDINOv2EDM2(FDDINOv2):
    """With the preprocessing of EDM2's code, with which its published reference statistics were made."""

    name: ClassVar[str] = "fd-dinov2-edm2"
    extractor: ClassVar[str] = "dinov2-edm2"
    preprocessing: ClassVar[str] = "dinov2-torch-224"
    resize = staticmethod(torch_resize)


def hub_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings `[1, 1 + M², D]` for a grid of `side`² patches, as the hub's code makes them.

    The first, of the class token, stays; the others are resized bicubically, no antialias, by (side + 0.1) / M.
    """
    trained = math.isqrt(positions.shape[1] - 1)
    if trained == side:
        return positions
    grid = positions[:, 1:].float().reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, scale_factor=(side + OFFSET) / trained, mode="bicubic")
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


@lru_cache(maxsize=2)
def _opened(folder: Path, device: str, content: str) -> Any:
    try:
        with quiet():
            model, found = Dinov2Model.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise HarnessError(f"{folder} is no DINOv2 in the transformers layout that can be opened: {error}") from error
    must_fit(folder, found["missing_keys"], found["unexpected_keys"])
    embeddings = model.embeddings
    # With as many positions as patches transformers leaves them as they are.
    embeddings.position_embeddings = nn.Parameter(
        hub_positions(embeddings.position_embeddings.detach(), SIZE // model.config.patch_size)
    )
    return model.requires_grad_(False).eval().to(device)
