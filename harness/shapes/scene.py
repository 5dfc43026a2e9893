"""Scenes of coloured shapes and their renderer: antialiased signed-distance shapes on a plain background.

Coordinates are pixels, x to the right and y downwards, pixel centres at +0.5, the canvas [0, 64) x [0, 64).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {s: s + ("es" if s.endswith("s") else "s") for s in SHAPES}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "green": (30, 165, 60),
    "blue": (35, 80, 225),
    "yellow": (245, 220, 40),
    "purple": (145, 45, 185),
    "orange": (250, 135, 20),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SMALL, LARGE = 9.5, 12.0  # a radius up to SMALL is "small", from LARGE on "large"; between them no size word fits
RADIUS = (8.0, 16.0)


class Box(NamedTuple):
    """An axis-aligned box in pixels, x1 and y1 exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its shape, colour, centre and radius (all in pixels)."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str | None:
        """The size word that fits, or None for a middling object."""
        return "small" if self.radius <= SMALL else "large" if self.radius >= LARGE else None

    @property
    def box(self) -> Box:
        """The tight box of the drawn shape."""
        x0, y0, x1, y1 = extent(self.shape)
        r = self.radius
        return Box(self.x + r * x0, self.y + r * y0, self.x + r * x1, self.y + r * y1)


@dataclass(frozen=True)
class Scene:
    """A plain background and one to four objects that do not touch."""

    background: str
    things: tuple[Thing, ...]


def distance(shape: str, x: Any, y: Any) -> Any:
    """Signed distance (negative inside) of points, arrays in units of the radius; exact near the edge."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.24
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 0.96, ay - 0.31), np.maximum(ax - 0.31, ay - 0.96))
    if shape == "triangle":  # equilateral, point upwards, circumradius 1.12 and shifted to sit in the middle of its box
        y = y - 0.25
        side = 0.5 * 1.12
        return np.maximum(np.maximum(np.sqrt(3) / 2 * x - 0.5 * y, -np.sqrt(3) / 2 * x - 0.5 * y), y) - side
    if shape == "star":  # five points: fold into one half-spike, then the distance to its edge (after I. Quilez)
        return _star(x, y, 1.06, 0.45)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _star(x: Any, y: Any, outer: float, inner: float) -> Any:
    an = np.pi / 5
    y = y - 0.05
    angle = np.abs(np.mod(np.arctan2(x, -y) + an, 2 * an) - an)  # 0 along a spike, pi/5 in a notch
    rho = np.hypot(x, y)
    px, py = rho * np.cos(angle), rho * np.sin(angle)
    ax, ay, bx, by = outer, 0.0, inner * np.cos(an), inner * np.sin(an)
    ex, ey = bx - ax, by - ay
    length = np.hypot(ex, ey)
    return ((py - ay) * ex - (px - ax) * ey) / -length


@cache
def extent(shape: str) -> tuple[float, float, float, float]:
    """Box of the shape of radius 1 around the origin, read off the distance field at 1/200 radius."""
    axis = (np.arange(-260, 260) + 0.5) / 200
    inside = distance(shape, axis[None, :], axis[:, None]) < 0
    xs, ys = axis[inside.any(0)], axis[inside.any(1)]
    return float(xs[0]), float(ys[0]), float(xs[-1]), float(ys[-1])


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene: uint8 RGB [64, 64, 3]."""
    image = np.empty((SIZE, SIZE, 3), np.float64)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        reach = thing.radius * 1.2 + 1
        x0, x1 = max(int(thing.x - reach), 0), min(int(thing.x + reach) + 1, SIZE)
        y0, y1 = max(int(thing.y - reach), 0), min(int(thing.y + reach) + 1, SIZE)
        x = (np.arange(x0, x1) + 0.5 - thing.x) / thing.radius
        y = (np.arange(y0, y1) + 0.5 - thing.y) / thing.radius
        alpha = np.clip(0.5 - distance(thing.shape, x[None, :], y[:, None]) * thing.radius, 0, 1)[..., None]
        image[y0:y1, x0:x1] += alpha * (np.asarray(COLOURS[thing.colour]) - image[y0:y1, x0:x1])
    return np.round(image).astype(np.uint8)


def relations(a: Box, b: Box) -> list[str]:
    """Which relations A has to B by GenEval's rule (none, one or two): the offset of the centres, each axis shrunk
    by a tenth of both sizes, over the length of the unshrunk offset, beyond 0.5."""
    offset = np.array([(a.x0 + a.x1) / 2 - (b.x0 + b.x1) / 2, (a.y0 + a.y1) / 2 - (b.y0 + b.y1) / 2])
    dims = np.array([a.x1 - a.x0 + b.x1 - b.x0, a.y1 - a.y0 + b.y1 - b.y0])
    shrunk = np.maximum(np.abs(offset) - 0.1 * dims, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < 1e-3):
        return []
    dx, dy = shrunk / np.linalg.norm(offset)
    found = [(dx < -0.5, "left of"), (dx > 0.5, "right of"), (dy < -0.5, "above"), (dy > 0.5, "below")]
    return [name for holds, name in found if holds]
