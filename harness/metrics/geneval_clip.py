"""A CLIP as open_clip publishes it, for GenEval's colours. To be replaced by the project's loader of such CLIPs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from harness.errors import HarnessError


class OpenClip:
    """A folder of `open_clip_config.json` and `open_clip_model.safetensors` on a device, float32."""

    def __init__(self, place: Path, device: str) -> None:
        self.device = torch.device(device)
        name = f"local-dir:{place}"
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, precision="fp32")
            self.tokenizer = open_clip.get_tokenizer(name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise HarnessError(f"{place} is no CLIP in open_clip's layout that can be opened: {error}") from error
        self.model.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` to projected embeddings `[N, D]`, not normalised."""
        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        return self.model.encode_image(pixels.to(self.device))  # type: ignore[no-any-return]

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """A text's projected embedding, `[D]`, not normalised."""
        return self.model.encode_text(self.tokenizer([text]).to(self.device))[0]  # type: ignore[no-any-return]


def opened(place: Path, device: str) -> OpenClip:
    """The CLIP of a folder on a device."""
    return OpenClip(place, device)
