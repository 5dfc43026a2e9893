"""The kinds of metric. A metric's name carries its version; its digest also its weights and preprocessing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from harness import artifacts, flops
from harness.errors import HarnessError
from harness.frechet import Jackknife, factor_of
from harness.identity import digest
from harness.prompts import Prompt
from harness.weights import is_trained


@dataclass
class Scores:
    """One value a row (float64 `[B]`, NaN where there is none) and a detail a row for the Parquet file."""

    values: np.ndarray
    details: list[dict[str, Any]] = field(default_factory=list)


class Metric(ABC):
    """Common to all kinds. Subclasses are dataclasses; their fields are the YAML's parameters.

    `open()` loads weights onto a device; nothing is loaded before it, so that `check` and `list` are quick.
    """

    name: ClassVar[str]
    kind: ClassVar[str]  # "sample", "paired" or "distribution"
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True
    # How rows become a cell's value. "mean_of_groups": the unweighted mean of the categories' means;
    # "mean_of_lowest": the mean of the lowest values, as many as the metric's field `lowest: int` says.
    aggregation: ClassVar[str] = "mean"
    only_stills: ClassVar[bool] = False  # not defined for clips: no judge of them, and no metric of clips alone
    batch = 32  # images a worker gives it at once; a field of this name (with metadata=HOW) lets the YAML say it

    def artifacts(self) -> dict[str, str]:
        """The parameters that name weights (`harness.artifacts`) and what they name: `{"weights": "hpsv2.1"}`."""
        return {}

    def open(self, device: str = "cpu") -> None:  # noqa: B027 - not every metric has weights
        """Loads what scoring needs; called once in the process that scores."""

    def loaded(self, attribute: str) -> Any:
        """What `open` has kept under a name.

        Raises:
            HarnessError: the metric is not open.
        """
        if not hasattr(self, attribute):
            raise HarnessError(f"{self.name} is not open: call open(device) first, or use load_metric")
        return getattr(self, attribute)

    def missing(self) -> str | None:
        """None when `open` can succeed here; otherwise what is missing and the command that gets it."""
        return artifacts.missing(self.artifacts().values())

    def content(self) -> dict[str, Any]:
        """What beside name, version and parameters decides the value: hashes of weights, preprocessing.

        A key that is also a parameter replaces it in the metric's digest: the same weights elsewhere are the same.
        """
        return {role: artifacts.content(name) for role, name in self.artifacts().items()}

    @property
    def trained(self) -> bool:
        """False where weights say of themselves that they are random."""
        return self.missing() is not None or all(is_trained(artifacts.find(n)) for n in self.artifacts().values())


# What an image is judged by where only the operations of judging matter; with the truth that GenEval asks for.
EXAMPLE = Prompt("", "a photo of a dog", truth={"tag": "single_object", "include": [{"class": "dog", "count": 1}]})


class SampleMetric(Metric):
    """A value for each image."""

    kind = "sample"

    @abstractmethod
    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """Scores uint8 `[B, F, H, W, 3]` with the official preprocessing."""

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same value, `[B]`, from float `[B, F, H, W, 3]` in [0, 1], gradients kept (for judges)."""
        raise NotImplementedError(f"{self.name} has no gradient")

    @property
    def has_gradient(self) -> bool:
        """Whether the metric has a `differentiable` of its own."""
        return type(self).differentiable is not SampleMetric.differentiable

    def forget(self) -> None:
        """Drops what has been kept of texts; they are computed anew."""

    def flops(
        self, part: Literal["text", "image", "gradient"], shape: tuple[int, ...], device: str | torch.device = "cpu"
    ) -> float:
        """Floating-point operations (`harness.flops`) of judging, counted once for images of `shape` (F, H, W, 3).

        "image": of scoring an image; "text": what the first image of a prompt costs more, where the metric keeps what
        it has made of a text; "gradient": of the way back from the value to an image that lies on `device`. NaN where
        the metric cannot score a black image.
        """

        def count() -> float:
            black = np.zeros((1, *shape), dtype=np.uint8)
            self.forget()
            first, next_ = (flops.of_forward(lambda: self.score(black, [EXAMPLE])) for _ in range(2))
            if part == "gradient":
                shown = torch.zeros(black.shape, device=device)
                return flops.of_backward(lambda images: self.differentiable(images, [EXAMPLE]), shown)
            return next_ if part == "image" else first - next_

        kept: dict[Any, float] = vars(self).setdefault("_flops", {})
        if (part, shape) not in kept:
            try:
                kept[part, shape] = count()
            except Exception:  # another's metric; that its cost is unknown must not cost the images
                kept[part, shape] = float("nan")
        return kept[part, shape]


@dataclass(frozen=True)
class PairedMetric(Metric):
    """A value for each image and its reference image.

    In a benchmark the reference is the image of the same model, prompt and seed by the method `against`, or, where
    that is empty, the image that the prompt itself names.
    """

    kind = "paired"

    against: str = ""

    @abstractmethod
    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The values, float64 `[N]`, of stills, uint8 `[N, H, W, 3]`, and their references, of the same shape."""

    def score_pairs(self, images: np.ndarray, references: np.ndarray) -> Scores:
        """Scores uint8 `[B, F, H, W, 3]` against references of the same shape.

        The value of a clip is the mean over its frames; its detail holds their values (`frames`).

        Raises:
            ValueError: the shapes differ, or the metric is not defined for them.
        """
        if images.ndim != 5 or images.shape[-1] != 3:
            raise ValueError(f"{self.name}: images must be [B, F, H, W, 3], got {list(images.shape)}")
        if images.shape != references.shape:
            raise ValueError(f"{self.name}: {_said(images)} cannot be compared with {_said(references)}")
        flat, others = (np.reshape(x, (-1, *x.shape[2:])) for x in (images, references))
        parts = [
            self.compare(flat[i : i + self.batch], others[i : i + self.batch]) for i in range(0, len(flat), self.batch)
        ]
        values = np.concatenate([np.zeros(0), *parts]).reshape(images.shape[:2])
        details = [{"frames": row.tolist()} if len(row) > 1 else {} for row in values]
        return Scores(values.mean(axis=1, dtype=np.float64), details)


def _said(images: np.ndarray) -> str:
    """The size of images, for people."""
    frames, height, width = images.shape[1:4]
    return f"an image of {width} x {height} pixels" + (f" and {frames} frames" if frames > 1 else "")


@dataclass(frozen=True)
class Reference:
    """What a cell's features are compared with: moments (float64), and features where a metric needs them.

    `preprocessing` and `sha256` say how it was made; statistics of another preprocessing are refused.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    features: np.ndarray | None
    preprocessing: str
    sha256: str

    @cached_property
    def factor(self) -> np.ndarray:
        """The covariance's factor, which costs as much as a comparison with it."""
        return factor_of(self.covariance)


class DistributionMetric(Metric):
    """A value for a whole cell, from stored features."""

    kind = "distribution"
    higher_is_better = False
    lowest: ClassVar[float] = 0.0  # no value lies below it
    highest: ClassVar[float] = float("inf")  # nor above this one
    extractor: ClassVar[str]  # features of one extractor are stored once, whatever metrics use them
    preprocessing: ClassVar[str]  # what is done to an image before the network: `reference.PREPROCESSINGS`

    def extractor_content(self) -> dict[str, Any]:
        """What decides the features, wherever it lies: hashes of weights, preprocessing. Not the reference."""
        return super().content()

    @property
    def extractor_digest(self) -> str:
        """The digest of `extractor_content`, which a reference carries: one made by other weights is refused."""
        return digest(self.extractor_content())

    def content(self) -> dict[str, Any]:
        """The extractor's content and the reference's hash."""
        reference = self.reference()
        return self.extractor_content() | ({} if reference is None else {"reference": reference.sha256})

    @property
    def shelf(self) -> str:
        """Where a run keeps the features: the extractor's name and its content, so that features of retrained
        weights are never mixed with older ones."""
        return f"{self.extractor}-{digest(self.extractor_content())[:8]}"

    @abstractmethod
    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[B, F, H, W, 3]` to float32 `[B, D]`."""

    @abstractmethod
    def reference(self) -> Reference | None:
        """The statistics to compare with; None where the metric needs none."""

    @abstractmethod
    def distance(self, features: np.ndarray, reference: Reference | None) -> float:
        """The metric of float32 `[N, D]` features, in float64.

        Raises ValueError where N is too small, or the reference holds moments only and features are needed.
        """

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference | None) -> np.ndarray:
        """The distances with the rows of each group 0 ... g-1 left out, float64 `[g]`."""
        groups = range(int(group.max()) + 1)
        return np.array([self.distance(features[group != k], reference) for k in groups], dtype=np.float64)

    def jackknife(self, features: np.ndarray, clusters: Sequence[Any], reference: Reference | None) -> Jackknife:
        """`distance` and what its intervals need, for callers that compare one cell with several: `a - b`.

        Raises ValueError as `distance` does.
        """
        return Jackknife.of(
            features, clusters,
            distance=lambda x: self.distance(x, reference),
            without=lambda x, group: self.without(x, group, reference),
        )

    def interval_of(self, found: Jackknife, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of a distance, within what the metric can be."""
        low, high = found.interval(confidence)
        return max(low, self.lowest), min(high, self.highest)

    def interval(
        self, features: np.ndarray, clusters: Sequence[Any], reference: Reference | None, confidence: float = 0.95
    ) -> tuple[float, float]:
        """The interval of `distance`, prompts (`clusters`, one a row) left out in groups: `harness.frechet`.

        (NaN, NaN) where there are too few prompts for one.
        """
        return self.interval_of(self.jackknife(features, clusters, reference), confidence)
