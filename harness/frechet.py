"""Distances between clouds of features: streaming moments, Fréchet distance, Gaussian MMD, and their intervals.

NumPy alone, float64 throughout. Sources: Heusel et al. 2017 (arXiv:1706.08500) for the Fréchet distance;
Jayasumana et al. 2024 (arXiv:2401.09603) for CMMD.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]

BLOCK = 256  # rows whose outer products are summed at once
GROUPS = 50  # of the delete-a-group jackknife; below twice as many prompts each prompt is a group of its own
FEW = 20  # groups below which pairs of them are too few to tell the quadratic part of a variance
ROWS = 2  # rows a dimension below which a distance is far from quadratic (docs/statistics.md)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of feature rows: enough for mean and covariance, and mergeable.

    `a + b` are the moments of both sets together and `a - b` those of `a` without its part `b`, so shards may
    be summed anywhere in any order (equal up to float64 rounding).
    """

    count: int
    total: Array  # [D]
    outer: Array  # [D, D]

    @staticmethod
    def zero(dimension: int) -> Moments:
        """The moments of no rows."""
        return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @staticmethod
    def of(features: ArrayLike) -> Moments:
        """The moments of `[N, D]` features. Raises ValueError where one of them is not finite."""
        return Moments.of_parts([features])

    @staticmethod
    def of_parts(parts: Iterable[ArrayLike]) -> Moments:
        """The moments of features `[n, D]` that come part by part, however many: two `[D, D]` sums and one block of
        rows are held at a time (at D = 2048 some 80 MB beside the part itself).

        Raises ValueError where there is no part, the parts differ in D, or a value is not finite.
        """
        whole: Moments | None = None
        count, product = 0, np.zeros(0)
        for block in _blocks(parts):
            if whole is None:
                whole = Moments.zero(block.shape[1])
                product = np.empty_like(whole.outer)
            if block.shape[1] != len(whole.total):
                raise ValueError(f"features have {len(whole.total)} and {block.shape[1]} dimensions")
            count += len(block)
            np.add(whole.total, block.sum(axis=0), out=whole.total)
            np.add(whole.outer, np.matmul(block.T, block, out=product), out=whole.outer)
        if whole is None:
            raise ValueError("the moments of no features are asked for")
        return replace(whole, count=count)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    @property
    def mean(self) -> Array:
        """The mean, `[D]`."""
        if self.count < 1:
            raise ValueError("the mean of no features is asked for")
        return self.total / self.count

    @property
    def covariance(self) -> Array:
        """The covariance with N - 1, `[D, D]`, exactly symmetric."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature rows, got {self.count}")
        cov = np.outer(self.mean, self.mean)
        cov *= -self.count
        cov += self.outer
        cov /= self.count - 1
        return cov


def _blocks(parts: Iterable[ArrayLike]) -> Iterator[Array]:
    """The same rows as float64, `BLOCK` at a time, so that neither few nor many rows a part cost much."""
    kept: list[NDArray[np.floating]] = []
    for part in parts:
        kept.append(feature_rows(part))
        while sum(map(len, kept)) >= BLOCK:
            rows = np.concatenate(kept) if len(kept) > 1 else kept[0]
            yield rows[:BLOCK].astype(np.float64, copy=False)
            kept = [rows[BLOCK:]]
    if kept:
        yield np.concatenate(kept).astype(np.float64, copy=False)


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """|m1 - m2|² + tr S1 + tr S2 - 2 tr √(S1 S2), by symmetric eigenvalues; 0 to infinity, smaller is nearer.

    Raises:
        ValueError: shapes that do not fit, or a value that is not finite.
    """
    return _to_reference(mean1, cov1, np.asarray(mean2, np.float64), factor_of(cov2))


def factor_of(covariance: ArrayLike) -> Array:
    """A matrix A with A A^T = covariance: Cholesky's, or from the eigenvalues of one that is singular.

    Eigenvalues below zero (rounding) count as zero. Any such A will do: tr √(S1 S2) is the sum of the roots of the
    eigenvalues of A^T S1 A, and Cholesky's takes a fifth of the time of an eigendecomposition.
    """
    cov = np.asarray(covariance, np.float64)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise ValueError(f"a covariance must be square, got shape {cov.shape}")
    if not np.isfinite(cov).all():
        raise ValueError("the covariance holds values that are not finite")
    cov = (cov + cov.T) / 2
    try:
        return np.asarray(np.linalg.cholesky(cov))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _to_reference(mean: ArrayLike, cov: ArrayLike, mean2: Array, factor2: Array) -> float:
    """The Fréchet distance to a reference whose covariance is given by its factor."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.shape != mean2.shape or cov.shape != factor2.shape or cov.shape[0] != len(mean):
        raise ValueError(
            f"statistics of different size: means {mean.shape} and {mean2.shape}, "
            f"covariances {cov.shape} and {factor2.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all() and np.isfinite(mean2).all()):
        raise ValueError("the statistics hold values that are not finite")
    product = factor2.T @ cov @ factor2
    values = np.linalg.eigvalsh((product + product.T) / 2)
    trace = np.sqrt(np.maximum(values, 0.0)).sum()
    return float(((mean - mean2) ** 2).sum() + np.trace(cov) + (factor2**2).sum() - 2.0 * trace)


def frechet_distance_of(
    features: ArrayLike, mean: ArrayLike, covariance: ArrayLike, *, factor: Array | None = None
) -> float:
    """The Fréchet distance of `[N, D]` features to a reference's moments.

    `factor` is `factor_of(covariance)`, for callers that compare many sets with one.

    With fewer rows than dimensions the sample covariance is singular; its factor (the centred rows) then gives
    tr √(S1 S2) as a nuclear norm, which is faster and keeps the digits that eigenvalues near zero lose.

    Raises:
        ValueError: fewer than 2 rows, shapes that do not fit, or a value that is not finite.
    """
    rows = feature_rows(features)
    mean2, factor2 = np.asarray(mean, np.float64), factor_of(covariance) if factor is None else factor
    if len(rows) > rows.shape[1]:
        moments = Moments.of(rows)
        return _to_reference(moments.mean, moments.covariance, mean2, factor2)
    if mean2.shape != rows.shape[1:] or factor2.shape[0] != rows.shape[1]:
        raise ValueError(f"features have {rows.shape[1]} dimensions, the reference {mean2.size}")
    x = rows.astype(np.float64)
    return _of_few(x, x @ factor2, mean2, float((factor2**2).sum()))


def _of_few(x: Array, projected: Array, mean2: Array, trace2: float) -> float:
    """The Fréchet distance of fewer rows than dimensions; `projected` are the rows times the reference's factor."""
    if len(x) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 feature rows, got {len(x)}")
    spread = ((x - x.mean(axis=0)) ** 2).sum() / (len(x) - 1)
    trace = np.linalg.svd((projected - projected.mean(axis=0)) / np.sqrt(len(x) - 1), compute_uv=False).sum()
    shift = ((x.mean(axis=0) - mean2) ** 2).sum()
    return float(shift + spread + trace2 - 2.0 * trace)


def gaussian_mmd(
    x: ArrayLike, y: ArrayLike, sigma: float = 10.0, scale: float = 1000.0, *, own: float | None = None
) -> float:
    """`scale` times the squared MMD under exp(-|a - b|² / 2σ²): the biased estimator, diagonals included.

    CMMD is this on embeddings of length 1; the caller normalises. At least 0, and 0 for equal sets. `own` is the
    mean kernel of `y` with itself (`mean_kernel(y)`), for callers that compare many sets with one.

    Raises:
        ValueError: an empty set, different dimensions, or a value that is not finite.
    """
    a, b = _features(x), _features(y)
    if len(a) == 0 or len(b) == 0:
        raise ValueError("an MMD needs at least 1 feature row on each side")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} dimensions")
    inside = mean_kernel(a, sigma) + (mean_kernel(b, sigma) if own is None else own)
    return float(scale * (inside - 2.0 * kernel_sums(a, b, sigma).mean() / len(b)))


def mean_kernel(x: Array, sigma: float = 10.0) -> float:
    """The mean Gaussian kernel of all pairs of rows of `x`, each with itself included."""
    return float(kernel_sums(x, x, sigma).mean() / len(x))


def kernel_sums(x: Array, y: Array, sigma: float, chunk: int = 1024) -> Array:
    """For each row of `x` the sum of its Gaussian kernel with all rows of `y`, `[len(x)]`."""
    gamma = 1.0 / (2.0 * sigma**2)
    y_square = (y**2).sum(axis=1)
    sums = [np.zeros(0)]
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        square = (part**2).sum(axis=1)[:, None] + y_square[None, :] - 2.0 * (part @ y.T)
        sums.append(np.exp(-gamma * np.maximum(square, 0.0)).sum(axis=1))
    return np.concatenate(sums)


# ------------------------------------------------------------------------------------------------- intervals
#
# Why no bootstrap: a resample repeats rows, which shrinks the sample covariance's rank and adds bias of the size
# of the one already there, so that the point lies outside its own interval. Leaving prompts out repeats nothing.


def prompt_groups(clusters: ArrayLike, groups: int = GROUPS, seed: int = 0) -> NDArray[np.int64]:
    """A group 0 ... g-1 for every row: prompts (`clusters`, one label a row) dealt at random into equal groups.

    g is `groups`, or the number of prompts where that is below 2 · `groups`. All rows of a prompt share its
    group. The deal depends on the sorted labels and the seed alone, so two methods on the same prompts share it.
    """
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    deal = np.arange(len(names)) % (groups if len(names) >= 2 * groups else max(len(names), 1))
    np.random.default_rng(seed).shuffle(deal)
    return np.asarray(deal[inverse], np.int64)


def jackknife_interval(
    point: float, left_out: ArrayLike, sizes: ArrayLike, confidence: float = 0.95, *, pairs: ArrayLike = ()
) -> tuple[float, float]:
    """The interval of a statistic from its values with each of g groups left out (delete-a-group jackknife).

    point ± t(g - 1) · standard error, the latter from pseudo-values so that groups of unequal `sizes` (rows)
    may stand together (Busing, Meijer & van der Leeden 1999): a Fréchet distance moves by its 1/n bias with the
    rows left, and plain deviations took that for noise (4 to 6 times too wide at 60 prompts in 50 groups).
    (NaN, NaN) with fewer than 2 groups.

    `pairs` are the values with groups 0 and 1, 2 and 3, ... left out together. A jackknife counts the quadratic part
    of a statistic's variance twice, which near distance 0 is all of it (Efron & Stein 1981); the pairs show how large
    that part is, and it is taken off once. Without them the interval errs on the wide side, by up to √2.

    It is an interval for the statistic's *expectation at this n*: a Fréchet distance of n images lies above the
    one of infinitely many, by an amount that no interval at one n shows; so rows of different n must not be
    compared.
    """
    values, rows = np.asarray(left_out, np.float64), np.asarray(sizes, np.float64)
    g = len(values)
    if g < 2:
        return float("nan"), float("nan")
    share = rows.sum() / rows
    pseudo = share * point - (share - 1) * values
    variance = (((pseudo - pseudo.mean()) ** 2) / (share - 1)).sum() / g
    both = np.asarray(pairs, np.float64)
    if len(both):
        variance = max(variance - _quadratic_part(point, values, rows, both), variance / 2)
    half = float(stdtrit(g - 1, 0.5 + confidence / 2) * np.sqrt(variance))
    return point - half, point + half


def _quadratic_part(point: float, left_out: Array, rows: Array, pairs: Array) -> float:
    """The variance of the part of a statistic in which two groups meet.

    What the two groups of a pair contribute together and not each alone is q / n below: whatever is linear in the
    rows, and a bias of 1/n, cancels. There are g (g - 1) / 2 pairs; those looked at are a random g / 2 of them.
    """
    g, n, k = len(left_out), rows.sum(), len(pairs)
    (v1, v2), (m1, m2) = left_out[: 2 * k].reshape(k, 2).T, rows[: 2 * k].reshape(k, 2).T
    q = n * point - (n - m1) * v1 - (n - m2) * v2 + (n - m1 - m2) * pairs
    return float(g * (g - 1) / 2 * (q**2).mean() / n**2)


@dataclass(frozen=True)
class Jackknife:
    """A statistic of rows, and its values with each group of prompts left out: all that intervals of it need."""

    value: float
    without: Array  # [g]; empty where there are too few prompts or rows to leave any out
    pairs: Array  # [g / 2], with groups 0 and 1, 2 and 3, ... left out together; empty below `FEW` groups or `ROWS`
    sizes: NDArray[np.int64]  # [g], rows of each group
    prompts: frozenset[Any]

    @staticmethod
    def of(
        features: NDArray[np.floating],
        clusters: ArrayLike,
        *,
        distance: Callable[[NDArray[np.floating]], float],
        without: Callable[[NDArray[np.floating], NDArray[np.int64]], Array],
        groups: int = GROUPS,
    ) -> Jackknife:
        """Of `[N, D]` features, one prompt (`clusters`) a row.

        `distance(features)` is the statistic and `without(features, group)` its values with each group left out; where
        that raises ValueError nothing can be left out.
        """
        group, left_out, pairs = prompt_groups(clusters, groups), np.zeros(0), np.zeros(0)
        sizes = np.bincount(group)
        enough = len(sizes) >= FEW and len(features) >= ROWS * features.shape[1]
        with contextlib.suppress(ValueError):
            left_out = without(features, group) if len(sizes) > 1 else left_out
            pairs = without(features, group // 2)[: len(sizes) // 2] if enough else pairs
        return Jackknife(distance(features), left_out, pairs, sizes, frozenset(np.asarray(clusters).tolist()))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """`jackknife_interval` of the value; (NaN, NaN) where nothing could be left out."""
        return jackknife_interval(self.value, self.without, self.sizes, confidence, pairs=self.pairs)

    def __sub__(self, other: Jackknife) -> Jackknife:
        """The paired difference: prompts are left out of both together.

        Raises:
            ValueError: the two sides do not have the same prompts, or too few of them.
        """
        if self.prompts != other.prompts:
            raise ValueError("a paired difference needs the same prompts on both sides")
        if not len(self.without) or not len(other.without):
            raise ValueError("too few prompts or rows for a paired difference")
        pairs = self.pairs - other.pairs if len(self.pairs) == len(other.pairs) else np.zeros(0)
        return replace(
            self, value=self.value - other.value, without=self.without - other.without, pairs=pairs
        )


def frechet_without(
    features: ArrayLike, group: ArrayLike, mean: ArrayLike, covariance: ArrayLike, *, factor: Array | None = None
) -> Array:
    """The Fréchet distances with each group of rows left out, `[g]`; `factor` as for `frechet_distance_of`."""
    x, labels, mean2 = feature_rows(features), np.asarray(group), np.asarray(mean, np.float64)
    factor2, groups = factor_of(covariance) if factor is None else factor, range(int(labels.max()) + 1)
    if len(x) <= x.shape[1]:
        x = x.astype(np.float64)
        y, trace2 = x @ factor2, float((factor2**2).sum())
        return np.array([_of_few(x[labels != k], y[labels != k], mean2, trace2) for k in groups])
    whole, distances = Moments.of(x), []
    for k in groups:  # one group's moments at a time: at D = 2048 each takes 32 MB
        rest = whole - Moments.of(x[labels == k])
        distances.append(_to_reference(rest.mean, rest.covariance, mean2, factor2))
    return np.array(distances)


def frechet_interval(
    features: ArrayLike,
    clusters: ArrayLike,
    mean: ArrayLike,
    covariance: ArrayLike,
    *,
    confidence: float = 0.95,
    groups: int = GROUPS,
) -> tuple[float, float]:
    """The jackknife interval of a Fréchet distance, prompts (`clusters`) left out in groups; never below 0.

    How often it covers the expectation at this n, and how wide it is: docs/statistics.md (95 % ± 2 in simulations with
    two rows a dimension or more, 94 to 100 % with fewer); the simulation stands in `tests/test_frechet.py`.
    """
    factor = factor_of(covariance)
    found = Jackknife.of(
        feature_rows(features), clusters, groups=groups,
        distance=lambda x: frechet_distance_of(x, mean, covariance, factor=factor),
        without=lambda x, group: frechet_without(x, group, mean, covariance, factor=factor),
    )
    low, high = found.interval(confidence)
    return max(low, 0.0), high


def mmd_without(
    x: ArrayLike, group: ArrayLike, y: ArrayLike, sigma: float = 10.0, scale: float = 1e3, *, own: float | None = None
) -> Array:
    """The MMDs of `x` to `y` with each group of rows of `x` left out, `[g]`, from one pass over the kernel.

    Raises:
        ValueError: there is but one group.
    """
    a, b, labels = _features(x), _features(y), np.asarray(group)
    count = int(labels.max()) + 1
    size = np.bincount(labels, minlength=count)
    cross = np.bincount(labels, kernel_sums(a, b, sigma), count)
    inside = np.zeros((count, count))
    for k in range(count):
        inside[:, k] = np.bincount(labels, kernel_sums(a, a[labels == k], sigma), count)
    own = mean_kernel(b, sigma) if own is None else own
    n = len(a) - size
    if not n.all():
        raise ValueError("all rows belong to one group: nothing is left when it is left out")
    xx = inside.sum() - 2 * inside.sum(axis=0) + np.diag(inside)
    return np.asarray(scale * (xx / n**2 + own - 2 * (cross.sum() - cross) / (n * len(b))))


def feature_rows(features: ArrayLike) -> NDArray[np.floating]:
    """Features `[N, D]`, finite, in the precision that they have.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    x = np.asarray(features)
    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be [N, D], got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the features hold values that are not finite")
    return x


def _features(features: ArrayLike) -> Array:
    """The same as float64."""
    return feature_rows(features).astype(np.float64, copy=False)
