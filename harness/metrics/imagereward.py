"""ImageReward: a BLIP with a reward head, trained on experts' rankings of images (Xu et al., arXiv 2304.05977)."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics import clip_pixels
from harness.metrics.clip import must_fit
from harness.metrics.joint_scorer import JointScorer
from harness.quiet import quiet

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw rewards of the authors' data
TOKENS = 35  # of a prompt, its first and last token with it
HEAD_WIDTH = 64  # of the vision transformer: 16 heads of 1024
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # of BLIP's pretraining
# Vision tower: the checkpoint's names and those of transformers.
RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


@dataclass(frozen=True)
class ImageReward(JointScorer["Reward"]):
    """The reward less its mean over its standard deviation, higher is better; about -2 to 2 for the trained weights.

    As `ImageReward.score` of github.com/THUDM/ImageReward (commit c1392c6) for a single image. Some papers print it
    times 100. Preprocessing is OpenAI's for CLIP: the shorter side to 224 by Pillow's bicubic, the centre cut out.
    Of a prompt, 33 word pieces are read.

    `weights` is the folder with ImageReward.pt and med_config.json, `tokenizer` that of bert-base-uncased.
    """

    name: ClassVar[str] = "imagereward"

    weights: str = "imagereward"
    tokenizer: str = "bert-base-uncased"

    def artifacts(self) -> dict[str, str]:
        """The checkpoint and the tokenizer."""
        return {"weights": self.weights, "tokenizer": self.tokenizer}

    def load(self, device: str) -> Reward:
        """The network, of this checkpoint's sizes."""
        return _opened(
            artifacts.find(self.weights), artifacts.find(self.tokenizer), device, artifacts.content(self.weights)
        )

    def rate(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """The rewards."""
        return self.model.rewards(pixels, texts)


class Network(nn.Module):
    """Image and prompt to a raw reward. Sizes as `architecture` gives them."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], head: list[int]) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision, attn_implementation="eager"))
        # Cross-attention is built for a decoder only.
        config = BlipTextConfig(**text, is_decoder=True, attn_implementation="eager")
        self.text = BlipTextModel(config, add_pooling_layer=False)
        # No activations: the head is affine. The official names count its dropouts.
        layers = [nn.Linear(a, b) for a, b in pairwise(head)]
        self.head = nn.ModuleDict({str(place): layer for place, layer in zip((0, 2, 4, 6, 7), layers, strict=True)})

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`[B, 3, h, w]`, ids and mask `[B, 35]` to raw rewards `[B]`."""
        seen = self.vision(pixels).last_hidden_state
        # Called as a decoder, its mask would be causal: the first token, which is read, would see no other.
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device), is_decoder=False,
        )
        x: Tensor = read.last_hidden_state[:, 0]
        for layer in self.head.values():
            x = layer(x)
        return x[:, 0]


class Reward:
    """The checkpoint on one device, float32, in evaluation mode."""

    def __init__(self, folder: Path, tokenizer: Path, device: str) -> None:
        self.device = torch.device(device)
        self.network = _filled(folder).requires_grad_(False).eval().to(self.device)
        self.size = self.network.vision.config.image_size
        try:
            with quiet():
                self.tokenizer = BertTokenizer.from_pretrained(tokenizer, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HarnessError(f"{tokenizer} holds no tokenizer of BERT that can be opened: {error}") from error
        self.tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        known = self.network.text.config.vocab_size
        if len(self.tokenizer) > known:
            raise HarnessError(f"{tokenizer} has {len(self.tokenizer)} tokens, the checkpoint in {folder} {known}; "
                               f"expected the tokenizer of bert-base-uncased")

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""
        return clip_pixels.normalised(clip_pixels.fitted(images, self.size, "even"))

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input: the same steps, without 8 bits."""
        images = images.to(self.device, torch.float32)
        return clip_pixels.normalised(clip_pixels.fitted_tensor(images, self.size, "even"))

    def rewards(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """The rewards, float32 `[N]`."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        raw: Tensor = self.network(pixels, tokens.input_ids, tokens.attention_mask)
        return (raw - MEAN) / STD


@lru_cache(maxsize=2)
def _opened(folder: Path, tokenizer: Path, device: str, content: str) -> Reward:
    return Reward(folder, tokenizer, device)


def architecture(state: dict[str, Tensor], med: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """The arguments of `Network` that an official state dict and its med_config.json imply.

    Raises:
        KeyError, ValueError: a tensor or a setting that says them is missing or of another shape.
    """
    width, _, _, patch = state["blip.visual_encoder.patch_embed.proj.weight"].shape
    blocks = {key.split(".")[3] for key in state if key.startswith("blip.visual_encoder.blocks.")}
    vision = {
        "hidden_size": width,
        "intermediate_size": len(state["blip.visual_encoder.blocks.0.mlp.fc1.bias"]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": patch * math.isqrt(state["blip.visual_encoder.pos_embed"].shape[1] - 1),
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")
    text = {key: med[key] for key in same} | {
        "encoder_hidden_size": width, "bos_token_id": None, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    head = [state[f"mlp.layers.{place}.weight"].shape[1] for place in (0, 2, 4, 6, 7)]
    return vision, text, [*head, 1]


def _filled(folder: Path) -> Network:
    """The network with the checkpoint's tensors as they are, nothing drawn at random on the way."""
    path, med = folder / "ImageReward.pt", folder / "med_config.json"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        state = {key: tensor.float() for key, tensor in state.items() if not key.startswith(UNUSED)}
        sizes = architecture(state, json.loads(med.read_text()))
        with torch.device("meta"):
            network = Network(*sizes)
        fit = network.load_state_dict({_renamed(key): state[key] for key in state}, strict=False, assign=True)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError,
            pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(f"{folder} holds no ImageReward.pt and med_config.json of one ImageReward that can be "
                           f"opened: {reason}") from error
    positions = "text.embeddings.position_ids"
    must_fit(path, fit.missing_keys, [key for key in fit.unexpected_keys if key != positions])
    network.text.embeddings.position_ids = torch.arange(network.text.config.max_position_embeddings)[None]
    return network


def _renamed(key: str) -> str:
    """An official name in the network's own."""
    if key.startswith("mlp.layers."):
        return "head." + key.removeprefix("mlp.layers.")
    if key.startswith("blip.text_encoder."):
        return "text." + key.removeprefix("blip.text_encoder.")
    if not key.startswith("blip.visual_encoder."):
        return key
    key = key.removeprefix("blip.visual_encoder.")
    for old, new in RENAMED.items():
        if key.startswith(old) or (old.startswith(".") and old in key):
            key = key.replace(old, new, 1)
    return "vision." + key
