"""CLIPScore with shapes-clip: the raw cosine of an image's and its prompt's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.metrics import clip
from harness.metrics.base import SampleMetric, Scores
from harness.prompts import Prompt, as_prompts
from harness.weights import content_digest, is_trained


@dataclass(frozen=True)
class CLIPScoreShapes(SampleMetric):
    """The cosine itself, -1 to 1, higher is better; not Hessel et al.'s 2.5 · max(cos, 0), nor 100 · cos.

    `weights` names a CLIP in the transformers layout.
    """

    name: ClassVar[str] = "clipscore-shapes"
    version: ClassVar[int] = 1

    weights: str = "builtin:shapes-clip"

    def missing(self) -> str | None:
        """What keeps the weights from being opened."""
        try:
            clip.preprocessing(clip.locate(self.weights))
        except HarnessError as error:
            return str(error)
        return None

    def content(self) -> dict[str, Any]:
        """The hash of the weights' folder, processor settings included."""
        folder = clip.locate(self.weights)
        return {"weights": content_digest(folder), "preprocessing": clip.preprocessing(folder), "value": "cosine"}

    @property
    def trained(self) -> bool:
        """False where the weights say that they are random."""
        return self.missing() is not None or is_trained(clip.locate(self.weights))

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        object.__setattr__(self, "_clip", clip.opened(clip.locate(self.weights), device))

    @property
    def _opened(self) -> clip.Clip:
        if not hasattr(self, "_clip"):
            raise HarnessError(f"{self.name} is not open: call open(device) first, or use load_metric")
        return self._clip  # type: ignore[no-any-return]

    def score(self, images: np.ndarray, prompts: Sequence[Prompt | str]) -> Scores:
        """The cosine of each still with its prompt."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        if len(images) == 0:
            return Scores(np.zeros(0), [])
        embedded = self._opened.images(clip.stills(images, self.name))
        texts = clip.text_rows(self._opened, [prompt.text for prompt in as_prompts(prompts)])
        values = clip.cosine(embedded, texts).cpu().numpy()
        return Scores(values, [{} for _ in prompts])

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The cosines, `[B]`, with gradients for the images."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        pixels = self._opened.differentiable_pixels(clip.stills(images, self.name))
        with torch.no_grad():
            texts = clip.text_rows(self._opened, [prompt.text for prompt in prompts])
        return clip.cosine(self._opened.embed(pixels), texts).to(images.dtype)
