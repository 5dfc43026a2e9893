"""What the metrics on features of a network share: weights by name, and a reference that the user names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.errors import HarnessError
from harness.metrics.base import DistributionMetric, Reference
from harness.metrics.reference import find_reference, read_reference
from harness.registry import HOW


@dataclass(frozen=True)
class FeatureMetric(DistributionMetric):
    """A distribution metric on features of the network in the artifact `weights`.

    `statistics` is a reference file, or a name given to `harness reference`; `statistics_preprocessing` tells of one
    that does not say it with which preprocessing it was made. What was made with other weights or another
    preprocessing than the metric's is refused.
    """

    compares: ClassVar[bool] = True  # with a reference
    needs_features: ClassVar[bool] = False  # of the reference; moments are not enough

    weights: str = ""
    statistics: str | None = field(default=None, metadata=HOW)  # known by its content
    statistics_preprocessing: str | None = field(default=None, metadata=HOW)

    def artifacts(self) -> dict[str, str]:
        """The network's weights."""
        return {"weights": self.weights}

    def missing(self) -> str | None:
        """The weights and the reference that are not here, or why they cannot be used."""
        problems = [super().missing()]
        try:
            if problems == [None] or self.statistics is None:
                self.reference()
            elif self.compares:  # without the weights it cannot be read, but missed
                find_reference(self.statistics, self.extractor, self.name)
        except HarnessError as error:
            problems.append(str(error))
        return "; ".join(problem for problem in problems if problem) or None

    def extractor_content(self) -> dict[str, Any]:
        """The weights' hash and the preprocessing."""
        return {**super().extractor_content(), "preprocessing": self.preprocessing}

    @property
    def extractor_digest(self) -> str:
        """The weights' hash alone: a reference tells its preprocessing beside it, and so what differs is said."""
        return str(super().extractor_content()["weights"])

    def reference(self) -> Reference | None:
        """What `statistics` names; None where the metric needs none."""
        if not self.compares:
            return None
        if self.statistics is None:
            raise HarnessError(
                f"{self.name} compares with reference images, and none are named: `harness reference NAME --images "
                f"FOLDER --metric {self.name}{' --features' * self.needs_features}` makes a reference of them; then "
                f"write '{self.name}: {{statistics: NAME}}' under metrics, or the path of a published file for NAME"
            )
        path = find_reference(self.statistics, self.extractor, self.name)
        return read_reference(
            path, self.extractor_digest, preprocessing=self.preprocessing, stated=self.statistics_preprocessing
        )
