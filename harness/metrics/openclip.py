"""A CLIP in open_clip's keys: OpenAI's models as open_clip publishes them, and HPSv2."""

from __future__ import annotations

import json
import math
import pickle
import re
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness import weights as weight_files
from harness.errors import HarnessError
from harness.metrics import clip_pixels
from harness.metrics.clip import Embedder, must_fit

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # the files of a folder
TEXT_HEAD_WIDTH = 64  # of every CLIP of OpenAI's design


class OpenClip(Embedder):
    """A vision transformer and its text transformer, by open_clip's own classes, loaded strictly.

    `place` is a folder with a configuration and safetensors, or a `.pt` file that holds `state_dict`. Such a file
    says nothing of the architecture: it is read off the shapes, but for the width of an attention head of the
    vision transformer (`head_width`); its activation is the plain GELU.

    Images: OpenAI's preprocessing (`clip_pixels`). Texts: open_clip's tokenizer, which is OpenAI's.
    """

    def __init__(self, place: Path, device: str, head_width: int = 64) -> None:
        super().__init__()
        self.device = torch.device(device)
        state = _read(place)
        settings = architecture(state, head_width, place) if place.is_file() else _configured(place)
        self.model = _filled(settings, state, place).requires_grad_(False).eval().to(self.device)
        self.size, self.dimension = settings["vision_cfg"]["image_size"], settings["embed_dim"]
        self.tokenizer = SimpleTokenizer(context_length=self.model.context_length)

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""
        return clip_pixels.normalised(clip_pixels.fitted(images, self.size, "even"))

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input: the same steps, without 8 bits."""
        images = images.to(self.device, torch.float32)
        return clip_pixels.normalised(clip_pixels.fitted_tensor(images, self.size, "even"))

    def embed(self, pixels: Tensor) -> Tensor:
        """Network input to projected embeddings; gradients flow where the input asks for them."""
        return self.model.encode_image(pixels)  # type: ignore[no-any-return]

    def encode(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`; truncated where it is longer than the context."""
        return self.model.encode_text(self.tokenizer([text]).to(self.device))[0]  # type: ignore[no-any-return]


def opened(place: Path, device: str, head_width: int = 64) -> OpenClip:
    """The CLIP of a folder or file on a device, shared by all metrics of this process. Arguments as `OpenClip`'s."""
    weights = place if place.is_file() else place / WEIGHTS
    if not weights.is_file():
        raise HarnessError(f"{place} holds no {WEIGHTS}; expected a CLIP as open_clip publishes it on the Hub")
    return _opened(place, device, head_width, weight_files.sha256_of(weights))


@lru_cache(maxsize=4)
def _opened(place: Path, device: str, head_width: int, sha256: str) -> OpenClip:
    return OpenClip(place, device, head_width)


def architecture(state: dict[str, Tensor], head_width: int, place: Path) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` that a checkpoint's shapes imply.

    Raises:
        HarnessError: a tensor that says them is missing; `place` is named.
    """

    def layers(prefix: str) -> int:
        found = [re.match(re.escape(prefix) + r"\.resblocks\.(\d+)\.", key) for key in state]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    try:
        width, _, _, patch = state["visual.conv1.weight"].shape
        vocabulary, text_width = state["token_embedding.weight"].shape
        tower = {
            "image_size": patch * math.isqrt(len(state["visual.positional_embedding"]) - 1),
            "patch_size": patch,
            "width": width,
            "layers": layers("visual.transformer"),
            "head_width": head_width,
            "mlp_ratio": len(state["visual.transformer.resblocks.0.mlp.c_fc.bias"]) / width,
        }
        text = {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_width // TEXT_HEAD_WIDTH,
            "layers": layers("transformer"),
            "mlp_ratio": len(state["transformer.resblocks.0.mlp.c_fc.bias"]) / text_width,
        }
        return {"embed_dim": state["text_projection"].shape[1], "vision_cfg": tower, "text_cfg": text}
    except (KeyError, ValueError, IndexError) as error:
        raise HarnessError(
            f"{place} holds no CLIP in open_clip's keys: {error} is missing or of another shape"
        ) from error


def _read(place: Path) -> dict[str, Tensor]:
    """All tensors, float32."""
    try:
        if place.is_file():
            state = torch.load(place, weights_only=True, map_location="cpu")["state_dict"]
        else:
            state = load_file(place / WEIGHTS)
        return {key: tensor.float() for key, tensor in state.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError,
            SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(
            f"{place} is no checkpoint in open_clip's keys that can be opened: {reason}. Expected `state_dict` in a "
            f".pt file, or a folder with {CONFIG} and {WEIGHTS}"
        ) from error


def _configured(folder: Path) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` in a folder's configuration. The preprocessing must be OpenAI's."""
    try:
        found = json.loads((folder / CONFIG).read_text())
        settings, shown = dict(found["model_cfg"]), found.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{folder / CONFIG} is no configuration of open_clip: {error!r}") from error
    expected = {
        "mean": list(clip_pixels.MEAN), "std": list(clip_pixels.STD), "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    for key, value in expected.items():
        if shown.get(key, value) != value:
            raise HarnessError(f"{folder / CONFIG}: {key} of OpenAI's preprocessing is {value}, not {shown[key]}")
    return settings


def _filled(settings: dict[str, Any], state: dict[str, Tensor], place: Path) -> Any:
    """The model with the tensors of `state` as they are, nothing drawn at random on the way."""
    try:
        with torch.device("meta"):
            model = open_clip.CLIP(**settings)
        fit = model.load_state_dict(state, strict=False, assign=True)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise HarnessError(f"{place}: configuration and tensors are not of one CLIP: {reason}") from error
    must_fit(place, fit.missing_keys, fit.unexpected_keys)
    length = model.context_length
    model.attn_mask = torch.full((length, length), -torch.inf).triu_(1)  # not in checkpoints
    empty = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    must_fit(place, empty, [])
    return model
