"""The detector that knows the truth of a 64x64 image, and GenEval's verdict on what it finds. numpy and scipy alone.

Border median as background; whatever differs from it, in connected pieces; colour by the majority of a piece's inner
pixels (a piece of two colours is cut in two, unless as a whole it has one clear shape: then it has no one colour);
shape by the nearest of drawn templates stretched to its box. What is too far from every template, or as near to two,
has no class: the detector is not lenient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZE, Box, distance, extent, relations

MIN_AREA = 24.0  # pixels of coverage; the smallest drawn object (a ring of radius 7) has 68
FIT = 0.30  # largest accepted distance to a template: summed |difference| of coverage over their mean area
MARGIN = 0.05  # the second-best shape must be this much further
_PALETTE = np.array(list(COLOURS.values()), float)
_NAMES = tuple(COLOURS)
_GROUND = np.array(list(BACKGROUNDS.values()), float)
GRID = 20


@dataclass(frozen=True)
class Detection:
    """One object found: class and colour (None when undecidable), its box in pixels, covered area, score."""

    shape: str | None
    colour: str | None
    box: Box
    area: float
    score: float = 1.0


@cache
def _templates() -> NDArray[np.float64]:
    """Coverage of each shape stretched to fill a GRID x GRID box, box-filtered: [6, GRID, GRID]."""
    over = 8
    rows = []
    for shape in SHAPES:
        x0, y0, x1, y1 = extent(shape)
        steps = (np.arange(GRID * over) + 0.5) / (GRID * over)
        inside = distance(shape, (x0 + (x1 - x0) * steps)[None, :], (y0 + (y1 - y0) * steps)[:, None]) < 0
        rows.append(inside.reshape(GRID, over, GRID, over).mean((1, 3)))
    return np.array(rows)


def detect(image: NDArray[np.uint8]) -> list[Detection]:
    """Objects of one image, uint8 [64, 64, 3], largest first."""
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image of {SIZE}x{SIZE}x3, got {image.dtype} {image.shape}")
    pixels = image.astype(float)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, 0)
    offset = np.abs(pixels - ground).max(-1)
    front = offset > 40
    labels, _ = ndimage.label(front)
    found: list[Detection] = []
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[window] == number
        if mask.sum() < MIN_AREA:
            continue
        y0, x0 = max(window[0].start - 2, 0), max(window[1].start - 2, 0)
        y1, x1 = min(window[0].stop + 2, SIZE), min(window[1].stop + 2, SIZE)
        mine = labels[y0:y1, x0:x1] == number
        whole = _motley(pixels[y0:y1, x0:x1], mine, (x0, y0))
        if whole is not None:
            found.append(whole)
            continue
        for part in _cut(pixels[y0:y1, x0:x1], mine):
            found += _piece(pixels[y0:y1, x0:x1], part, labels[y0:y1, x0:x1], number, ground, (x0, y0))
    return sorted(found, key=lambda d: -d.area)


def _nearest(pixels: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(np.square(pixels[..., None, :] - _PALETTE).sum(-1).argmin(-1))


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its rim; the mask itself where nothing is left."""
    core = ndimage.binary_erosion(mask)
    return core if core.sum() >= 6 else mask


def _colours(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> list[int]:
    """The colours that hold a fair share of a piece's inner pixels."""
    votes = np.bincount(_nearest(pixels[_inner(mask)]), minlength=len(_NAMES))
    return [int(c) for c in np.flatnonzero((votes > 15) & (votes > 0.2 * votes.sum()))]


def _motley(pixels: NDArray[np.float64], mask: NDArray[np.bool_], corner: tuple[int, int]) -> Detection | None:
    """A piece of several colours that as a whole has a clear shape: one object, of no one colour."""
    if len(_colours(pixels, mask)) < 2:
        return None
    box = _box(mask.astype(float))
    shape = _shape(mask.astype(float), box)
    if shape is None:
        return None
    x, y = corner
    return Detection(shape, None, Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y), float(mask.sum()))


def _cut(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """A connected piece as one mask, or as several if its inner pixels are of several colours (touching objects)."""
    strong = _colours(pixels, mask)
    if len(strong) < 2:
        return [mask]
    near = np.square(pixels[..., None, :] - _PALETTE[strong]).sum(-1).argmin(-1)
    parts = []
    for k in range(len(strong)):
        pieces, n = ndimage.label(mask & (near == k))
        parts += [pieces == i for i in range(1, n + 1) if (pieces == i).sum() >= MIN_AREA]
    return parts


def _piece(
    pixels: NDArray[np.float64],
    mask: NDArray[np.bool_],
    labels: NDArray[np.int32],
    number: int,
    ground: NDArray[np.float64],
    corner: tuple[int, int],
) -> list[Detection]:
    """Measure one piece: its colour, its antialiased coverage, its box at half coverage, its shape."""
    core = pixels[_inner(mask)]
    names = _nearest(core)
    name = int(np.bincount(names, minlength=len(_NAMES)).argmax())
    ink = np.median(core[names == name], 0)
    own = np.square(ink - _PALETTE[name]).sum() ** 0.5
    grey = np.square(ink - _GROUND).sum(-1).min() ** 0.5
    colour = _NAMES[name] if own < 75 and own < grey and (names == name).mean() > 0.6 else None
    axis = ink - ground
    zone = ndimage.binary_dilation(mask) & ((labels == 0) | mask)
    alpha = np.clip((pixels - ground) @ axis / max(axis @ axis, 1e-9), 0, 1) * zone
    area = float(alpha.sum())
    if area < MIN_AREA:
        return []
    box = _box(alpha)
    shape = _shape(alpha, box)
    x, y = corner
    return [Detection(shape, colour, Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y), area)]


def _box(alpha: NDArray[np.float64]) -> Box:
    """Tight box: rows and columns whose strongest coverage passes a half, their outer neighbours' share added."""
    edges = []
    for profile in (alpha.max(0), alpha.max(1)):
        on = np.flatnonzero(profile >= 0.5)
        if not len(on):
            on = np.array([int(profile.argmax())])
        first, last = int(on[0]), int(on[-1])
        before = profile[first - 1] if first > 0 else 0.0
        after = profile[last + 1] if last + 1 < len(profile) else 0.0
        edges.append((first + (1 - profile[first]) - before, last + profile[last] + after))
    (x0, x1), (y0, y1) = edges
    return Box(float(x0), float(y0), float(x1), float(y1))


def _shape(alpha: NDArray[np.float64], box: Box) -> str | None:
    """The nearest template, or None when none is near or two are."""
    w, h = box.x1 - box.x0, box.y1 - box.y0
    if not 0.7 < w / max(h, 1e-9) < 1.45 or min(w, h) < 6:
        return None
    steps = (np.arange(GRID) + 0.5) / GRID
    ys, xs = np.meshgrid(box.y0 + h * steps - 0.5, box.x0 + w * steps - 0.5, indexing="ij")
    cover = ndimage.map_coordinates(alpha, [ys, xs], order=1, mode="constant")
    templates = _templates()
    gap = np.abs(templates - cover).sum((1, 2)) / (0.5 * (templates.sum((1, 2)) + cover.sum()))
    best, second = np.argsort(gap)[:2]
    if gap[best] > FIT or gap[second] - gap[best] < MARGIN:
        return None
    return SHAPES[int(best)]


def judge(truth: Mapping[str, Any], detections: Sequence[Detection]) -> tuple[bool, dict[str, Any]]:
    """GenEval's verdict: every include clause met (count, colour, position against the clause named), no exclude met.

    Returns (correct, detail); detail names the objects found and, if wrong, the reason.
    """
    found = [f"{d.colour or 'unknown'} {d.shape or 'unknown'}" for d in detections]
    matched: list[list[Detection] | None] = []
    reasons: list[str] = []
    for clause in truth["include"]:
        mine = [d for d in detections if d.shape == clause["class"]][: clause["count"]]
        good = len(mine) >= clause["count"]
        if not good:
            reasons.append(f"expected {clause['class']} >= {clause['count']}, found {len(mine)}")
        elif "color" in clause:
            right = sum(d.colour == clause["color"] for d in mine)
            good = right >= clause["count"]
            if not good:
                reasons.append(f"expected {clause['color']} {clause['class']} >= {clause['count']}, found {right}")
        if good and "position" in clause:
            relation, index = clause["position"]
            target = matched[index]
            if target is None:
                good = False
                reasons.append(f"no target for {relation}")
            else:
                good = all(relation in relations(a.box, b.box) for a in mine for b in target)
                if not good:
                    reasons.append(f"expected {clause['class']} {relation} target")
        matched.append(mine if good else None)
    for clause in truth.get("exclude", ()):
        number = sum(d.shape == clause["class"] for d in detections)
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']} < {clause['count']}, found {number}")
    return not reasons, {"found": found, "reasons": reasons}
