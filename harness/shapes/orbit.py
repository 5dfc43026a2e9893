"""Orbits around a few coloured solids, rendered: clips whose every frame is known, for models that turn one picture
into a clip.

    python -m harness.shapes.orbit FOLDER            # six objects in the layout of OmniObject3D's renders

The world is right-handed with z upwards; the camera looks at the origin from a circle around the z axis, without
perspective, and its light stands with it. Screens and solids have the same unit, `SPAN` of which a picture is wide.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import ConvexHull

from harness.errors import HarnessError
from harness.files import write_atomic
from harness.shapes.scene import COLOURS

Floats = NDArray[np.float64]

KINDS = ("box", "tetrahedron", "octahedron", "prism", "pyramid", "hexagonal_prism")
FRAMES = 84  # of an orbit, as OmniObject3D's are rendered for SV3D
ELEVATION = 20.0  # degrees
SPAN = 2.4  # units that a side of a picture spans
SAMPLES = 4  # of each pixel along each axis
LIGHT = np.array([-0.4, 0.7, 0.6]) / np.linalg.norm([-0.4, 0.7, 0.6])  # in the camera's axes: right, up, towards it
DARK, BRIGHT = 0.35, 0.65  # shade of a face: the light that comes from everywhere, and that of the lamp at its most


@dataclass(frozen=True)
class Solid:
    """A convex solid: the hull of `points`, float64 `[N, 3]`, in one colour (RGB, 0 to 255)."""

    points: Floats
    colour: tuple[int, int, int]


def kind_of(seed: int) -> str:
    """Which solid stands in the middle of the scene `seed`."""
    return KINDS[seed % len(KINDS)]


def corners(kind: str) -> Floats:
    """The corners of a solid that stands on the plane z = 0 within the unit circle, `[N, 3]`."""
    if kind == "box":
        return _upright(4, 1.0)
    if kind == "prism":
        return _upright(3, 1.2)
    if kind == "hexagonal_prism":
        return _upright(6, 0.8)
    if kind == "pyramid":
        return np.concatenate([_polygon(4, 0.0), [[0.0, 0.0, 1.2]]])
    if kind == "tetrahedron":
        return np.concatenate([_polygon(3, 0.0), [[0.0, 0.0, 2**0.5]]])
    if kind == "octahedron":  # on its tip
        return np.concatenate([_polygon(4, 1.0), [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]])
    raise HarnessError(f"no solid {kind!r}; there are {', '.join(KINDS)}")


def _polygon(sides: int, height: float) -> Floats:
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angles), np.sin(angles), np.full(sides, height)], axis=1)


def _upright(sides: int, height: float) -> Floats:
    return np.concatenate([_polygon(sides, 0.0), _polygon(sides, height)])


def scene(seed: int) -> list[Solid]:
    """A solid in the middle and two or three smaller ones around it, all of other colours."""
    rng = np.random.default_rng(seed)
    around = int(rng.integers(2, 4))
    colours = [list(COLOURS.values())[i] for i in rng.permutation(len(COLOURS))]
    places = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(around) / around
    solids = []
    for k in range(1 + around):
        kind = kind_of(seed) if k == 0 else KINDS[int(rng.integers(len(KINDS)))]
        radius = rng.uniform(0.5, 0.6) if k == 0 else rng.uniform(0.2, 0.3)
        away = 0.0 if k == 0 else 0.85
        turn = rng.uniform(0, 2 * np.pi)
        turned = corners(kind) @ np.array([
            [np.cos(turn), np.sin(turn), 0.0], [-np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0],
        ])
        place = np.array([away * np.cos(places[k - 1]), away * np.sin(places[k - 1]), -0.5])
        solids.append(Solid(radius * turned + place, colours[k]))
    return solids


def camera(azimuth: float, elevation: float = ELEVATION) -> Floats:
    """The camera's axes (right, up, towards it) as rows `[3, 3]`, so that `points @ camera(...).T` is what it sees.

    Angles are in degrees; at azimuth 0 the camera is on the side of +x, at 90 of +y.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    return np.array([
        [-np.sin(a), np.cos(a), 0.0],
        [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)],
        [np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)],
    ])


def render(
    solids: Sequence[Solid], azimuth: float, size: int = 64, elevation: float = ELEVATION
) -> NDArray[np.uint8]:
    """The solids on white from one place of the circle, uint8 `[size, size, 3]`."""
    axes = camera(azimuth, elevation)
    fine = size * SAMPLES
    colours = np.full((fine, fine, 3), 255.0)
    nearest = np.full((fine, fine), -np.inf)
    for solid in solids:
        hull = ConvexHull(solid.points)
        seen = solid.points @ axes.T
        screen = np.stack([fine * (0.5 + seen[:, 0] / SPAN), fine * (0.5 - seen[:, 1] / SPAN), seen[:, 2]], axis=1)
        for corner, normal in zip(hull.simplices, hull.equations[:, :3] @ axes.T, strict=True):
            if normal[2] > 0:
                shade = DARK + BRIGHT * max(0.0, float(normal @ LIGHT))
                _fill(colours, nearest, screen[corner], shade * np.asarray(solid.colour, np.float64))
    pixels = colours.reshape(size, SAMPLES, size, SAMPLES, 3).mean(axis=(1, 3))
    levels: NDArray[np.uint8] = np.rint(pixels).astype(np.uint8)
    return levels


def _fill(colours: Floats, nearest: Floats, triangle: Floats, colour: Floats) -> None:
    """Draws a triangle, rows of (x, y, nearness), wherever nothing nearer has been drawn."""
    (x0, y0), (x1, y1) = np.floor(triangle[:, :2].min(axis=0)), np.ceil(triangle[:, :2].max(axis=0))
    rows = slice(max(int(y0), 0), min(int(y1) + 1, len(colours)))
    columns = slice(max(int(x0), 0), min(int(x1) + 1, len(colours)))
    (ax, ay, _), (bx, by, _), (cx, cy, _) = triangle
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    if rows.start >= rows.stop or columns.start >= columns.stop or abs(area) < 1e-9:
        return
    x, y = np.arange(columns.start, columns.stop) + 0.5, (np.arange(rows.start, rows.stop) + 0.5)[:, None]
    b = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
    c = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
    depth = (1 - b - c) * triangle[0, 2] + b * triangle[1, 2] + c * triangle[2, 2]
    drawn = (b >= 0) & (c >= 0) & (b + c <= 1) & (depth > nearest[rows, columns])
    nearest[rows, columns][drawn] = depth[drawn]
    colours[rows, columns][drawn] = colour


def orbit(seed: int, frames: int = FRAMES, size: int = 64) -> NDArray[np.uint8]:
    """The scene `seed` from `frames` places of the circle, uint8 `[frames, size, size, 3]`.

    Frame k is seen from 360 k / frames degrees.
    """
    solids = scene(seed)
    return np.stack([render(solids, 360 * k / frames, size) for k in range(frames)])


def write_orbits(folder: Path, objects: int = 6, frames: int = FRAMES, size: int = 64) -> Path:
    """Writes the scenes 0 ... objects-1 as OmniObject3D's renders lie: `<category>/<object>/render/images/r_0.png`, ...

    The category is the solid in the middle. Returns the folder.
    """
    for seed in range(objects):
        place = folder / kind_of(seed) / f"{kind_of(seed)}_{seed:03d}" / "render" / "images"
        for k, pixels in enumerate(orbit(seed, frames, size)):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, format="PNG")
            write_atomic(place / f"r_{k}.png", data.getvalue(), "another FOLDER")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harness.shapes.orbit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--objects", type=int, default=6, help="how many (default: 6)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="pictures of an orbit (default: 84)")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    given = parser.parse_args(arguments)
    if min(given.objects, given.frames, given.size) < 1:
        parser.error("objects, frames and size: expected at least 1")
    write_orbits(given.folder, given.objects, given.frames, given.size)
    print(f"{given.objects} orbits of {given.frames} pictures in {given.folder}")


if __name__ == "__main__":
    main()
