"""Stable Diffusion XL, its distilled Turbo, and any model in their on-disk layout.

The numbers follow `StableDiffusionXLPipeline` of `diffusers` (tests/diffusion/test_parity_xl.py), with the
differences that `stable_diffusion.py` names. Micro-conditioning (Podell et al., arXiv 2307.01952, section 2.2) is
the pipeline's default: original and target size are the image's, nothing is cropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from harness.diffusion import folders
from harness.diffusion.stable_diffusion import StableDiffusion, tokenize

INDEX = "model_index.json"


class StableDiffusionXL(StableDiffusion):
    """Text to image with two CLIP text encoders, one UNet that is told the image's size, and one autoencoder."""

    family = "stable_diffusion_xl"
    version = 1
    text_encoders = ("text_encoder", "text_encoder_2")
    mended: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, *, text_encoder_2: Any, tokenizer_2: Any, zero_null: bool, device: str = "cpu", **parts: Any
    ) -> None:
        super().__init__(**parts, device=device)
        self.text_encoder_2 = text_encoder_2.to(self.device).eval().requires_grad_(False)
        self.tokenizer_2 = tokenizer_2
        self.zero_null = zero_null
        side = self.size
        # Original height and width, top and left of the crop, target height and width.
        self._sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=self.dtype, device=self.device)

    @classmethod
    def _parts(cls, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
        index = json.loads((folder / INDEX).read_text())
        return super()._parts(folder, dtype) | {
            "text_encoder_2": folders.open_network(
                CLIPTextModelWithProjection, folder / "text_encoder_2", dtype=dtype
            ),
            "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            "zero_null": bool(index.get("force_zeros_for_empty_prompt", True)),
        }

    @classmethod
    def _vae_dtype(cls, vae_config: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        """float32 where the autoencoder says that it overflows in float16."""
        upcast = vae_config["_class_name"] == "AutoencoderKL" and vae_config.get("force_upcast", True)
        return torch.float32 if upcast and dtype == torch.float16 else dtype

    @classmethod
    def _folder_problems(cls, folder: Path, size: int | None) -> list[str]:
        found = super()._folder_problems(folder, size)
        try:
            json.loads((folder / INDEX).read_text())
        except (OSError, ValueError) as error:
            found.append(f"{INDEX} cannot be read ({error}): it says what the null prompt is")
        return found

    @torch.no_grad()
    def _encode(self, text: str) -> dict[str, Tensor]:
        """Both encoders' penultimate hidden states side by side, and the second one's pooled output."""
        states = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            ids = tokenize(tokenizer, text).input_ids.to(self.device)
            answer = encoder(ids, output_hidden_states=True)
            states.append(answer.hidden_states[-2][0])
        return {"text": torch.cat(states, dim=-1), "pooled": answer[0][0]}

    def _null(self) -> dict[str, Tensor]:
        empty = self._encoded("")
        return {key: torch.zeros_like(value) for key, value in empty.items()} if self.zero_null else empty

    def _inputs(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        pooled = tensors["pooled"]
        sizes = self._sizes.to(pooled.device).expand(len(pooled), -1)
        return {
            "encoder_hidden_states": tensors["text"], "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}
        }

    def _decoded(self, latents: Tensor) -> Tensor:
        mean = getattr(self.vae.config, "latents_mean", None)
        std = getattr(self.vae.config, "latents_std", None)
        if mean is None or std is None:
            return super()._decoded(latents)
        shape = (1, -1, 1, 1)
        rows = latents.to(self.vae.dtype)
        scaled = rows * rows.new_tensor(std).view(shape) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(scaled + rows.new_tensor(mean).view(shape), return_dict=False)[0]
        return images
