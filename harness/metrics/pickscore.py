"""PickScore: a CLIP ViT-H/14 that was fine-tuned on users' choices between two images (Kirstain et al., arXiv
2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from torch import Tensor

from harness import artifacts
from harness.metrics import clip, clip_pixels
from harness.metrics.embedding_scorer import EmbeddingScorer
from harness.prompts import Prompt


@dataclass(frozen=True)
class PickScore(EmbeddingScorer):
    """exp(logit scale) · cos of image and prompt, higher is better; about 20 to 23 for the trained weights.

    As the example of github.com/yuvalkirstain/PickScore before its softmax over the images of one prompt. Others
    print the cosine (in the detail) or divide by 26.

    `weights` is the model in the transformers layout, `processor` the folder of the CLIP that it was made from, with
    the tokenizer and the settings for images. Texts go through that tokenizer, which repairs nothing (HTML
    entities, curly quotes), unlike OpenAI's own; images through Pillow in 8 bits, as the processor did when the
    model was published (the one that transformers 5 takes by default differs by a grey level or two).
    """

    name: ClassVar[str] = "pickscore"

    weights: str = "pickscore"
    processor: str = "clip-h-14-processor"

    def artifacts(self) -> dict[str, str]:
        """The model and its processor."""
        return {"weights": self.weights, "processor": self.processor}

    def load(self, device: str) -> clip.Clip:
        """The model; a text is followed by no padding, as in the example."""
        model, processor = clip.locate(str(artifacts.find(self.weights))), artifacts.find(self.processor)
        return clip.opened(model, device, processor, padding=False)

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[B, H, W, 3]` as the network's input."""
        settings = self._model.processor.image_processor
        fitted = clip_pixels.fitted(images, settings.crop_size["height"], "floor")
        return clip_pixels.normalised(fitted, settings.image_mean, settings.image_std)

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """exp(logit scale) · cos, and cos."""
        cosine = self.cosines(embedded, prompts)
        return self._model.model.logit_scale.double().exp() * cosine, {"cosine": cosine}

    @property
    def _model(self) -> clip.Clip:
        return cast(clip.Clip, self.clip)
