"""CLIPScore with shapes-clip: the raw cosine of an image's and its prompt's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from harness.errors import HarnessError
from harness.metrics import clip
from harness.metrics.embedding_scorer import EmbeddingScorer
from harness.prompts import Prompt
from harness.weights import content_digest, is_trained


@dataclass(frozen=True)
class CLIPScoreShapes(EmbeddingScorer):
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

    def load(self, device: str) -> clip.Clip:
        """The CLIP of the folder."""
        return clip.opened(clip.locate(self.weights), device)

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """The cosines."""
        return self.cosines(embedded, prompts), {}
