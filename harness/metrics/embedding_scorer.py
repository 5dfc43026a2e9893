"""What the scorers that look at images through a CLIP share: checks, batches, the path with gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.metrics.base import SampleMetric, Scores
from harness.metrics.clip import Embedder, cosine, must_pair, stills, text_rows
from harness.prompts import Prompt, as_prompts


class EmbeddingScorer(SampleMetric):
    """A value for each still from its embedding. A scorer says which CLIP it takes and how it rates."""

    only_stills: ClassVar[bool] = True

    @abstractmethod
    def load(self, device: str) -> Embedder:
        """The CLIP, or the same one that another metric of this process has loaded."""

    @abstractmethod
    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """The values of embeddings `[B, D]`, and by name what the detail keeps beside them; each `[B]`."""

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[B, H, W, 3]` as the network's input; the CLIP's own preprocessing."""
        return self.clip.pixels(images)

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[B, H, W, 3]` in [0, 1] as the network's input; the CLIP's own preprocessing."""
        return self.clip.differentiable_pixels(images)

    def cosines(self, embedded: Tensor, prompts: Sequence[Prompt], prefix: str = "") -> Tensor:
        """Of each embedding and its prompt, `prefix` before it; float64 `[B]`."""
        return cosine(embedded, text_rows(self.clip, [prefix + prompt.text for prompt in prompts]))

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        object.__setattr__(self, "_clip", self.load(device))

    def forget(self) -> None:
        """Drops the texts' embeddings."""
        self.clip.texts.clear()

    @property
    def clip(self) -> Embedder:
        """The CLIP. Raises HarnessError before `open`."""
        return self.loaded("_clip")  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[Prompt | str]) -> Scores:
        """The value of each still of uint8 `[B, 1, H, W, 3]` and its prompt."""
        must_pair(images, prompts)
        if len(images) == 0:
            return Scores(np.zeros(0), [])
        values, kept = self.rate(self.clip.images(stills(images, self.name), self.pixels), as_prompts(prompts))
        columns = {name: column.tolist() for name, column in kept.items()}
        details = [{name: column[i] for name, column in columns.items()} for i in range(len(prompts))]
        return Scores(values.double().cpu().numpy(), details)

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same values, `[B]`, with gradients for the images, float `[B, 1, H, W, 3]` in [0, 1].

        Where `score` resizes in 8 bits, this resizes without them (`clip_pixels`): on tiny random networks a cosine
        differs by some 1e-4.
        """
        must_pair(images, prompts)
        embedded = self.clip.embed(self.differentiable_pixels(stills(images, self.name)))
        return self.rate(embedded, prompts)[0].to(images.dtype)
