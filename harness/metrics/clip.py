"""A CLIP in the `transformers` layout: embeddings of images and texts, with the processor's own preprocessing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from harness import weights as weight_files
from harness.errors import HarnessError
from harness.quiet import quiet

CHUNK = 64  # images a forward pass


class Clip:
    """One CLIP on one device, float32, in evaluation mode.

    Images go through `CLIPProcessor` exactly as its configuration says. Texts are encoded one by one and kept:
    a text's embedding is then the same, bit for bit, whatever was encoded before or beside it (a judge's choice
    must not depend on a worker's past), and a prompt with many seeds costs one pass.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = torch.device(device)
        try:
            with quiet():
                model = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
                )
                self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise HarnessError(f"{folder} is no CLIP in the transformers layout that can be opened: {error}") from error
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.texts: dict[str, Tensor] = {}

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""
        process = self.processor.image_processor
        found = process(images=list(images), return_tensors="pt", input_data_format="channels_last")
        return torch.as_tensor(found["pixel_values"])

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` to projected embeddings `[N, D]`, not normalised."""
        parts = [self.embed(self.pixels(images[i : i + CHUNK]).to(self.device)) for i in range(0, len(images), CHUNK)]
        return torch.cat(parts) if parts else torch.zeros((0, self.model.config.projection_dim))

    def embed(self, pixels: Tensor) -> Tensor:
        """Network input to projected embeddings; gradients flow where the input asks for them."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`, not normalised; truncated where it is longer than the context."""
        if text not in self.texts:
            tokens = self.processor.tokenizer(
                text, padding="max_length", truncation=True, return_tensors="pt",
                max_length=self.model.config.text_config.max_position_embeddings,
            )
            self.texts[text] = _pooled(self.model.get_text_features(**tokens.to(self.device)))[0]
        return self.texts[text]

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input, with gradients.

        The processor's steps (resize, centre crop, normalise) without its rounding to 8 bits after the resize;
        equal to `pixels` where no resize is needed.
        """
        config = self.processor.image_processor
        x: Tensor = images.permute(0, 3, 1, 2).to(self.device, torch.float32)
        if config.do_resize:
            size = dict(config.size)
            height, width = x.shape[-2:]
            if "shortest_edge" in size:  # the longer side is cut off towards zero, as torchvision does
                short = size["shortest_edge"]
                long = int(short * max(height, width) / min(height, width))
                target = (short, long) if height <= width else (long, short)
            else:
                target = (size["height"], size["width"])
            if target != (height, width):
                mode = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(int(config.resample), "bicubic")
                x = functional.interpolate(x, target, mode=mode, antialias=mode != "nearest").clamp(0, 1)
        if config.do_center_crop:
            crop = dict(config.crop_size)
            top, left = (x.shape[-2] - crop["height"]) // 2, (x.shape[-1] - crop["width"]) // 2
            if top < 0 or left < 0:
                raise ValueError(f"images of {tuple(x.shape[-2:])} pixels are smaller than the crop {crop}")
            x = x[..., top : top + crop["height"], left : left + crop["width"]]
        if config.do_normalize:
            mean = torch.tensor(config.image_mean, device=x.device)[:, None, None]
            std = torch.tensor(config.image_std, device=x.device)[:, None, None]
            x = (x - mean) / std
        return x


def opened(folder: Path, device: str) -> Clip:
    """The CLIP of a folder on a device, shared by all metrics of this process."""
    return _opened(folder, device, weight_files.sha256_of(model_file(folder)))


@lru_cache(maxsize=4)
def _opened(folder: Path, device: str, sha256: str) -> Clip:
    return Clip(folder, device)


def locate(weights: str) -> Path:
    """The folder of a CLIP's weights. Raises HarnessError where there is none."""
    folder = weight_files.resolve(weights)
    if not (folder / "config.json").is_file() or not model_file(folder).is_file():
        raise HarnessError(f"weights {weights!r}: {folder} holds no config.json with model.safetensors of a CLIP")
    return folder


def model_file(folder: Path) -> Path:
    """The weights themselves: `model.safetensors`."""
    return folder / "model.safetensors"


def preprocessing(folder: Path) -> dict[str, Any]:
    """The processor's settings as its file holds them (`processor_config.json` or `preprocessor_config.json`)."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings: dict[str, Any] = json.loads((folder / name).read_text())
            return settings
    raise HarnessError(f"{folder} holds neither processor_config.json nor preprocessor_config.json")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise cosine in float64, -1 to 1; 0 where a row is zero."""
    a, b = a.double(), b.double()
    lengths: Tensor = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(-1).div(lengths.clamp_min(1e-12))


def stills(images: Any, metric: str) -> Any:
    """`[B, 1, H, W, 3]` without its frame axis. Raises ValueError for clips."""
    if images.ndim != 5 or images.shape[-1] != 3:
        raise ValueError(f"{metric}: images must be [B, F, H, W, 3], got {tuple(images.shape)}")
    if images.shape[1] != 1:
        raise ValueError(f"{metric} is defined for stills; these samples have {images.shape[1]} frames")
    return images[:, 0]


def text_rows(clip: Clip, texts: Sequence[str]) -> Tensor:
    """The embeddings of texts, `[B, D]`."""
    return torch.stack([clip.text(text) for text in texts])


def _pooled(output: Any) -> Tensor:
    """Projected features: a tensor up to transformers 4, an output object that holds one from 5 on."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[no-any-return]
