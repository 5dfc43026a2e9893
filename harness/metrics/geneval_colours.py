"""The colour of an object as GenEval sees it: CLIP, zero-shot, on the object alone before grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from harness.metrics.geneval_rules import COLOURS, Detection

GREY = "#999"
TEMPLATES = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")


class Encoder(Protocol):
    """What the classifier needs of a CLIP; embeddings may have any length."""

    def images(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` of any size to `[N, D]`, with the CLIP's own preprocessing."""

    def text(self, text: str) -> Tensor:
        """A text to `[D]`."""


class ColourClassifier:
    """Names one of GenEval's ten colours for each object.

    A colour's direction is the mean of three templates' unit embeddings; an object gets the nearest. Equal to the
    official evaluator, which takes CLIP_benchmark's zero-shot classifier, but in float32 where that is in half.
    """

    def __init__(self, clip: Encoder) -> None:
        self.clip = clip
        self.directions: dict[str, Tensor] = {}  # by name of a class, of which there are 80

    @torch.no_grad()
    def __call__(self, image: np.ndarray, found: Sequence[Detection], name: str) -> list[str]:
        """The colours of objects of the class `name` in an image, uint8 `[H, W, 3]`."""
        return [COLOURS[best] for best in self.cosines(image, found, name).argmax(dim=1).tolist()]

    def cosines(self, image: np.ndarray, found: Sequence[Detection], name: str) -> Tensor:
        """The cosine of each object with each colour, float32 `[len(found), 10]`."""
        embedded = torch.cat([self.clip.images(np.asarray(crop(image, one))[None]) for one in found])
        return functional.normalize(embedded.float(), dim=-1) @ self.of_class(name).T

    def of_class(self, name: str) -> Tensor:
        """The ten colours' unit directions for a class, float32 `[10, D]`."""
        if name not in self.directions:
            rows = []
            for colour in COLOURS:
                texts = torch.stack([self.clip.text(text.format(c=colour, name=name)) for text in TEMPLATES])
                rows.append(functional.normalize(texts.float(), dim=-1).mean(dim=0))
            self.directions[name] = functional.normalize(torch.stack(rows), dim=-1)
        return self.directions[name]


def crop(image: np.ndarray, one: Detection) -> Image.Image:
    """The object pasted through its mask on grey, cut to its box (PIL rounds the corners, halves to even)."""
    whole = Image.fromarray(image)
    if one.mask is not None:
        whole = Image.composite(whole, Image.new("RGB", whole.size, GREY), Image.fromarray(one.mask))
    return whole.crop(one.box)  # type: ignore[arg-type]
