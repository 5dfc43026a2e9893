"""The kinds of metric. A metric's name carries its version; its digest also its weights and preprocessing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from harness import artifacts
from harness.frechet import jackknife_difference, jackknife_interval, prompt_groups
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
    aggregation: ClassVar[str] = "mean"  # "mean_of_groups": the unweighted mean of the categories' means
    def artifacts(self) -> dict[str, str]:
        """The parameters that name weights (`harness.artifacts`) and what they name: `{"weights": "hpsv2.1"}`."""
        return {}

    def open(self, device: str = "cpu") -> None:  # noqa: B027 - not every metric has weights
        """Loads what scoring needs; called once in the process that scores."""

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


class PairedMetric(Metric):
    """A value for each image and its reference image."""

    kind = "paired"

    @abstractmethod
    def score_pairs(self, images: np.ndarray, references: np.ndarray) -> Scores:
        """Scores uint8 `[B, F, H, W, 3]` against references of the same shape."""


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


class DistributionMetric(Metric):
    """A value for a whole cell, from stored features."""

    kind = "distribution"
    higher_is_better = False
    lowest: ClassVar[float] = 0.0  # no value lies below it
    extractor: ClassVar[str]  # features of one extractor are stored once, whatever metrics use them

    @property
    def shelf(self) -> str:
        """Where a run keeps the features: the extractor's name and its content, so that features of retrained
        weights are never mixed with older ones."""
        content = {key: value for key, value in self.content().items() if key != "reference"}
        return f"{self.extractor}-{digest(content)[:8]}"

    @abstractmethod
    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[B, F, H, W, 3]` to float32 `[B, D]`."""

    @abstractmethod
    def reference(self) -> Reference:
        """The statistics to compare with."""

    @abstractmethod
    def distance(self, features: np.ndarray, reference: Reference) -> float:
        """The metric of float32 `[N, D]` features, in float64. Raises ValueError where N is too small."""

    def without(self, features: np.ndarray, group: np.ndarray, reference: Reference) -> np.ndarray:
        """The distances with the rows of each group 0 ... g-1 left out, float64 `[g]`."""
        groups = range(int(group.max()) + 1)
        return np.array([self.distance(features[group != k], reference) for k in groups], dtype=np.float64)

    def interval(
        self, features: np.ndarray, clusters: Sequence[Any], reference: Reference, confidence: float = 0.95
    ) -> tuple[float, float]:
        """The interval of `distance`, prompts (`clusters`, one a row) left out in groups: `harness.frechet`.

        (NaN, NaN) where there are too few prompts for one.
        """
        group = prompt_groups(clusters)
        if group.max(initial=0) < 1:
            return float("nan"), float("nan")
        try:
            left_out = self.without(features, group, reference)
        except ValueError:  # too few rows are left
            return float("nan"), float("nan")
        low, high = jackknife_interval(self.distance(features, reference), left_out, np.bincount(group), confidence)
        return max(low, self.lowest), high

    def difference(
        self,
        first: tuple[np.ndarray, Sequence[Any]],
        second: tuple[np.ndarray, Sequence[Any]],
        reference: Reference,
    ) -> tuple[float, float, float]:
        """The distance of `first` minus that of `second`, paired by prompt, with its interval: (value, low, high).

        Each side is (features, the prompt of each row). Raises ValueError where their prompts differ.
        """

        def statistic(features: np.ndarray, group: np.ndarray) -> tuple[float, np.ndarray]:
            return self.distance(features, reference), self.without(features, group, reference)

        return jackknife_difference(statistic, first, second)
