"""What is said about a scene, GenEval's truth for it, and which compositions training never sees.

A *composition* is a key (a tuple that starts with its kind); one kind a GenEval task:

=============  ===========================================  ==========================================
task           key                                          held out
=============  ===========================================  ==========================================
single_object  ("single", shape, size word, background)     12 of 36: one background a (shape, size)
two_object     ("pair", shape, shape)                       3 of 15: a perfect matching
counting       ("count", shape, n >= 2)                     6 of 18: each shape once, each n twice
colors         ("colour", colour, shape)                    6 of 36: each shape and each colour once
position       ("relation", shape, relation, shape)         12 of the 48 of seen pairs: one a pair
color_attr     ("binding", (colour, shape), (colour, shape)) a fifth of those made of seen parts
=============  ===========================================  ==========================================

Keys are normalised (of two shapes the earlier in ``SHAPES`` comes first). The rule is strict and about *scenes*: a
scene is allowed in training only if none of its compositions is held out, said or unsaid in its caption.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, TypeVar

import numpy as np

from harness.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    LARGE,
    OPPOSITE,
    PLURALS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZE,
    SMALL,
    Scene,
    Thing,
    relations,
)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SIZES = ("small", "large")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PREFIXES = ("a photo of ", "a picture of ", "an image of ", "")
Key = tuple[Any, ...]
T = TypeVar("T")

_HELD_COLOUR = dict(zip(SHAPES, ("blue", "red", "orange", "green", "yellow", "purple"), strict=True))
_HELD_PAIRS = {("circle", "star"), ("square", "ring"), ("triangle", "cross")}
_HELD_COUNT = dict(zip(SHAPES, (2, 3, 4, 3, 4, 2), strict=True))
_SEEN_PAIRS = [p for p in combinations(SHAPES, 2) if p not in _HELD_PAIRS]
_HELD_RELATION = {pair: RELATIONS[(k + k // 4) % 4] for k, pair in enumerate(_SEEN_PAIRS)}


@dataclass(frozen=True)
class Group:
    """A noun phrase: ``count`` alike objects; colour, size word and role (its relation to the other group) if said."""

    shape: str
    count: int = 1
    colour: str | None = None
    size: str | None = None
    role: str | None = None

    def words(self) -> str:
        """The noun phrase in English."""
        noun = self.shape if self.count == 1 else PLURALS[self.shape]
        rest = " ".join(w for w in (self.size, self.colour, noun) if w)
        if self.count > 1:
            return f"{NUMBERS[self.count]} {rest}"
        return f"{'an' if rest[0] in 'aeiou' else 'a'} {rest}"


@dataclass(frozen=True)
class Caption:
    """A caption as structure: the task, the groups in the order they are named, and the background if said."""

    tag: str
    groups: tuple[Group, ...]
    background: str | None = None
    prefix: str = PREFIXES[0]

    @property
    def text(self) -> str:
        """The caption in English."""
        phrases = [g.words() for g in self.groups]
        role = self.groups[0].role
        if role is not None:
            body = f"{phrases[0]} {role} {phrases[1]}"
        else:
            body = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
        return self.prefix + body + (f" on a {self.background} background" if self.background else "")

    def truth(self) -> dict[str, Any]:
        """GenEval's metadata for this caption."""
        include: list[dict[str, Any]] = []
        groups = self.groups if self.groups[0].role is None else self.groups[::-1]
        for i, group in enumerate(groups):
            clause: dict[str, Any] = {"class": group.shape, "count": group.count}
            if group.colour is not None and self.tag not in ("counting", "single_object", "two_object"):
                clause["color"] = group.colour
            if group.role is not None and i == 1:
                clause["position"] = [group.role, 0]
            include.append(clause)
        truth: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            truth["exclude"] = [{"class": g.shape, "count": g.count + 1} for g in self.groups]
        return truth | {"prompt": self.text}

    def compositions(self) -> set[Key]:
        """The compositions that the words themselves name."""
        keys: set[Key] = {("colour", g.colour, g.shape) for g in self.groups if g.colour}
        keys |= {("count", g.shape, g.count) for g in self.groups if g.count > 1}
        for a, b in combinations(self.groups, 2):
            keys.add(pair_key(a.shape, b.shape))
            if a.colour and b.colour:
                keys.add(binding_key((a.colour, a.shape), (b.colour, b.shape)))
            if a.role:
                keys.add(relation_key(a.shape, a.role, b.shape))
        if len(self.groups) == 1 and self.groups[0].count == 1 and self.groups[0].size and self.background:
            keys.add(("single", self.groups[0].shape, self.groups[0].size, self.background))
        return keys


def pair_key(a: str, b: str) -> Key:
    """Two shapes together in one scene."""
    return ("pair", *sorted((a, b), key=SHAPES.index))


def relation_key(a: str, relation: str, b: str) -> Key:
    """A stands in the relation to B, turned so that the earlier shape comes first."""
    if SHAPES.index(a) > SHAPES.index(b):
        a, relation, b = b, OPPOSITE[relation], a
    return ("relation", a, relation, b)


def binding_key(a: tuple[str, str], b: tuple[str, str]) -> Key:
    """Two coloured shapes together in one scene."""
    return ("binding", *sorted((a, b), key=lambda o: SHAPES.index(o[1])))


def compositions(scene: Scene) -> set[Key]:
    """Every composition that a scene contains."""
    keys: set[Key] = {("colour", t.colour, t.shape) for t in scene.things}
    keys |= {("count", s, n) for s, n in Counter(t.shape for t in scene.things).items() if n > 1}
    for a, b in combinations(scene.things, 2):
        if a.shape == b.shape:
            continue
        keys.add(pair_key(a.shape, b.shape))
        keys.add(binding_key((a.colour, a.shape), (b.colour, b.shape)))
        keys |= {relation_key(a.shape, r, b.shape) for r in relations(a.box, b.box)}
    if len(scene.things) == 1 and scene.things[0].size:
        keys.add(("single", scene.things[0].shape, scene.things[0].size, scene.background))
    return keys


def held_out(key: Key) -> bool:
    """Whether training must never contain this composition. Fixed rules; they change only with the prompt sets."""
    kind = key[0]
    if kind == "single":
        return bool((SHAPES.index(key[1]) + SIZES.index(key[2])) % 3 == list(BACKGROUNDS).index(key[3]))
    if kind == "pair":
        return key[1:] in _HELD_PAIRS
    if kind == "count":
        return bool(_HELD_COUNT[key[1]] == key[2])
    if kind == "colour":
        return bool(_HELD_COLOUR[key[2]] == key[1])
    if kind == "relation":
        return bool(_HELD_RELATION.get((key[1], key[3])) == key[2])
    if kind == "binding":
        (ca, sa), (cb, sb) = key[1:]
        colours = list(COLOURS)
        return (colours.index(ca) + 2 * colours.index(cb) + SHAPES.index(sa) + SHAPES.index(sb)) % 5 == 0
    raise ValueError(f"unknown kind of composition {kind!r}")


def allowed(scene: Scene) -> bool:
    """Whether a scene may stand in the training data."""
    return not any(held_out(k) for k in compositions(scene))


# ---------------------------------------------------------------------------------------------- captions to scenes


def draw(caption: Caption, rng: np.random.Generator, strict: bool = False, tries: int = 200) -> Scene | None:
    """A random scene of exactly the objects of a caption, of which the caption is true; what is unsaid is random.

    ``strict`` redraws until the scene is allowed in training. None when no layout was found within the tries.
    """
    total = sum(g.count for g in caption.groups)
    top = {1: RADIUS[1], 2: 13.5, 3: 11.5, 4: 10.5}[total]
    for _ in range(tries):
        background = caption.background or str(rng.choice(list(BACKGROUNDS)))
        things: list[Thing] = []
        for group in caption.groups:
            low, high = RADIUS[0], top
            if group.size == "small":
                high = SMALL
            elif group.size == "large":
                low, high = LARGE, max(top, LARGE + 1)
            shared = str(rng.choice(list(COLOURS))) if rng.random() < 0.6 else None
            base = rng.uniform(low, high)
            for _ in range(group.count):
                colour = group.colour or shared or str(rng.choice(list(COLOURS)))
                radius = float(np.clip(base * rng.uniform(0.9, 1.1), low, high)) if group.count > 1 else base
                place = _place(things, radius, rng)
                if place is None:
                    break
                things.append(Thing(group.shape, colour, *place, radius))
        if len(things) < total:
            continue
        role = caption.groups[0].role
        if role is not None and role not in relations(things[0].box, things[1].box):
            continue
        scene = Scene(background, tuple(things))
        if not strict or allowed(scene):
            return scene
    return None


def _place(things: list[Thing], radius: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """A centre for one more object, clear of the others and of the border."""
    margin = radius * 1.02 + 1.5
    for _ in range(30):
        x, y = rng.uniform(margin, SIZE - margin, 2)
        if all(np.hypot(x - t.x, y - t.y) > 1.12 * (radius + t.radius) + 2.5 for t in things):
            return float(x), float(y)
    return None


KINDS = {"single": 0.14, "two": 0.58, "count": 0.20, "mixed": 0.08}


def sample_scene(rng: np.random.Generator, kinds: dict[str, float] | None = None) -> Scene:
    """A random scene of the training world (never a held-out composition)."""
    weights = kinds or KINDS
    while True:
        kind = str(rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values())))
        shapes = [str(s) for s in rng.permutation(SHAPES)]
        if kind == "single":
            groups = [Group(shapes[0], size=_maybe(rng, 0.7, str(rng.choice(SIZES))))]
        elif kind == "two":
            groups = [Group(s, size=_maybe(rng, 0.15, str(rng.choice(SIZES)))) for s in shapes[:2]]
        elif kind == "count":
            groups = [Group(shapes[0], int(rng.choice((2, 3, 4), p=(0.3, 0.35, 0.35))))]
        else:
            counts = [(1, 1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 1, 2)][rng.integers(6)]
            groups = [Group(s, n) for s, n in zip(shapes, counts, strict=False)]
        skeleton = Caption("mixed", tuple(groups))
        if any(held_out(k) for k in skeleton.compositions()):
            continue
        scene = draw(skeleton, rng, strict=True, tries=20)
        if scene is not None:
            return scene


def _maybe(rng: np.random.Generator, p: float, value: T) -> T | None:
    return value if rng.random() < p else None


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """A random true caption of a scene, in the words of one of the six tasks (or "mixed")."""
    prefix = str(rng.choice(PREFIXES, p=(0.55, 0.15, 0.15, 0.15)))
    shapes = list(dict.fromkeys(t.shape for t in scene.things))
    if len(shapes) > 1:
        shapes = [str(s) for s in rng.permutation(shapes)]
    members = {s: [t for t in scene.things if t.shape == s] for s in shapes}
    colour = {s: ts[0].colour if len({t.colour for t in ts}) == 1 else None for s, ts in members.items()}
    background = _maybe(rng, 0.3, scene.background)
    plain = [Group(s, len(members[s])) for s in shapes]

    def sized(group: Group, p: float) -> Group:
        return replace(group, size=_maybe(rng, p, members[group.shape][0].size)) if group.count == 1 else group

    if len(scene.things) == 1:
        if rng.random() < 0.4:
            return Caption("single_object", (sized(plain[0], 0.6),), _maybe(rng, 0.55, scene.background), prefix)
        return Caption("colors", (sized(replace(plain[0], colour=colour[shapes[0]]), 0.3),), background, prefix)
    if len(shapes) == 1:
        groups = (replace(plain[0], colour=_maybe(rng, 0.35, colour[shapes[0]])),)
        return Caption("counting", groups, background, prefix)
    coloured = [replace(g, colour=colour[g.shape]) for g in plain]
    if len(scene.things) > 2:
        return Caption("mixed", tuple(coloured if rng.random() < 0.7 else plain), background, prefix)
    u = rng.random()
    found = relations(members[shapes[0]][0].box, members[shapes[1]][0].box)
    if u < 0.45 and found:
        role = str(rng.choice(found))
        pair = coloured if rng.random() < 0.35 else plain
        placed = (sized(replace(pair[0], role=role), 0.08), sized(replace(pair[1], role=OPPOSITE[role]), 0.08))
        return Caption("position", placed, background, prefix)
    if u < 0.82:
        return Caption("color_attr", tuple(sized(g, 0.12) for g in coloured), background, prefix)
    return Caption("two_object", tuple(sized(g, 0.12) for g in plain), background, prefix)


# ---------------------------------------------------------------------------------------------- the prompt sets


def all_keys(task: str) -> list[Key]:
    """Every composition of a task's kind that its prompts may be about (parts of it are all seen in training)."""
    if task == "single_object":
        return [("single", *k) for k in product(SHAPES, SIZES, BACKGROUNDS)]
    if task == "two_object":
        return [pair_key(*p) for p in combinations(SHAPES, 2)]
    if task == "counting":
        return [("count", s, n) for n in (2, 3, 4) for s in SHAPES]
    if task == "colors":
        return [("colour", c, s) for c in COLOURS for s in SHAPES]
    if task == "position":
        return [("relation", a, r, b) for r in RELATIONS for a, b in _SEEN_PAIRS]
    if task == "color_attr":
        keys: list[Key] = []
        for (sa, sb), ca, cb in product(_SEEN_PAIRS, COLOURS, COLOURS):
            parts = ("colour", ca, sa), ("colour", cb, sb)
            if ca != cb and not any(held_out(p) for p in parts):
                keys.append(("binding", (ca, sa), (cb, sb)))
        return keys
    raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")


def phrasings(task: str, key: Key) -> list[Caption]:
    """The ways a prompt set may say a composition, the plainest first."""
    anywhere = (None, *BACKGROUNDS)
    if task == "single_object":
        return [Caption(task, (Group(key[1], size=key[2]),), key[3], p) for p in PREFIXES]
    if task == "counting":
        return [Caption(task, (Group(key[1], key[2]),), b, p) for p in PREFIXES[:2] for b in anywhere]
    if task == "colors":
        group = Group(key[2], colour=key[1])
        plain = [Caption(task, (group,), b, p) for p in PREFIXES[:2] for b in anywhere]
        return plain + [Caption(task, (replace(group, size=s),)) for s in SIZES]
    if task == "position":
        a, r, b = key[1:]
        orders = ((Group(a, role=r), Group(b, role=OPPOSITE[r])), (Group(b, role=OPPOSITE[r]), Group(a, role=r)))
        return [Caption(task, groups, bg) for bg in anywhere for groups in orders]
    if task == "two_object":
        groups = Group(key[1]), Group(key[2])
    else:
        groups = Group(key[1][1], colour=key[1][0]), Group(key[2][1], colour=key[2][0])
    orders = (groups, groups[::-1])
    return [Caption(task, g, bg, p) for p in PREFIXES[:2] for bg in anywhere for g in orders]


def prompt_captions(held: bool, per_task: int = 40) -> list[tuple[str, Caption]]:
    """(id, caption) of the set of held-out (``shapes``) or of seen compositions (``shapes-seen``).

    Compositions take turns, each saying itself in its next way; tasks take turns too, so the first n are balanced.
    """
    columns = []
    for task in TASKS:
        keys = [k for k in all_keys(task) if held_out(k) == held]
        order = np.random.default_rng(20240 + TASKS.index(task)).permutation(len(keys))
        ways = [phrasings(task, keys[i]) for i in order]
        turns: list[Caption] = []
        for k in range(max(map(len, ways))):
            turns += [w[k ^ (i & 1)] for i, w in enumerate(ways) if k < len(w)]
        columns.append([(f"{task.replace('_', '-')}-{i:03d}", c) for i, c in enumerate(turns[:per_task])])
    return [row for turn in zip(*columns, strict=True) for row in turn]
