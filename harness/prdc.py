"""Precision, recall, density and coverage: which features lie inside the neighbourhoods of the other set.

A row's ball reaches to its k-th nearest neighbour in its own set. Precision and recall: Kynkäänniemi et al. 2019
(arXiv:1904.06991), a point on the surface is inside (<=), as in torch-fidelity and guided-diffusion. Density and
coverage: Naeem et al. 2020 (arXiv:2002.09797), it is outside (<), as in the authors' `prdc` and dgm-eval; only so is
the density of a set to itself 1. `prdc` and dgm-eval use < for precision and recall too, which differs only on ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.frechet import Array, feature_rows

ENTRIES = 2**22  # of one block of distances: 32 MB
TIE = 1e-12  # squared distances that differ by less, relative to the two rows' squared lengths, are equal


class PRDC(NamedTuple):
    """Shares in [0, 1]; density may exceed 1."""

    precision: float  # generated rows inside a reference ball
    recall: float  # reference rows inside a generated ball
    density: float  # reference balls that hold a generated row, mean over rows, divided by k
    coverage: float  # reference rows with a generated row inside their ball


def prdc(generated: ArrayLike, reference: ArrayLike, neighbours: int) -> PRDC:
    """All four, of features `[N, D]` and `[M, D]` with k = `neighbours`, from all N·M distances in float64.

    Published values use k = 3 for precision and recall (torch-fidelity, guided-diffusion, StyleGAN's papers) and
    k = 5 for density and coverage (Naeem et al., dgm-eval, which uses 5 for all four). All move with N and M.

    Raises:
        ValueError: a side has no more than k rows, dimensions differ, or a value is not finite.
    """
    nobody = np.full(len(np.asarray(generated)), -1)
    return _leaving_out(generated, nobody, 1, reference, neighbours)[0]


def prdc_without(
    generated: ArrayLike, group: ArrayLike, reference: ArrayLike, neighbours: int
) -> list[PRDC]:
    """`prdc` with the generated rows of each group 0 ... g-1 left out, from one pass over the distances.

    Raises ValueError as `prdc`, of the rows that are left.
    """
    labels = np.asarray(group)
    return _leaving_out(generated, labels, int(labels.max()) + 1, reference, neighbours)


def _leaving_out(
    generated: ArrayLike, labels: NDArray, groups: int, reference: ArrayLike, k: int
) -> list[PRDC]:
    x, y = feature_rows(generated), feature_rows(reference)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have {x.shape[1]} and {y.shape[1]} dimensions")
    members = (labels[:, None] == np.arange(groups)).astype(np.float64)
    left = len(x) - members.sum(axis=0)
    if k < 1 or min(left.min(), len(y)) <= k:
        raise ValueError(
            f"{k} nearest neighbours need more than {max(k, 0)} rows a side, "
            f"got {int(left.min())} generated and {len(y)} reference rows"
        )
    radius_y, _, _ = _radii(y, np.full(len(y), -1), k)
    radius_x, grown, without = _radii(x, labels, k)
    inside, balls = np.zeros(len(x)), np.zeros(len(x))
    close, caught, caught_only_then = (np.zeros((len(y), groups + 1)) for _ in range(3))
    for rows, distance, tie in _distances(x, y):
        inside[rows] = (distance <= radius_y + tie).any(axis=1)
        strictly = distance < radius_y - tie
        balls[rows] = strictly.sum(axis=1)
        close += _counts(strictly, labels[rows], groups)
        caught += _counts(distance <= radius_x[rows, None] + tie, labels[rows], groups)
        for slot in range(without.shape[1]):
            wider = distance <= grown[rows, slot, None] + tie
            caught_only_then += _counts(wider, without[rows, slot], groups)
    every = slice(0, groups)
    precision = (inside.sum() - inside @ members) / left
    density = (balls.sum() - balls @ members) / left / k
    coverage = (close.sum(axis=1, keepdims=True) > close)[:, every].mean(axis=0)
    recall = ((caught.sum(axis=1, keepdims=True) > caught) | (caught_only_then > 0))[:, every].mean(axis=0)
    return [PRDC(*(float(v) for v in four)) for four in zip(precision, recall, density, coverage, strict=True)]


def _radii(x: NDArray, labels: NDArray, k: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Squared distances to the k-th neighbour, `[N]`; and what they grow to, `[N, k + 1]`, without the group of each
    of the k + 1 nearest rows, with those groups (-1: the row's own, with which it goes itself)."""
    sizes = np.bincount(labels[labels >= 0])
    slots = k + 1 if len(sizes) else 0
    kept = min(len(x), k + 1 + int(sizes.max(initial=0)))  # the row itself, its neighbours, spare ones for a group
    radius, grown, without = np.zeros(len(x)), np.zeros((len(x), slots)), np.full((len(x), slots), -1)
    for rows, distance, _ in _distances(x, x):
        nearest = np.argpartition(distance, kept - 1, axis=1)[:, :kept]
        nearest = np.take_along_axis(nearest, np.take_along_axis(distance, nearest, axis=1).argsort(axis=1), axis=1)
        sorted_distance, neighbours = np.take_along_axis(distance, nearest, axis=1), labels[nearest]
        radius[rows] = sorted_distance[:, k]
        for slot in range(slots):
            gone = neighbours[:, slot]
            place = ((neighbours != gone[:, None]).cumsum(axis=1) > k).argmax(axis=1)
            grown[rows, slot] = sorted_distance[np.arange(len(place)), place]
            without[rows, slot] = np.where(gone == labels[rows], -1, gone)
    return radius, grown, without


def _distances(x: NDArray, y: NDArray) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks of rows of `x`: their place, squared distances to all of `y`, and how far rounding may move those."""
    b = y.astype(np.float64)
    b_square = (b**2).sum(axis=1)
    chunk = max(ENTRIES // len(b), 1)
    for start in range(0, len(x), chunk):
        a = x[start : start + chunk].astype(np.float64)
        squares = (a**2).sum(axis=1)[:, None] + b_square
        yield slice(start, start + len(a)), np.maximum(squares - 2.0 * (a @ b.T), 0.0), TIE * squares


def _counts(found: NDArray, labels: NDArray, groups: int) -> Array:
    """How many rows of each group have found each column, `[M, groups + 1]`; the last counts those of no group."""
    members = (labels[:, None] % (groups + 1) == np.arange(groups + 1)).astype(np.float32)
    return np.asarray(found.astype(np.float32).T @ members, np.float64)
