"""The training data: a folder of rendered scenes with their captions, made once and then read by every stage.

A part file holds ``PART`` scenes drawn from a generator of its own, so parts are the same however they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.shapes.grammar import SIZES, TASKS, Caption, Group, describe, sample_scene
from harness.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    LARGE,
    RELATIONS,
    SHAPES,
    SMALL,
    Box,
    Scene,
    extent,
    relations,
    render,
)

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


def decode_facts(facts: np.ndarray) -> Caption:
    """A plain caption of ``encode_facts``'s numbers, "a photo of ..."."""
    groups = []
    for g in facts[:-1].reshape(GROUPS, len(FIELDS)):
        if g[0] < 6:
            colour = list(COLOURS)[g[2]] if g[2] < 6 else None
            size = ("small", "large")[g[3]] if g[3] < 2 else None
            groups.append(Group(SHAPES[g[0]], int(g[1]) + 1, colour, size, RELATIONS[g[4]] if g[4] < 4 else None))
    return Caption("mixed", tuple(groups), list(BACKGROUNDS)[facts[-1]] if facts[-1] < 3 else None)


def truth_table(scenes: np.ndarray, facts: np.ndarray) -> np.ndarray:
    """Which captions are true of which scenes, and name all that is there: scenes [n, 21], facts [m, 16] to [n, m]."""
    things = scenes[:, :-1].reshape(-1, 4, 5)
    shape, colour, radius = things[..., 0].astype(int), things[..., 1].astype(int), things[..., 4]
    table = np.zeros((len(facts), len(scenes)), bool)
    count = np.stack([(shape == s).sum(1) for s in range(6)], 1)
    boxes = (
        np.array([extent(s) for s in SHAPES] + [(0, 0, 0, 0)])[shape] * radius[..., None] + things[..., [2, 3, 2, 3]]
    )
    for j, fact in enumerate(facts):
        groups = fact[:-1].reshape(GROUPS, len(FIELDS)).astype(int)
        groups = groups[groups[:, 0] < 6]
        want = np.zeros(6, int)
        want[groups[:, 0]] = groups[:, 1] + 1
        good = (count == want).all(1)
        if fact[-1] < 3:
            good &= scenes[:, -1] == fact[-1]
        for g in groups:
            mine = shape == g[0]
            if g[2] < 6:
                good &= (~mine | (colour == g[2])).all(1)
            if g[3] < 2:
                fits = radius <= SMALL if g[3] == 0 else radius >= LARGE
                good &= (~mine | fits).all(1)
        if groups[0, 4] < 4:
            for i in np.flatnonzero(good):
                a, b = (Box(*boxes[i, int(np.flatnonzero(shape[i] == g[0])[0])]) for g in groups[:2])
                good[i] = RELATIONS[groups[0, 4]] in relations(a, b)
        table[j] = good
    return table.T


def scene_roles(scenes: np.ndarray) -> np.ndarray:
    """The relations that each object of a two-object scene has to the other: bool [n, 4 objects, 4 relations]."""
    roles = np.zeros((len(scenes), 4, len(RELATIONS)), bool)
    for i, scene in enumerate(scenes[:, :-1].reshape(-1, 4, 5)):
        if scene[1, 0] == 6 or scene[2, 0] != 6:
            continue
        boxes = [Box(*(np.array(extent(SHAPES[int(t[0])])) * t[4] + t[[2, 3, 2, 3]])) for t in scene[:2]]
        for k in (0, 1):
            for name in relations(boxes[k], boxes[1 - k]):
                roles[i, k, RELATIONS.index(name)] = True
    return roles


def part_folders(folder: str | Path, scenes: int) -> list[Path]:
    """The part folders of the first ``scenes`` scenes: full parts, or (for a try) one small one."""
    if scenes < 1 or (scenes > PART and scenes % PART):
        raise ValueError(f"the number of training scenes must be a multiple of {PART} (or less than it), not {scenes}")
    if scenes < PART:
        return [Path(folder) / f"part-000-first-{scenes}"]
    return [Path(folder) / f"part-{p:03d}" for p in range(scenes // PART)]


def _make_part(job: tuple[str, int, int]) -> None:
    folder, part, number = job
    final = Path(folder)
    if (final / "captions.json").exists():
        return
    rng = np.random.default_rng((WORLD_SEED, part))
    scenes = [sample_scene(rng) for _ in range(number)]
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

    images: list[NDArray[np.uint8]]  # parts of [n, 64, 64, 3]
    scenes: NDArray[np.float32]  # [N, 21], see encode_scene
    caption_of: NDArray[np.int64]  # [N, CAPTIONS], rows of the tables below
    texts: list[str]  # distinct captions
    facts: NDArray[np.uint8]  # [texts, 16], see encode_facts
    tags: NDArray[np.int64]  # [texts], index into TASKS, or len(TASKS) for mixed

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images [n, 64, 64, 3] of the scenes with these numbers."""
        size = len(self.images[0])
        return np.stack([self.images[i // size][i % size] for i in index])


def run_jobs(do: Callable[[Any], None], jobs: Sequence[Any], processes: int) -> None:
    """Does every job, in fresh processes side by side where there are several of both."""
    if processes > 1 and len(jobs) > 1:
        with get_context("spawn").Pool(processes) as pool:
            pool.map(do, jobs, chunksize=1)
    else:
        for job in jobs:
            do(job)


def load_world(folder: str | Path, scenes: int, processes: int = 2) -> World:
    """Make (where missing) and open the first ``scenes`` training scenes under ``folder``."""
    parts = part_folders(folder, scenes)
    size = min(PART, scenes)
    missing = [(str(f), p, size) for p, f in enumerate(parts) if not (f / "captions.json").exists()]
    run_jobs(_make_part, missing, processes)
    table: dict[str, int] = {}
    facts: list[Any] = []
    tags: list[int] = []
    caption_of: list[int] = []
    for p in parts:
        for tag, text, fact in json.loads((p / "captions.json").read_text()):
            row = table.setdefault(text, len(table))
            if row == len(facts):
                facts.append(fact)
                tags.append(TASKS.index(tag) if tag in TASKS else len(TASKS))
            caption_of.append(row)
    return World(
        images=[np.load(p / "images.npy", mmap_mode="r") for p in parts],
        scenes=np.concatenate([np.load(p / "scenes.npy") for p in parts]),
        caption_of=np.array(caption_of, np.int64).reshape(-1, CAPTIONS),
        texts=list(table),
        facts=np.array(facts, np.uint8),
        tags=np.array(tags, np.int64),
    )
