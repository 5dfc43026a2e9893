"""GenEval's rules: which detections count, and whether they meet the clauses of a prompt's metadata.

Ghosh et al. 2023 (arXiv:2310.11513); outcomes equal github.com/djghosh13/geneval, evaluation/evaluate_images.py at
af4902f with its default options. All arithmetic is float32, as there: a score of float32 0.3 is not above 0.3.

The shapes world has its own verdict (`harness.shapes.detector.judge`): its detections have no scores to sort, cut
off and cap by, and know their colour. The clauses mean the same, which a test holds both to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # a detection counts strictly above
AT_MOST = 16  # detections of a class
MARGIN = 0.1  # of the two objects' sizes, by which each axis of their offset is shortened
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# COCO's 80 classes in COCO's order. GenEval's prompts call three of them differently from COCO and `transformers`
# (64 mouse, 65 remote, 66 keyboard), so a detector's classes are known by their index, never by their name.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    Attributes:
        label: index into `CLASSES`.
        score: confidence, 0 to 1.
        box: (left, top, right, bottom) in pixels, right and bottom exclusive.
        mask: bool `[H, W]` of the image's size, or None from a detector without masks.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None


# Colours of objects: (detections, name of their class) to a name out of COLOURS for each.
ColoursOf = Callable[[Sequence[Detection], str], list[str]]


def threshold(truth: Mapping[str, Any]) -> float:
    """The score above which a detection counts for this prompt."""
    return COUNTING_THRESHOLD if truth.get("tag") == "counting" else THRESHOLD


def clauses(truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that a truth demands and forbids; nothing where it speaks of something else, as an orbit's does."""
    return [*truth.get("include", ()), *truth.get("exclude", ())]


def kept(detections: Sequence[Detection], above: float) -> dict[str, list[Detection]]:
    """The detections that count, by class, most confident first, at most 16 of a class; no overlap is removed.

    Of equal scores the later comes first, as in numpy's insertion sort turned round. The official order of equal
    scores among more than 16 of a class depends on numpy's version and the processor.
    """
    found: dict[str, list[Detection]] = {}
    for label, name in enumerate(CLASSES):
        mine = [d for d in detections if d.label == label]
        scores = np.array([d.score for d in mine], np.float32)
        order = np.argsort(scores, kind="stable")[::-1]
        best = [mine[i] for i in order if scores[i] > np.float32(above)]
        if best:
            found[name] = best[:AT_MOST]
    return found


def relations(a: ArrayLike, b: ArrayLike) -> list[str]:
    """How box A lies to box B: none, one or two of "left of", "right of", "above", "below".

    Each axis of the offset of the centres is shortened by a tenth of both sizes; what is left, over the length of
    the whole offset, must exceed a half.
    """
    corners_a, corners_b = (np.asarray(box, np.float32).reshape(2, 2) for box in (a, b))
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    left_over = np.maximum(np.abs(offset) - MARGIN * sizes, 0) * np.sign(offset)
    if np.all(np.abs(left_over) < 1e-3):
        return []
    x, y = left_over / np.linalg.norm(offset)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [name for name, true in holds.items() if true]


def judge(truth: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], colours_of: ColoursOf) -> list[str]:
    """Why an image is wrong, in the official evaluator's words; an empty list where it is correct.

    An include clause is met if its class is there `count` times and the `count` most confident of them (no others)
    have the clause's colour and, every one to every object of the earlier clause named, its position. An exclude
    clause is broken by `count` or more of its class.

    Args:
        truth: GenEval's metadata: `include` and `exclude`, lists of {class, count, color, position}.
        objects: what `kept` gives.
        colours_of: classifies objects that a clause with a colour is about.

    Raises:
        IndexError: a position refers to a clause that has not come yet.
    """
    reasons: list[str] = []
    met: list[Sequence[Detection] | None] = []  # by include clause: its objects, None where it is not met
    for clause in truth.get("include", ()):
        reason, mine = _include(clause, objects, colours_of, met)
        reasons += [reason] if reason else []
        met.append(None if reason else mine)
    for clause in truth.get("exclude", ()):
        name, count = clause["class"], clause["count"]
        number = len(objects.get(name, ()))
        if number >= count:
            reasons.append(f"expected {name}<{count}, found {number}")
    return reasons


def _include(
    clause: Mapping[str, Any],
    objects: Mapping[str, Sequence[Detection]],
    colours_of: ColoursOf,
    met: Sequence[Sequence[Detection] | None],
) -> tuple[str | None, Sequence[Detection]]:
    """Why a clause is not met, or None, and the objects that it is about."""
    name, count = clause["class"], clause["count"]
    mine = objects.get(name, ())[:count]
    if len(mine) < count:
        return f"expected {name}>={count}, found {len(mine)}", mine
    if "color" in clause:
        wanted, seen = clause["color"], colours_of(mine, name)
        if seen.count(wanted) < count:
            counts = ", ".join(f"{seen.count(colour)} {colour}" for colour in COLOURS if colour in seen)
            return f"expected {wanted} {name}>={count}, found {seen.count(wanted)} {wanted}; and {counts}", mine
    if "position" in clause:
        relation, index = clause["position"]
        targets = met[index]
        if targets is None:
            return f"no target for {name} to be {relation}", mine
        for one in mine:
            for target in targets:
                true = relations(one.box, target.box)
                if relation not in true:
                    return f"expected {name} {relation} target, found {' and '.join(true)} target", mine
    return None, mine
