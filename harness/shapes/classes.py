"""The classes of the shapes world: one for each colour and shape, 36, for class-conditional models.

An image of a class shows one to four objects (each number as often), all of its colour and shape, on one of the
renderer's three backgrounds (each as often): the same layouts and sizes as a caption "two red circles" gets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.shapes.data import run_jobs
from harness.shapes.grammar import Caption, Group, draw
from harness.shapes.scene import COLOURS, PLURALS, SHAPES, Scene, render

CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)  # label = 6 * colour + shape
PART = 5_000
TRAINING_SEED, REFERENCE_SEED = 36, 3636


def class_text(label: int) -> str:
    """A class in words: "red circles"."""
    colour, shape = CLASSES[label]
    return f"{colour} {PLURALS[shape]}"


def class_truth(label: int) -> dict[str, Any]:
    """What an image of a class must show, as GenEval's metadata: its coloured shape, at most four of it, no other."""
    colour, shape = CLASSES[label]
    none = [{"class": other, "count": 5 if other == shape else 1} for other in SHAPES]
    return {"tag": shape, "include": [{"class": shape, "count": 1, "color": colour}], "exclude": none}


def class_scene(label: int, rng: np.random.Generator) -> Scene:
    """A random scene of a class."""
    colour, shape = CLASSES[label]
    while True:
        scene = draw(Caption("colors", (Group(shape, int(rng.integers(1, 5)), colour),)), rng)
        if scene is not None:
            return scene


def class_images(number: int, *seed: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Labels and renders, uint8 [64, 64, 3]; the classes in turn, always the same for a seed."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        label = i % len(CLASSES)
        yield label, render(class_scene(label, rng))


def part_folders(folder: str | Path, images: int) -> list[Path]:
    """The folders of the first ``images`` training images: full parts, or (for a try) one small one."""
    if images < 1 or (images > PART and images % PART):
        raise ValueError(f"the number of training images must be a multiple of {PART} (or less than it), not {images}")
    if images < PART:
        return [Path(folder) / f"classes-000-first-{images}"]
    return [Path(folder) / f"classes-{p:03d}" for p in range(images // PART)]


def _make_part(job: tuple[str, int, int]) -> None:
    folder, part, number = job
    final = Path(folder)
    if (final / "labels.npy").exists():
        return
    final.mkdir(parents=True, exist_ok=True)
    labels, images = zip(*class_images(number, TRAINING_SEED, part), strict=True)
    np.save(final / "images.npy", np.stack(images))
    np.save(final / "labels.tmp.npy", np.array(labels))
    os.replace(final / "labels.tmp.npy", final / "labels.npy")


def make_images(folder: str | Path, images: int, processes: int = 2) -> list[Path]:
    """Draws the first ``images`` training images where they are missing; returns their part folders."""
    parts = part_folders(folder, images)
    size = min(PART, images)
    run_jobs(_make_part, [(str(f), p, size) for p, f in enumerate(parts)], processes)
    return parts
