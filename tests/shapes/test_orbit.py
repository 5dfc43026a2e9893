"""The renderer of orbits against rotation matrices, closed forms of projected areas, and symmetry."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from harness.errors import HarnessError
from harness.shapes import orbit
from harness.shapes.orbit import KINDS, SPAN, Solid, camera, corners, render

GREY = (100, 100, 100)


def box(a: float, b: float, c: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    return signs * np.array([a, b, c]) / 2 + np.array(centre)


def covered(picture: np.ndarray, share: float) -> float:
    """The area in units, given the share of white in a pixel's background."""
    return float(share * (SPAN / len(picture)) ** 2)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (30, 20), (200, -35), (359, 89)])
def test_the_camera_s_axes_are_a_rotation_of_the_world_s(azimuth: float, elevation: float) -> None:
    # A camera at +x that looks to -x sees y to the right and z up; it is lifted about y, then turned about z.
    turned = Rotation.from_euler("z", azimuth, degrees=True) * Rotation.from_euler("y", -elevation, degrees=True)
    expected = turned.apply([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(camera(azimuth, elevation), expected, atol=1e-12)


def test_a_cube_s_corners_are_where_the_rotation_puts_them() -> None:
    """A tiny dark box at each corner of a cube: the centres of the blots are the projected corners, to 0.1 pixel."""
    size, (azimuth, elevation) = 128, (25.0, 20.0)
    turn = Rotation.from_euler("z", azimuth, degrees=True) * Rotation.from_euler("y", -elevation, degrees=True)
    for corner in box(1.2, 1.2, 1.2):
        picture = render([Solid(box(0.08, 0.08, 0.08, tuple(corner)), (0, 0, 0))], azimuth, size, elevation)
        dark = 255.0 - picture[:, :, 0]
        y, x = np.mgrid[:size, :size] + 0.5
        found = np.array([(dark * x).sum(), (dark * y).sum()]) / dark.sum()
        _, right, up = turn.inv().apply(corner)
        expected = size * np.array([0.5 + right / SPAN, 0.5 - up / SPAN])
        np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (33, 0), (33, 20), (160, 50)])
def test_a_box_covers_its_projected_area(azimuth: float, elevation: float) -> None:
    """Closed form: each pair of faces shows its area times the cosine of its angle to the camera; within 1 %."""
    a, b, c = 1.1, 0.7, 0.5
    picture = render([Solid(box(a, b, c), (0, 0, 0))], azimuth, 128, elevation)
    p, e = np.radians(azimuth), np.radians(elevation)
    expected = np.cos(e) * c * (b * abs(np.cos(p)) + a * abs(np.sin(p))) + np.sin(e) * a * b
    assert covered(picture, (1 - picture[:, :, 0] / 255).sum()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_solid_covers_the_area_of_its_outline(kind: str) -> None:
    points = corners(kind) - corners(kind).mean(axis=0)
    seen = points @ camera(77).T
    picture = render([Solid(points, (0, 0, 0))], 77, 128)
    area = covered(picture, (1 - picture[:, :, 0] / 255).sum())
    assert area == pytest.approx(ConvexHull(seen[:, :2]).volume, rel=0.01)  # of a plane hull the area


def test_solids_have_the_volumes_of_the_schoolbook() -> None:
    square, triangle, hexagon = 2.0, 3 * 3**0.5 / 4, 3 * 3**0.5 / 2  # inscribed in the unit circle
    expected = {
        "box": square, "prism": triangle * 1.2, "hexagonal_prism": hexagon * 0.8, "pyramid": square * 1.2 / 3,
        "tetrahedron": triangle * 2**0.5 / 3, "octahedron": square * 2 / 3,
    }
    assert {kind: pytest.approx(ConvexHull(corners(kind)).volume) for kind in KINDS} == expected
    edges = [np.linalg.norm(a - b) for i, a in enumerate(corners("tetrahedron")) for b in corners("tetrahedron")[:i]]
    np.testing.assert_allclose(edges, 3**0.5)
    assert all(corners(kind)[:, 2].min() == 0 for kind in KINDS)
    with pytest.raises(HarnessError, match="no solid 'sphere'; there are box"):
        corners("sphere")


@pytest.mark.parametrize(("kind", "turns"), [("box", 4), ("octahedron", 4), ("prism", 3), ("hexagonal_prism", 6)])
def test_a_symmetric_solid_looks_the_same_after_its_part_of_the_circle(kind: str, turns: int) -> None:
    solids = [Solid(corners(kind) - [0, 0, 0.5], GREY)]
    pictures = [render(solids, 17 + azimuth, 48) for azimuth in (0, 360 / turns, 180 / turns)]
    # The corners are a rounding error apart, which moves a sample of an edge now and then.
    assert (pictures[0] != pictures[1]).mean() < 0.002
    assert (pictures[0] != pictures[2]).mean() > 0.02


def test_the_nearer_solid_hides_the_other() -> None:
    red, blue = (Solid(box(0.5, 0.5, 0.5, (x, 0, 0)), rgb) for x, rgb in ((0.9, (200, 0, 0)), (0.2, (0, 0, 200))))
    for azimuth, seen, hidden in ((0, 0, 2), (180, 2, 0)):
        for order in ([red, blue], [blue, red]):
            middle = render(order, azimuth, 64, 0.0)[32, 32]
            assert middle[seen] > 100
            assert middle[hidden] == 0
    side = render([red, blue], 90, 64, 0.0)  # from +y, +x is to the left
    assert side[32, 8, 0] > side[32, 8, 2] == 0
    assert side[32, 27, 2] > side[32, 27, 0] == 0


def test_an_orbit_goes_once_round_and_is_the_same_again() -> None:
    made = orbit.orbit(3, frames=8, size=32)
    assert made.shape == (8, 32, 32, 3)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, orbit.orbit(3, frames=8, size=32))
    np.testing.assert_array_equal(made[::2], orbit.orbit(3, frames=4, size=32))
    np.testing.assert_array_equal(made[3], render(orbit.scene(3), 135, 32))
    assert not np.array_equal(made[0], orbit.orbit(3 + len(KINDS), frames=1, size=32)[0])
    assert (made[:, [0, -1]] == 255).all()  # nothing leaves the picture
    assert (made[:, :, [0, -1]] == 255).all()


def test_the_command_writes_the_layout_of_omniobject3d(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orbit.main([str(tmp_path / "set"), "--objects", "2", "--frames", "3", "--size", "16"])
    assert capsys.readouterr().out == f"2 orbits of 3 pictures in {tmp_path / 'set'}\n"
    files = sorted(path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*.png"))
    objects = ("box/box_000", "tetrahedron/tetrahedron_001")
    assert files == [f"{name}/render/images/r_{k}.png" for name in objects for k in range(3)]
    with Image.open(tmp_path / "set" / files[4]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), orbit.orbit(1, 3, 16)[1])
