"""GenEval on natural images: is everything in the picture that the prompt asks for?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness import artifacts
from harness.metrics.base import SampleMetric, Scores
from harness.metrics.clip import must_pair, stills
from harness.metrics.geneval_rules import CLASSES, Detection, clauses, judge, kept, threshold
from harness.prompts import Prompt

# The objects of an image, uint8 [H, W, 3], whose score is above a number.
Detector = Callable[[np.ndarray, float], list[Detection]]


@dataclass(frozen=True)
class GenEval(SampleMetric):
    """1 where the image meets the prompt's truth (GenEval's metadata), else 0; higher is better.

    Ghosh et al. 2023 (arXiv:2310.11513). The rules are the official evaluator's (`geneval_rules`), so are the
    colours (`geneval_colours`); the detector is a subclass's. Figures of different detectors cannot be compared,
    so its id is part of the metric's name. A class of your own with another `detector` (an mmdetection, say) is
    named in a benchmark as `package.module:Class`.

    The overall value is the unweighted mean of the tags' shares of correct images, the prompts' category being
    their tag. A row's detail holds the tag, the reasons why the image is wrong, in the evaluator's words, and the
    detections of the classes in question.

    `clip` names a CLIP in open_clip's layout; the official one is OpenAI's ViT-L-14.
    """

    version: ClassVar[int] = 1
    aggregation: ClassVar[str] = "mean_of_groups"
    only_stills: ClassVar[bool] = True

    clip: str = "clip-l-14"

    @abstractmethod
    def detector(self, device: str) -> Detector:
        """Loads the detector. It may leave out no object whose score is above the number that it is given."""

    def artifacts(self) -> dict[str, str]:
        """The weights of the colours' CLIP; a subclass adds its detector's."""
        return {"clip": self.clip}

    def open(self, device: str = "cpu") -> None:
        """Loads detector and CLIP."""
        from harness.metrics.geneval_colours import ColourClassifier
        from harness.metrics.openclip import opened

        object.__setattr__(self, "_detect", self.detector(device))
        object.__setattr__(self, "_colours", ColourClassifier(opened(artifacts.find(self.clip), device)))

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """Judges each still; NaN, with the reason in the detail, where the prompt's truth says nothing to judge."""
        must_pair(images, prompts)
        values = np.full(len(prompts), np.nan)
        details: list[dict[str, Any]] = []
        for i, (image, prompt) in enumerate(zip(stills(images, self.name), prompts, strict=True)):
            cannot = _cannot(prompt)
            if cannot is not None:
                details.append({"reason": cannot})
                continue
            reasons, detail = self._judged(image, prompt.truth or {})
            values[i] = float(not reasons)
            details.append(detail)
        return Scores(values, details)

    def _judged(self, image: np.ndarray, truth: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        above = threshold(truth)
        objects = kept(self.loaded("_detect")(image, above), above)
        reasons = judge(truth, objects, lambda found, name: self.loaded("_colours")(image, found, name))
        asked = dict.fromkeys(clause["class"] for clause in clauses(truth))
        seen = [
            {"class": name, "score": round(d.score, 4), "box": list(d.box)}
            for name in asked for d in objects.get(name, ())
        ]
        return reasons, {"tag": truth.get("tag"), "reasons": reasons, "detections": seen}


@dataclass(frozen=True)
class GenEvalMask2Former(GenEval):
    """GenEval with the Mask2Former (Swin-S, COCO instances) that `transformers` has.

    Its weights are Facebook's, not the mmdetection ones of the published figures: the same architecture from
    another training run. `weights` names a Mask2Former of COCO's 80 classes in the transformers layout.
    """

    name: ClassVar[str] = "geneval-mask2former-hf"

    weights: str = "mask2former-swin-small-coco"

    def artifacts(self) -> dict[str, str]:
        """The weights of CLIP and detector."""
        return {"clip": self.clip, "weights": self.weights}

    def detector(self, device: str) -> Detector:
        """The Mask2Former."""
        from harness.metrics.mask2former import Mask2Former

        return Mask2Former(artifacts.find(self.weights), device)


def _cannot(prompt: Prompt) -> str | None:
    """Why an image of this prompt cannot be judged, or None."""
    if prompt.truth is None or not clauses(prompt.truth):
        return f"prompt {prompt.id!r} carries no truth to judge by"
    unknown = sorted({str(clause.get("class")) for clause in clauses(prompt.truth)} - set(CLASSES))
    if unknown:
        return f"prompt {prompt.id!r} asks for what GenEval's detector does not know: {', '.join(unknown)}"
    return None
