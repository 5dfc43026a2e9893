"""Kernel Inception Distance: the unbiased squared MMD of features under the kernel (x·y / D + 1)³.

Bińkowski et al. 2018 (arXiv:1801.01401), appendix D.2 for the averaging over subsets. Subsets, their order and their
seed are those of torch-fidelity 0.4 (`kid_features_to_metric`); its kernel runs in the features' own precision, here
in float64 always. dgm-eval and clean-fid draw without a seed and let the subset shrink to the number of images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.frechet import Array, feature_rows


def kid(x: ArrayLike, y: ArrayLike, *, subset_size: int = 1000, subsets: int = 100, seed: int = 2020) -> float:
    """The mean over `subsets` draws of `subset_size` rows a side, without replacement, from `[N, D]` and `[M, D]`.

    Unbiased, so it may be a little below 0 for like sets, and does not fall with N as a Fréchet distance does.
    `x` is drawn from first: give the generated images' features there, as torch-fidelity's input 1.

    Raises:
        ValueError: fewer rows than `subset_size` on a side (a smaller subset is another, noisier estimate: it is for
            the caller to ask for), different dimensions, or a value that is not finite.
    """
    nobody = np.full(len(np.asarray(x)), -1)
    return float(_leaving_out(x, nobody, 1, y, subset_size, subsets, seed)[0])


def kid_without(
    x: ArrayLike, group: ArrayLike, y: ArrayLike, *, subset_size: int = 1000, subsets: int = 100, seed: int = 2020
) -> Array:
    """KID with the rows of each group 0 ... g-1 of `x` left out, `[g]`, for a jackknife.

    The subsets stay those of `kid`, only without the group's rows: drawn anew each time, their noise would be taken
    for that of the images. Raises ValueError as `kid`, and where a subset keeps fewer than 2 rows.
    """
    labels = np.asarray(group)
    return _leaving_out(x, labels, int(labels.max()) + 1, y, subset_size, subsets, seed)


def _leaving_out(
    x: ArrayLike, labels: NDArray, groups: int, y: ArrayLike, size: int, subsets: int, seed: int
) -> Array:
    a, b = feature_rows(x), feature_rows(y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} dimensions")
    if size < 2 or subsets < 1:
        raise ValueError(f"KID needs subset_size of at least 2 and at least 1 of subsets, got {size} and {subsets}")
    if min(len(a), len(b)) < size:
        raise ValueError(
            f"KID draws subsets of {size} rows, but there are {len(a)} generated and {len(b)} reference rows: "
            f"set subset_size to at most {min(len(a), len(b))}, and compare only values of one subset_size"
        )
    rng = np.random.RandomState(seed)
    values = np.zeros((subsets, groups))
    for i in range(subsets):
        mine = rng.choice(len(a), size, replace=False)
        theirs = rng.choice(len(b), size, replace=False)
        members = labels[mine][:, None] == np.arange(groups)
        values[i] = _unbiased(a[mine].astype(np.float64), members.astype(np.float64), b[theirs].astype(np.float64))
    return np.asarray(values.mean(axis=0))


def _unbiased(x: Array, members: Array, y: Array) -> Array:
    """The squared MMD of `x` without the rows of each column of `members` `[N, g]` and `y`, `[g]`."""
    left = len(x) - members.sum(axis=0)
    if left.min() < 2:
        raise ValueError("fewer than 2 rows of a subset are left: use larger subsets or smaller groups")
    within = _kernel(x, x)
    np.fill_diagonal(within, 0.0)
    own = _kernel(y, y)
    across = _kernel(x, y).sum(axis=1)
    left_out = 2 * (within.sum(axis=1) @ members) - ((within @ members) * members).sum(axis=0)
    return np.asarray(
        (within.sum() - left_out) / (left * (left - 1))
        + (own.sum() - np.trace(own)) / (len(y) * (len(y) - 1))
        - 2 * (across.sum() - across @ members) / (left * len(y))
    )


def _kernel(x: Array, y: Array) -> Array:
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return np.asarray(k * k * k)
