"""The training data: a folder of rendered scenes with their captions, made once and then read by every stage.

A part file holds ``PART`` scenes drawn from a generator of its own, so parts are the same however they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.shapes.grammar import SIZES, TASKS, Caption, describe, sample_scene
from harness.shapes.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene, render

PART = 5_000
CAPTIONS = 4  # captions a scene
GROUPS = 3  # noun phrases a caption at most
FIELDS = ("shape", "count", "colour", "size", "role")
CLASSES = {"shape": 7, "count": 4, "colour": 7, "size": 3, "role": 5}  # last of all but count: none/unsaid
WORLD_SEED = 11


def _index(names: Sequence[str], name: str | None) -> int:
    return len(names) if name is None else names.index(name)


def encode_facts(caption: Caption) -> NDArray[np.uint8]:
    """A caption's content as numbers: [GROUPS * 5 + 1], the fields of each group, then the background."""
    rows = np.tile(np.array([6, 0, 6, 2, 4], np.uint8), (GROUPS, 1))
    for row, g in zip(rows, caption.groups, strict=False):
        row[:] = (
            SHAPES.index(g.shape),
            g.count - 1,
            _index(list(COLOURS), g.colour),
            _index(SIZES, g.size),
            _index(RELATIONS, g.role),
        )
    return np.append(rows.ravel(), np.uint8(_index(list(BACKGROUNDS), caption.background)))


def encode_scene(scene: Scene) -> NDArray[np.float32]:
    """A scene as numbers: [4 * 5 + 1], shape (6: none), colour, x, y, radius of each object, then the background."""
    rows = np.zeros((4, 5), np.float32)
    rows[:, 0] = 6
    for row, t in zip(rows, scene.things, strict=False):
        row[:] = SHAPES.index(t.shape), list(COLOURS).index(t.colour), t.x, t.y, t.radius
    return np.append(rows.ravel(), np.float32(list(BACKGROUNDS).index(scene.background)))


def _make_part(job: tuple[str, int]) -> None:
    folder, part = job
    final = Path(folder) / f"part-{part:03d}"
    if (final / "captions.json").exists():
        return
    rng = np.random.default_rng((WORLD_SEED, part))
    scenes = [sample_scene(rng) for _ in range(PART)]
    captions = [[describe(s, rng) for _ in range(CAPTIONS)] for s in scenes]
    final.mkdir(parents=True, exist_ok=True)
    np.save(final / "images.npy", np.stack([render(s) for s in scenes]))
    np.save(final / "scenes.npy", np.stack([encode_scene(s) for s in scenes]))
    rows = [[c.tag, c.text, encode_facts(c).tolist()] for cs in captions for c in cs]
    (final / "captions.tmp").write_text(json.dumps(rows))
    os.replace(final / "captions.tmp", final / "captions.json")


@dataclass
class World:
    """The training data in memory (images memory-mapped, a part each)."""

    images: list[NDArray[np.uint8]]  # parts of [PART, 64, 64, 3]
    scenes: NDArray[np.float32]  # [N, 21], see encode_scene
    caption_of: NDArray[np.int64]  # [N, CAPTIONS], rows of the tables below
    texts: list[str]  # distinct captions
    facts: NDArray[np.uint8]  # [texts, 16], see encode_facts
    tags: NDArray[np.int64]  # [texts], index into TASKS, or len(TASKS) for mixed

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images [n, 64, 64, 3] of the scenes with these numbers."""
        return np.stack([self.images[i // PART][i % PART] for i in index])


def load_world(folder: str | Path, scenes: int, processes: int = 2) -> World:
    """Make (where missing) and open the first ``scenes`` training scenes under ``folder``."""
    if scenes < PART or scenes % PART:
        raise ValueError(f"the number of training scenes must be a multiple of {PART}, not {scenes}")
    parts = range(scenes // PART)
    missing = [(str(folder), p) for p in parts if not (Path(folder) / f"part-{p:03d}" / "captions.json").exists()]
    if missing and processes > 1:
        with get_context("spawn").Pool(processes) as pool:
            pool.map(_make_part, missing, chunksize=1)
    else:
        for job in missing:
            _make_part(job)
    table: dict[str, int] = {}
    facts: list[Any] = []
    tags: list[int] = []
    caption_of: list[int] = []
    for p in parts:
        for tag, text, fact in json.loads((Path(folder) / f"part-{p:03d}" / "captions.json").read_text()):
            row = table.setdefault(text, len(table))
            if row == len(facts):
                facts.append(fact)
                tags.append(TASKS.index(tag) if tag in TASKS else len(TASKS))
            caption_of.append(row)
    return World(
        images=[np.load(Path(folder) / f"part-{p:03d}" / "images.npy", mmap_mode="r") for p in parts],
        scenes=np.concatenate([np.load(Path(folder) / f"part-{p:03d}" / "scenes.npy") for p in parts]),
        caption_of=np.array(caption_of, np.int64).reshape(-1, CAPTIONS),
        texts=list(table),
        facts=np.array(facts, np.uint8),
        tags=np.array(tags, np.int64),
    )
