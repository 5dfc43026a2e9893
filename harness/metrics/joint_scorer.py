"""What the scorers that read a prompt with its image before them share: checks, batches, the path with gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.metrics.base import SampleMetric, Scores
from harness.metrics.clip import must_pair, stills
from harness.prompts import Prompt, as_prompts


class JointModel(Protocol):
    """A network on one device that takes an image and a text together; its parameters take no gradients."""

    device: torch.device

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input, on its device, with gradients.

        The steps of `pixels` without its rounding to 8 bits after the resize; equal to it where no resize is needed.
        """


M = TypeVar("M", bound=JointModel)


class JointScorer(SampleMetric, Generic[M]):
    """A value for each still and its prompt. A scorer says which network it takes and how that rates.

    `chunk` images are shown at once: a row's value depends on the rows beside it by float32's last digits alone.
    """

    only_stills: ClassVar[bool] = True
    chunk: ClassVar[int] = 32

    @abstractmethod
    def load(self, device: str) -> M:
        """The network, or the same one that another metric of this process has loaded."""

    @abstractmethod
    def rate(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Network input and prompts to values, float32 `[N]`; gradients flow where the pixels ask for them."""

    def open(self, device: str = "cpu") -> None:
        """Loads the network, or finds it loaded by another metric."""
        object.__setattr__(self, "_loaded", self.load(device))

    @property
    def model(self) -> M:
        """The network. Raises HarnessError before `open`."""
        return self.loaded("_loaded")  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[Prompt | str]) -> Scores:
        """The value of each still of uint8 `[B, 1, H, W, 3]` and its prompt."""
        must_pair(images, prompts)
        shown, texts = stills(images, self.name), [prompt.text for prompt in as_prompts(prompts)]
        parts = [np.zeros(0)]
        for i in range(0, len(texts), self.chunk):
            pixels = self.model.pixels(shown[i : i + self.chunk]).to(self.model.device)
            parts.append(self.rate(pixels, texts[i : i + self.chunk]).double().cpu().numpy())
        return Scores(np.concatenate(parts), [{} for _ in texts])

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same values, `[B]`, with gradients for the images."""
        must_pair(images, prompts)
        pixels = self.model.differentiable_pixels(stills(images, self.name))
        return self.rate(pixels, [prompt.text for prompt in prompts]).to(images.dtype)
