"""GenEval's correctness in the shapes world, judged by the detector that knows its shapes and colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np

from harness.metrics.base import SampleMetric, Scores
from harness.metrics.clip import must_pair, stills
from harness.metrics.geneval_rules import clauses
from harness.prompts import Prompt


@dataclass(frozen=True)
class GenEvalShapes(SampleMetric):
    """1 where the image shows what the prompt's truth demands, else 0; higher is better.

    The rules are GenEval's (Ghosh et al. 2023, arXiv:2310.11513) on the detections of `harness.shapes.detector`;
    the overall value is the unweighted mean of the tasks' shares. A row's detail holds its task as `tag`.
    """

    name: ClassVar[str] = "geneval-shapes"
    version: ClassVar[int] = 1
    aggregation: ClassVar[str] = "mean_of_groups"
    only_stills: ClassVar[bool] = True

    def content(self) -> dict[str, Any]:
        """The hash of the detector's source: it has no weights, its code is what decides."""
        folder = files("harness.shapes")
        sources = ("detector.py", "scene.py")
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sources}

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """Judges each still; NaN, with the reason in the detail, where the prompt's truth says nothing to judge."""
        from harness.shapes.detector import detect, judge

        must_pair(images, prompts)
        values = np.full(len(prompts), np.nan)
        details: list[dict[str, Any]] = []
        for i, (image, prompt) in enumerate(zip(stills(images, self.name), prompts, strict=True)):
            truth = prompt.truth or {}
            if not clauses(truth):
                details.append({"reason": f"prompt {prompt.id!r} carries no truth to judge by"})
                continue
            correct, detail = judge({"include": []} | truth, detect(image))
            values[i] = float(correct)
            details.append({"tag": truth.get("tag"), **_as_dict(detail)})
        return Scores(values, details)


def _as_dict(detail: Any) -> dict[str, Any]:
    return detail if isinstance(detail, dict) else {"reason": detail} if detail else {}
