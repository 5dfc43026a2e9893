"""The shapes world: renderer, grammar, split, prompt sets, detector."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.shapes import prompts
from harness.shapes.detector import Detection, detect, judge
from harness.shapes.grammar import (
    TASKS,
    Caption,
    Group,
    all_keys,
    allowed,
    compositions,
    describe,
    draw,
    held_out,
    prompt_captions,
    sample_scene,
)
from harness.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Box,
    Scene,
    Thing,
    extent,
    relations,
    render,
)

DATASETS = Path(__file__).parents[2] / "datasets"
KIND = dict(zip(TASKS, ("single", "pair", "count", "colour", "relation", "binding"), strict=True))


# ---------------------------------------------------------------------------------------------- renderer


def test_render_is_what_was_asked() -> None:
    image = render(Scene("white", (Thing("square", "red", 20, 30, 10),)))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert tuple(image[30, 20]) == COLOURS["red"]
    assert tuple(image[0, 0]) == BACKGROUNDS["white"]
    ring = render(Scene("black", (Thing("ring", "blue", 32, 32, 12),)))
    assert tuple(ring[32, 32]) == BACKGROUNDS["black"]  # the hole
    assert tuple(ring[32, 32 + 9]) == COLOURS["blue"]


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_antialiased_and_box_is_tight(shape: str) -> None:
    """Moving an object by a fraction of a pixel keeps its covered area; the box holds what is drawn."""
    areas = []
    for shift in (0.0, 0.3, 0.7):
        thing = Thing(shape, "blue", 30 + shift, 31 + shift, 11)
        image = render(Scene("black", (thing,))).astype(float)
        blue = (image[..., 2] - 15) / (225 - 15)
        areas.append(blue.sum())
        ys, xs = np.nonzero(blue > 0.5)
        box = thing.box
        assert xs.min() >= box.x0 - 1
        assert xs.max() + 1 <= box.x1 + 1
        assert abs(ys.min() - box.y0) < 2.2
        assert abs(ys.max() + 1 - box.y1) < 2.2
    assert np.ptp(areas) < 0.02 * np.mean(areas)
    assert max(np.abs(extent(shape))) <= 1.01


def test_colours_are_well_apart() -> None:
    points = np.array([*COLOURS.values(), *BACKGROUNDS.values()], float)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert gaps.min() > 80


# ---------------------------------------------------------------------------------------------- relations


def test_relations_by_genevals_rule() -> None:
    def box(x: float, y: float, w: float = 10, h: float = 10) -> Box:
        return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)

    assert relations(box(10, 30), box(40, 30)) == ["left of"]
    assert relations(box(40, 30), box(10, 30)) == ["right of"]
    assert relations(box(30, 10), box(30, 40)) == ["above"]
    assert relations(box(30, 40), box(30, 10)) == ["below"]
    assert relations(box(40, 40), box(10, 10)) == ["right of", "below"]
    assert relations(box(30, 30), box(30, 30)) == []
    assert relations(box(31, 31), box(30, 30)) == []  # within a tenth of both sizes
    assert relations(box(12.1, 30), box(10, 30)) == []  # shrunk to 0.1 of an offset of 2.1
    # exactly a half is no relation: offset (4, 0), shrunk by 0.1 * 20 = 2, over 4
    assert relations(box(34, 30), box(30, 30)) == []
    assert relations(box(34.01, 30), box(30, 30)) == ["right of"]


def test_relations_are_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        a, b = (Box(x, y, x + w, y + h) for x, y, w, h in rng.uniform(5, 40, (2, 4)))
        assert sorted(OPPOSITE[r] for r in relations(a, b)) == sorted(relations(b, a))


# ---------------------------------------------------------------------------------------------- the split


def test_training_never_holds_a_held_out_composition() -> None:
    """20,000 training scenes and their captions; and everything that is not held out does occur."""
    rng = np.random.default_rng(123)
    seen: Counter[object] = Counter()
    said: Counter[object] = Counter()
    for _ in range(20_000):
        scene = sample_scene(rng)
        keys = compositions(scene)
        assert not any(held_out(k) for k in keys), scene
        caption = describe(scene, rng)
        mine = caption.compositions()
        assert mine <= keys, (caption.text, mine - keys)
        seen.update(keys)
        said.update(mine)
    for task in TASKS:
        for key in all_keys(task):
            assert (seen[key] > 0) != held_out(key), key
    for kind in KIND.values():
        assert sum(n for k, n in said.items() if k[0] == kind) > 300, kind  # type: ignore[index]


def test_held_out_shares_and_balance() -> None:
    number = {t: (sum(map(held_out, all_keys(t))), len(all_keys(t))) for t in TASKS}
    assert number == {
        "single_object": (12, 36),
        "two_object": (3, 15),
        "counting": (6, 18),
        "colors": (6, 36),
        "position": (12, 48),
        "color_attr": (52, 252),
    }
    held = [k for t in TASKS for k in all_keys(t) if held_out(k)]
    assert Counter(k[2] for k in held if k[0] == "colour") == dict.fromkeys(SHAPES, 1)
    assert Counter(k[1] for k in held if k[0] == "colour") == dict.fromkeys(COLOURS, 1)
    assert Counter(k[1] for k in held if k[0] == "count") == dict.fromkeys(SHAPES, 1)
    assert Counter(k[2] for k in held if k[0] == "count") == {2: 2, 3: 2, 4: 2}
    assert Counter(k[2] for k in held if k[0] == "relation") == dict.fromkeys(RELATIONS, 3)
    assert Counter(s for k in held if k[0] == "pair" for s in k[1:]) == dict.fromkeys(SHAPES, 1)


# ---------------------------------------------------------------------------------------------- prompt sets


@pytest.mark.parametrize("held", [True, False])
def test_prompt_set(held: bool) -> None:
    rows = prompt_captions(held)
    assert len({c.text for _, c in rows}) == len({key for key, _ in rows}) == 240
    assert [c.tag for _, c in rows] == list(TASKS) * 40  # the first n are balanced
    for key, caption in rows:
        assert key.rpartition("-")[0] == caption.tag.replace("_", "-")
        bad = [k for k in caption.compositions() if held_out(k)]
        assert [k[0] for k in bad] == ([KIND[caption.tag]] if held else []), caption.text
        assert KIND[caption.tag] in {k[0] for k in caption.compositions()}
    used = {k for _, c in rows for k in c.compositions() if k[0] == KIND[c.tag]}
    for task in TASKS:
        some = [k for k in all_keys(task) if held_out(k) == held]
        assert len(used & set(some)) == min(len(some), 40), task


def test_prompt_files_are_remade_byte_for_byte(tmp_path: Path) -> None:
    for path in prompts.write(tmp_path):
        assert path.read_bytes() == (DATASETS / path.name).read_bytes(), path.name
    manifest = yaml.safe_load((DATASETS / "shapes.yaml").read_text())
    assert manifest["rows"] == 240
    assert manifest["columns"] == {"id": "id", "text": "prompt", "category": "category", "truth": "truth"}
    rows = [json.loads(line) for line in (DATASETS / "shapes.jsonl").read_text().splitlines()]
    assert [(r["id"], r["prompt"], r["truth"]) for r in rows] == [
        (key, c.text, c.truth()) for key, c in prompt_captions(True)
    ]


def test_truth_is_genevals_metadata() -> None:
    caption = Caption("position", (Group("star", role="left of"), Group("ring", role="right of")))
    assert caption.text == "a photo of a star left of a ring"
    assert caption.truth() == {
        "tag": "position",
        "include": [{"class": "ring", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}],
        "prompt": caption.text,
    }
    caption = Caption("counting", (Group("cross", 3),), "gray")
    assert caption.text == "a photo of three crosses on a gray background"
    assert caption.truth()["include"] == [{"class": "cross", "count": 3}]
    assert caption.truth()["exclude"] == [{"class": "cross", "count": 4}]
    caption = Caption("color_attr", (Group("star", colour="orange"), Group("ring", colour="blue")))
    assert caption.text == "a photo of an orange star and a blue ring"
    assert caption.truth()["include"][0] == {"class": "star", "count": 1, "color": "orange"}


# ---------------------------------------------------------------------------------------------- detector


def test_detector_on_held_out_renders(capsys: pytest.CaptureFixture[str]) -> None:
    """The figure that the detector promises, at least 98 % task by task; 480 renders of the 240 held-out prompts."""
    rng = np.random.default_rng(99)
    right: dict[str, list[bool]] = {t: [] for t in TASKS}
    exact = []
    for _, caption in prompt_captions(True) * 2:
        scene = draw(caption, rng, tries=2000)
        assert scene is not None, caption.text
        assert not allowed(scene)
        found = detect(render(scene))
        right[caption.tag].append(judge(caption.truth(), found)[0])
        exact.append(
            sorted((t.shape, t.colour) for t in scene.things) == sorted((str(d.shape), str(d.colour)) for d in found)
        )
    with capsys.disabled():
        print("\ndetector on held-out renders:", {t: f"{np.mean(r):.1%}" for t, r in right.items()})
    assert all(np.mean(r) >= 0.98 for r in right.values())
    assert np.mean(exact) >= 0.98


def test_detector_is_neither_lenient_nor_brittle() -> None:
    blank = np.full((64, 64, 3), 245, np.uint8)
    assert detect(blank) == []
    blob = blank.copy()
    blob[20:30, 10:50] = COLOURS["red"]  # a bar is none of the six shapes
    (bar,) = detect(blob)
    assert bar.shape is None
    assert bar.colour == "red"
    odd = render(Scene("white", (Thing("circle", "red", 32, 32, 12),)))
    odd[(odd != odd[0, 0]).any(-1)] = (70, 70, 70)  # a colour of no name
    assert detect(odd)[0].colour is None
    rng = np.random.default_rng(3)
    image = render(Scene("gray", (Thing("star", "green", 20, 20, 11), Thing("cross", "purple", 45, 44, 10))))
    noisy = (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    assert sorted((str(d.shape), str(d.colour)) for d in detect(noisy)) == [("cross", "purple"), ("star", "green")]
    with pytest.raises(ValueError, match="64x64"):
        detect(np.zeros((32, 32, 3), np.uint8))


def test_judge_follows_geneval() -> None:
    def seen(shape: str | None, colour: str | None, x: float, y: float) -> Detection:
        return Detection(shape, colour, Box(x - 5, y - 5, x + 5, y + 5), 80.0)

    star, ring = seen("star", "red", 15, 30), seen("ring", "blue", 45, 30)
    left = Caption("position", (Group("star", role="left of"), Group("ring", role="right of"))).truth()
    right = Caption("position", (Group("star", role="right of"), Group("ring", role="left of"))).truth()
    assert judge(left, [star, ring])[0]
    assert not judge(right, [star, ring])[0]
    assert not judge(left, [star])[0]  # the target clause is unmet
    three = Caption("counting", (Group("star", 3),)).truth()
    assert not judge(three, [star] * 2)[0]
    assert judge(three, [star] * 3)[0]
    assert not judge(three, [star] * 4)[0]
    attr = Caption("color_attr", (Group("star", colour="blue"), Group("ring", colour="red"))).truth()
    assert not judge(attr, [star, ring])[0]  # colours exchanged
    one = Caption("single_object", (Group("star"),)).truth()
    assert judge(one, [star, ring])[0]  # more objects do not hurt outside counting
    verdict, detail = judge(one, [seen(None, "red", 15, 30)])
    assert not verdict
    assert detail["found"] == ["red unknown"]
