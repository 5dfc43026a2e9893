"""CLIPScore with OpenAI's CLIPs, in the two conventions in use: Hessel et al.'s, and 100 times the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness import artifacts
from harness.metrics import openclip
from harness.metrics.embedding_scorer import EmbeddingScorer
from harness.prompts import Prompt


@dataclass(frozen=True)
class CLIPScore(EmbeddingScorer):
    """2.5 · max(cos, 0) of the image and "A photo depicts " with the prompt, ViT-B/32; higher is better.

    Hessel et al., arXiv 2104.08718, and github.com/jmhessel/clipscore: negative cosines count as 0 in each pair
    before the mean. About 0.6 to 0.9 for trained weights. In float32 on every device; the official code takes
    float16 on a GPU. The cosine is in the detail.
    """

    name: ClassVar[str] = "clipscore"
    prefix: ClassVar[str] = "A photo depicts "

    weights: str = "clip-b-32"

    def artifacts(self) -> dict[str, str]:
        """A CLIP as open_clip publishes it: a folder with configuration and safetensors."""
        return {"weights": self.weights}

    def load(self, device: str) -> openclip.OpenClip:
        """The CLIP of the folder."""
        return openclip.opened(artifacts.find(self.weights), device)

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """2.5 · max(cos, 0), and cos."""
        cosine = self.cosines(embedded, prompts, self.prefix)
        return 2.5 * cosine.clamp_min(0), {"cosine": cosine}


@dataclass(frozen=True)
class CLIPScoreB32(CLIPScore):
    """100 · cos of image and prompt, nothing before the prompt, ViT-B/32: the convention of torchmetrics.

    torchmetrics sets a negative *mean* to 0; a pair's value keeps its sign here. Texts go through OpenAI's tokenizer
    and images through Pillow, as OpenAI published its models; torchmetrics takes the processor of transformers,
    which differs on HTML entities and curly quotes, and by a grey level or two. About 20 to 35 for trained weights.
    """

    name: ClassVar[str] = "clipscore-b32"
    prefix: ClassVar[str] = ""

    def rate(self, embedded: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """100 · cos, and cos."""
        cosine = self.cosines(embedded, prompts, self.prefix)
        return 100 * cosine, {"cosine": cosine}


@dataclass(frozen=True)
class CLIPScoreB16(CLIPScoreB32):
    """As `clipscore-b32`, with ViT-B/16."""

    name: ClassVar[str] = "clipscore-b16"

    weights: str = "clip-b-16"


@dataclass(frozen=True)
class CLIPScoreL14(CLIPScoreB32):
    """As `clipscore-b32`, with ViT-L/14, torchmetrics' default and what most papers on noise report."""

    name: ClassVar[str] = "clipscore-l14"

    weights: str = "clip-l-14"


@dataclass(frozen=True)
class CLIPScoreB16Lowest(CLIPScoreB16):
    """As `clipscore-b16`, averaged over the `lowest` values of a cell alone: how bad the bad images are.

    Mannering et al. (NLG, arXiv 2509.13936) report the 1000 lowest.
    """

    name: ClassVar[str] = "clipscore-b16-lowest"
    aggregation: ClassVar[str] = "mean_of_lowest"

    lowest: int = 1000

    def __post_init__(self) -> None:
        if self.lowest < 1:
            raise ValueError(f"lowest must be at least 1, got {self.lowest}")
