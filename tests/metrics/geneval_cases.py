"""Synthetic detections for GenEval's rules, drawn by Python's own generator: the same on both sides of a comparison."""

import random
from typing import Any

import numpy as np

from harness.metrics.geneval_rules import CLASSES, COLOURS, Detection

WIDTH, HEIGHT = 64, 48  # of the image that the detections are said to be of
EACH = 100  # random cases a tag
Case = tuple[dict[str, Any], list[Detection]]

JUST_ABOVE = [float(np.nextafter(np.float32(x), np.float32(1))) for x in (0.3, 0.9)]
EXACTLY = [float(np.float32(x)) for x in (0.3, 0.9)]
SCORES = [0.05, 0.299, *EXACTLY, *JUST_ABOVE, 0.31, 0.5, 0.5, 0.75, 0.899, 0.91, 0.95, 0.95, 0.99]
RELATIONS = ["left of", "right of", "above", "below"]


def colour_of(box: Any) -> str:
    """The stand-in for the colour classifier."""
    return COLOURS[int(box[0]) % len(COLOURS)]


def see(name: str, score: float, *box: float) -> Detection:
    return Detection(CLASSES.index(name), score, tuple(map(float, box)))  # type: ignore[arg-type]


def want(*include: dict[str, Any], tag: str = "two_object", exclude: Any = None) -> dict[str, Any]:
    truth = {"tag": tag, "include": list(include), "prompt": "a photo"}
    return truth if exclude is None else truth | {"exclude": exclude}


def one(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def random_cases() -> list[Case]:
    """`EACH` cases for each of the six tags, one after the other."""
    draw = random.Random(20231031)
    return [(truth, _detections(draw, truth)) for tag in _TRUTHS for truth in (_truth(draw, tag) for _ in range(EACH))]


_TRUTHS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def _truth(draw: random.Random, tag: str) -> dict[str, Any]:
    a, b = draw.sample([*CLASSES, *CLASSES[60:68]], 2)  # those whose names differ from COCO's more often
    if tag == "counting":
        count = draw.randint(2, 4)
        return want(one(a, count), tag=tag, exclude=[one(a, count + 1)])
    if tag == "colors":
        return want(one(a, color=draw.choice(COLOURS[:4])), tag=tag)
    if tag == "color_attr":
        return want(one(a, color=draw.choice(COLOURS[:3])), one(b, color=draw.choice(COLOURS[:3])), tag=tag)
    if tag == "position":
        return want(one(a, draw.choice((1, 1, 2))), one(b, position=[draw.choice(RELATIONS), 0]), tag=tag)
    return want(one(a), *([one(b)] if tag == "two_object" else []), tag=tag)


def _detections(draw: random.Random, truth: dict[str, Any]) -> list[Detection]:
    names = [clause["class"] for clause in truth["include"]]
    found = []
    for name in [*names, draw.choice(CLASSES)]:
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 4, 5))):
            left, top = draw.randrange(0, WIDTH - 8, 4), draw.randrange(0, HEIGHT - 8, 4)
            if truth["tag"] in ("colors", "color_attr"):
                left = draw.randrange(40) // 10 + draw.choice((0, 10, 20))
            right, bottom = left + draw.randint(1, 30) + draw.choice((0, 0, 0.37)), top + draw.randint(1, 30)
            scores = SCORES[6:] if draw.random() < 0.6 else SCORES
            found.append(see(name, draw.choice(scores), left, top, right, bottom))
    draw.shuffle(found)
    return found


DOG, CAT = one("dog"), one("cat")
LEFT = want(DOG, one("cat", position=["left of", 0]), tag="position")
BELOW = want(DOG, one("cat", position=["below", 0]), tag="position")
MANY = [see("dog", 0.91 + i / 1000, i, 0, i + 5, 5) for i in range(18)]
HAND: list[Case] = [
    # thresholds: strictly above, in float32, by tag
    (want(DOG), [see("dog", 0.3, 0, 0, 9, 9)]),
    (want(DOG), [see("dog", EXACTLY[0], 0, 0, 9, 9)]),
    (want(DOG), [see("dog", JUST_ABOVE[0], 0, 0, 9, 9)]),
    (want(DOG, tag="counting"), [see("dog", EXACTLY[1], 0, 0, 9, 9)]),
    (want(DOG, tag="counting"), [see("dog", JUST_ABOVE[1], 0, 0, 9, 9)]),
    (want(DOG, tag="anything else"), [see("dog", 0.4, 0, 0, 9, 9)]),
    (want(one("dog", 2), exclude=[one("dog", 3)], tag="counting"), [see("dog", s, 0, 0, 9, 9) for s in (1, 0.95, 0.9)]),
    # at most 16 of a class are seen: a limit above that is never broken, a number above it never reached
    (want(one("dog", 16), exclude=[one("dog", 17)], tag="counting"), MANY),
    (want(one("dog", 16), exclude=[one("dog", 16)], tag="counting"), MANY),
    (want(one("dog", 17), tag="counting"), MANY),
    (want(one("dog", 17), exclude=[one("dog", 17)], tag="counting"), MANY[:16]),
    # equal boxes are two objects
    (want(one("dog", 2)), [see("dog", 0.8, 0, 0, 9, 9), see("dog", 0.7, 0, 0, 9, 9)]),
    # colours: of the most confident alone; of equal ones the later comes first
    (want(one("dog", color="red")), [see("dog", 0.8, 1, 0, 9, 9), see("dog", 0.7, 0, 0, 9, 9)]),
    (want(one("dog", color="red")), [see("dog", 0.8, 1, 0, 9, 9), see("dog", 0.8, 0, 0, 9, 9)]),
    (want(one("dog", color="red")), [see("dog", 0.8, 0, 0, 9, 9), see("dog", 0.8, 1, 0, 9, 9)]),
    (want(one("dog", 2, color="red")), [see("dog", 0.8, 0, 0, 9, 9), see("dog", 0.7, 10, 0, 19, 9)]),
    (want(one("dog", 2, color="red")), [see("dog", s, x, 0, 30, 9) for s, x in ((0.8, 0), (0.7, 13), (0.6, 10))]),
    # a class in question twice; nothing asked for; an exclude clause alone
    (want(one("dog", color="red"), one("dog", color="blue")),
     [see("dog", 0.8, 0, 0, 9, 9), see("dog", 0.7, 4, 0, 9, 9)]),
    (want(), []),
    ({"tag": "counting", "exclude": [DOG]}, [see("dog", 0.95, 0, 0, 9, 9)]),
    ({"tag": "counting", "exclude": [DOG]}, []),
    # position: no offset; the same object; one that is not there; two relations at once
    (LEFT, [see("dog", 0.8, 10, 10, 20, 20), see("cat", 0.8, 10, 10, 20, 20)]),
    (want(DOG, one("dog", position=["left of", 0])), [see("dog", 0.8, 10, 10, 20, 20), see("dog", 0.7, 0, 10, 9, 20)]),
    (LEFT, [see("cat", 0.8, 0, 10, 9, 20)]),
    (LEFT, [see("dog", 0.8, 0, 10, 9, 20)]),
    (LEFT, [see("dog", 0.8, 40, 10, 50, 20), see("cat", 0.8, 0, 40, 10, 50)]),
    (BELOW, [see("dog", 0.8, 40, 10, 50, 20), see("cat", 0.8, 0, 40, 10, 50)]),
    (want(DOG, one("cat", position=["above", 0])), [see("dog", 0.8, 40, 10, 50, 20), see("cat", 0.8, 0, 40, 10, 50)]),
    # offset (-4, 3): a share of exactly a half is none, one a little larger is one
    (LEFT, [see("dog", 0.8, 20, 20, 28, 24), see("cat", 0.8, 16.5, 24.5, 23.5, 25.5)]),
    (LEFT, [see("dog", 0.8, 20, 20, 28, 24), see("cat", 0.8, 16.5625, 24.5, 23.4375, 25.5)]),
    (BELOW, [see("dog", 0.8, 20, 20, 28, 24), see("cat", 0.8, 16.5, 24.5, 23.5, 25.5)]),
    (BELOW, [see("dog", 0.8, 20, 20, 28, 24), see("cat", 0.8, 16.5, 24.5625, 23.5, 25.4375)]),
    # what is left of the offset after the margin: nothing, less than 0.001, a little more
    (LEFT, [see("dog", 0.8, 10, 10, 20, 20), see("cat", 0.8, 8, 10, 18, 20)]),
    (LEFT, [see("dog", 0.8, 0, 0, 0, 0), see("cat", 0.8, -0.0009, 0, -0.0009, 0)]),
    (LEFT, [see("dog", 0.8, 0, 0, 0, 0), see("cat", 0.8, -0.0011, 0, -0.0011, 0)]),
    # corners the wrong way round still have a size
    (LEFT, [see("dog", 0.8, 20, 0, 10, 10), see("cat", 0.8, 17, 0, 7, 10)]),
    (LEFT, [see("dog", 0.8, 20, 0, 10, 10), see("cat", 0.8, 10, 0, 0, 10)]),
    # every object to every target
    (want(one("dog", 2), one("cat", position=["left of", 0])),
     [see("dog", 0.8, 40, 0, 49, 9), see("dog", 0.7, 0, 0, 9, 9), see("cat", 0.8, 20, 0, 29, 9)]),
    (want(one("dog", 2), one("cat", 2, position=["left of", 0])),
     [see("dog", 0.8, 40, 0, 49, 9), see("dog", 0.7, 44, 0, 53, 9), see("cat", 0.8, 20, 0, 29, 9),
      see("cat", 0.7, 0, 0, 9, 9)]),
    (want(DOG, one("cat", 2, position=["left of", 0])),
     [see("dog", 0.8, 20, 0, 29, 9), see("cat", 0.8, 0, 0, 9, 9), see("cat", 0.7, 40, 0, 49, 9)]),
    # a target that is there in another colour is no target; a wrong colour leaves the position unasked
    (want(one("dog", color="blue"), one("cat", position=["left of", 0])),
     [see("dog", 0.8, 40, 0, 49, 9), see("cat", 0.8, 0, 0, 9, 9)]),
    (want(DOG, one("cat", color="blue", position=["right of", 0])),
     [see("dog", 0.8, 40, 0, 49, 9), see("cat", 0.8, 0, 0, 9, 9)]),
    (want(DOG, one("cat", color="red", position=["right of", 0])),
     [see("dog", 0.8, 40, 0, 49, 9), see("cat", 0.8, 0, 0, 9, 9)]),
    # a third clause against the second
    (want(DOG, CAT, one("cup", position=["above", 1])),
     [see("dog", 0.8, 40, 0, 49, 9), see("cat", 0.8, 0, 40, 9, 49), see("cup", 0.8, 0, 0, 9, 9)]),
    # all at once
    (want(one("dog", 2, color="red"), one("cat", position=["left of", 0]), tag="x", exclude=[CAT, one("cup", 2)]),
     [see("dog", 0.8, 40, 0, 49, 9), see("cat", 0.8, 0, 0, 9, 9), see("cup", 0.8, 0, 0, 9, 9),
      see("cup", 0.7, 0, 0, 9, 9)]),
]


def verdicts() -> list[tuple[str, str, int, bool]]:
    """Prompts of tags of unequal size, their tag, a seed and whether the image is correct."""
    draw = random.Random(3)
    sizes = {"single_object": 5, "two_object": 9, "counting": 3, "colors": 4, "position": 7, "color_attr": 2}
    rows = []
    for tag, number in sizes.items():
        for k in range(number):
            rows += [(f"{tag} {k}", tag, seed, draw.random() < 0.25 + 0.1 * number % 0.6) for seed in range(3)]
    return rows
