"""Embeddings of images and texts by a CLIP: what all CLIPs here share, and one in the `transformers` layout."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from harness import weights as weight_files
from harness.errors import HarnessError
from harness.metrics import clip_pixels
from harness.quiet import quiet

CHUNK = 64  # images a forward pass
TEXTS = 10_000  # embeddings of texts that are kept: 40 MB at 1024 dimensions


class Embedder(ABC):
    """One CLIP on one device, float32, in evaluation mode; its parameters take no gradients.

    Texts are encoded one by one and kept: a text's embedding is then the same, bit for bit, whatever was encoded
    before or beside it (a judge's choice must not depend on a worker's past), and a prompt with many seeds costs
    one pass.
    """

    device: torch.device
    dimension: int  # of the embeddings
    size: int  # the side of the network's input

    def __init__(self) -> None:
        self.texts: dict[str, Tensor] = {}

    @abstractmethod
    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""

    @abstractmethod
    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input, on its device, with gradients.

        The steps of `pixels` without its rounding to 8 bits after the resize; equal to it where no resize is needed.
        """

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Network input to projected embeddings; gradients flow where the input asks for them."""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`; truncated where it is longer than the context."""

    @torch.no_grad()
    def images(self, images: np.ndarray, pixels: Callable[[np.ndarray], Tensor] | None = None) -> Tensor:
        """uint8 `[N, H, W, 3]` to projected embeddings `[N, D]`, not normalised; `pixels` for another input."""
        pixels = pixels or self.pixels
        parts = [self.embed(pixels(images[i : i + CHUNK]).to(self.device)) for i in range(0, len(images), CHUNK)]
        return torch.cat(parts) if parts else torch.zeros((0, self.dimension))

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`, not normalised; the oldest is forgotten where there are too many."""
        if text not in self.texts:
            if len(self.texts) >= TEXTS:
                del self.texts[next(iter(self.texts))]
            self.texts[text] = self.encode(text)
        return self.texts[text]


class Clip(Embedder):
    """A CLIP in the `transformers` layout, images exactly as its processor's configuration says.

    `processor` is a folder of its own where the model's holds none. `padding` is that of the tokenizer; what follows
    a text's end never reaches its embedding but by rounding.
    """

    def __init__(
        self, folder: Path, device: str, processor: Path | None = None, padding: bool | str = "max_length"
    ) -> None:
        super().__init__()
        self.device, self.padding = torch.device(device), padding
        try:
            with quiet():
                model, found = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
                self.processor = CLIPProcessor.from_pretrained(processor or folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise HarnessError(f"{folder} is no CLIP in the transformers layout that can be opened: {error}") from error
        must_fit(folder, found["missing_keys"], found["unexpected_keys"])
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.dimension, self.size = model.config.projection_dim, model.config.vision_config.image_size

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""
        process = self.processor.image_processor
        found = process(images=list(images), return_tensors="pt", input_data_format="channels_last")
        return torch.as_tensor(found["pixel_values"])

    def embed(self, pixels: Tensor) -> Tensor:
        """Network input to projected embeddings; gradients flow where the input asks for them."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def encode(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`; truncated where it is longer than the context."""
        tokens = self.processor.tokenizer(
            text, padding=self.padding, truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        )
        return _pooled(self.model.get_text_features(**tokens.to(self.device)))[0]

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input: the processor's steps, without 8 bits."""
        config = self.processor.image_processor
        x: Tensor = images.permute(0, 3, 1, 2).to(self.device, torch.float32)
        if config.do_resize:
            size = dict(config.size)
            if "shortest_edge" in size:
                target = clip_pixels.shortest_edge(x.shape[-2], x.shape[-1], size["shortest_edge"])
            else:
                target = (size["height"], size["width"])
            mode = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(int(config.resample), "bicubic")
            x = clip_pixels.resized(x, target, mode)
        if config.do_center_crop:
            crop = dict(config.crop_size)
            top, left = clip_pixels.centre(x.shape[-2], x.shape[-1], (crop["height"], crop["width"]), "floor")
            x = x[..., top : top + crop["height"], left : left + crop["width"]]
        if config.do_normalize:
            x = clip_pixels.normalised(x, config.image_mean, config.image_std)
        return x


def opened(
    folder: Path, device: str, processor: Path | None = None, padding: bool | str = "max_length"
) -> Clip:
    """The CLIP of a folder on a device, shared by all metrics of this process. Arguments as `Clip`'s."""
    return _opened(folder, device, processor, padding, weight_files.sha256_of(model_file(folder)))


@lru_cache(maxsize=4)
def _opened(folder: Path, device: str, processor: Path | None, padding: bool | str, sha256: str) -> Clip:
    return Clip(folder, device, processor, padding)


def must_fit(place: Path, missing: Sequence[str], surplus: Sequence[str]) -> None:
    """Raises HarnessError, naming the first of them, where a checkpoint lacks tensors or holds too many."""
    for what, keys in (("lacks", missing), ("holds, beside what the model has,", surplus)):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise HarnessError(
                f"{place} {what} {len(keys)} tensor{'s' * (len(keys) > 1)}: {some}{', ...' * (len(keys) > 3)}; "
                f"it is a checkpoint of another model, or not whole"
            )


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


def must_pair(images: Any, prompts: Sequence[Any]) -> None:
    """Raises ValueError where there is not one image to each prompt."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts")


def text_rows(clip: Embedder, texts: Sequence[str]) -> Tensor:
    """The embeddings of texts, `[B, D]`."""
    return torch.stack([clip.text(text) for text in texts])


def _pooled(output: Any) -> Tensor:
    """Projected features: a tensor up to transformers 4, an output object that holds one from 5 on."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[no-any-return]
