"""Aesthetic score (AES): how a network that was trained on people's ratings rates a CLIP embedding."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics import openclip
from harness.metrics.embedding_scorer import EmbeddingScorer
from harness.prompts import Prompt


@dataclass(frozen=True)
class Aesthetic(EmbeddingScorer):
    """The rating of the embedding, divided by its length, higher is better; about 1 to 10. The prompt has no part.

    github.com/christophschuhmann/improved-aesthetic-predictor ("V2"), float32. `weights` is one of its `.pth` files;
    with a file that was trained with activations (`...-reluMSE.pth`, told by its keys) there is a ReLU after each
    layer but the last. `clip` is the ViT-L/14 whose embeddings it was trained on.
    """

    name: ClassVar[str] = "aesthetic"

    weights: str = "aesthetic"
    clip_weights: str = "clip-l-14"

    def artifacts(self) -> dict[str, str]:
        """The layers' file and the CLIP's folder."""
        return {"weights": self.weights, "clip_weights": self.clip_weights}

    def load(self, device: str) -> openclip.OpenClip:
        """The CLIP, and the layers."""
        clip = openclip.opened(artifacts.find(self.clip_weights), device)
        object.__setattr__(self, "_layers", layers(artifacts.file_of(self.weights, ".pth"), clip.dimension).to(device))
        return clip

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """The ratings."""
        length = embedded.norm(dim=-1, keepdim=True)
        unit = embedded / torch.where(length == 0, 1, length)
        return self._layers(unit)[:, 0], {}  # type: ignore[attr-defined]


# Places of the linear layers in the official `nn.Sequential`: with dropouts between them, and with ReLUs as well.
LINEAR, RELU = [0, 2, 4, 6, 7], [0, 3, 6, 9, 11]


def layers(path: Path, dimension: int) -> nn.Sequential:
    """The layers of a file of the predictor, without its dropouts.

    Raises:
        HarnessError: it is no such file, or its layers do not fit one another or embeddings of this dimension.
    """
    try:
        read = torch.load(path, weights_only=True, map_location="cpu")
        state = {key.removeprefix("layers."): tensor.float() for key, tensor in read.items()}
        places = sorted({int(key.split(".")[0]) for key in state})
        if places not in (LINEAR, RELU):
            raise ValueError(f"layers at the places {places}, expected {LINEAR}, or with ReLU {RELU}")
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        width = dimension
        with torch.device("meta"):
            for place in places:
                before, width = width, len(state[f"{place}.weight"])
                modules[str(place)] = nn.Linear(before, width)
                if places == RELU and place != RELU[-1]:
                    modules[str(place + 1)] = nn.ReLU()
        found = nn.Sequential(modules)
        found.load_state_dict(state, assign=True)
        if width != 1:
            raise ValueError(f"the last layer gives {width} values, expected 1")
    except (OSError, EOFError, KeyError, ValueError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise HarnessError(f"{path} holds no layers of the aesthetic predictor that fit: {reason}") from error
    return found.requires_grad_(False).eval()
