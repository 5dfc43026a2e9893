"""Comparisons of two methods on the same prompts and seeds: difference, test, win rate, effect size, prompts needed.

Intervals of one method's scores are in intervals.py, and offered here as well. As there, a row comes with the label of
its cluster (its prompt), every prompt is one draw, a seed gives the same answer always, and NaN is refused.
statsmodels is imported where it is used: it brings scipy.stats, which takes longer than a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from harness.analysis.intervals import (
    DRAWS,
    MANY,
    Array,
    Interval,
    Stratum,
    interval_of,
    mean_interval,
    mean_of_groups_interval,
    mean_of_lowest_interval,
    strata_of,
    wilson_interval,
)

__all__ = ["Difference", "Interval", "WinRate", "effect_size", "holm", "mean_interval", "mean_of_groups_interval",
           "mean_of_lowest_interval", "paired_difference", "prompts_needed", "sign_flip_test", "wilson_interval",
           "win_rate"]

EXACT = 14  # clusters up to which all sign flips are tried
ROUNDING = 1e-12  # sums this much smaller than what they add up are rounding, not differences


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference; `p` is the two-sided sign-flip permutation test's. `n` counts pairs."""

    p: float = float("nan")


@dataclass(frozen=True)
class WinRate:
    """A share of prompts with its interval, and how many of the `clusters` prompts were won, tied and lost."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    clusters: int


def paired_difference(
    differences: ArrayLike,
    clusters: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    flips: int = 9999,
    seed: int = 0,
) -> Difference:
    """The mean of differences between pairs (same prompt, same seed), its interval, and a permutation p-value.

    With `groups`, the mean of the groups' means. The test flips the sign of all of a prompt's differences
    together: exact up to 14 prompts, else by `flips` draws, (hits + 1) / (flips + 1).
    """
    given = strata_of(differences, clusters, groups)
    strata = [Stratum(s.sums, s.counts, False) for s in given]  # a difference of 0 everywhere is no share
    found = interval_of(strata, confidence, draws, seed)
    weights = [s.sums / (s.counts.sum() * len(strata)) for s in strata]
    p = sign_flip_test(np.concatenate(weights), flips, seed) if weights else float("nan")
    return Difference(found.value, found.low, found.high, found.n, found.clusters, p)


def sign_flip_test(weights: ArrayLike, flips: int = 9999, seed: int = 0) -> float:
    """Two-sided p of |sum of weights| when each weight's sign is a fair coin; 0 < p <= 1."""
    # scipy.stats.permutation_test gives the same (see the tests), at 8 to 12 times the time from 1,000 weights on
    w = np.asarray(weights, np.float64)
    w = w[w != 0]
    c = len(w)
    if c == 0:
        return 1.0
    observed = abs(w.sum()) * (1 - 1e-12)
    if c <= EXACT:
        signs = 1 - 2 * ((np.arange(2**c)[:, None] >> np.arange(c)) & 1)
        return float((np.abs(signs @ w) >= observed).mean())
    if c > MANY:
        return float(2 * ndtr(-abs(w.sum()) / np.sqrt((w**2).sum())))
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, 4_000_000 // c)
    for start in range(0, flips, step):
        # sum over coins: total minus twice what lands on minus
        minus = rng.integers(0, 2, (min(step, flips - start), c), dtype=np.int8)
        hits += int((np.abs(w.sum() - 2 * (minus @ w)) >= observed).sum())
    return (hits + 1) / (flips + 1)


def holm(p_values: ArrayLike) -> Array:
    """Holm's adjusted p-values for a family of tests; NaN stays NaN and does not count as a test."""
    # not statsmodels' multipletests: it collects garbage at every call, 0.1 to 0.4 s each beside torch
    p = np.asarray(p_values, np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    out[order] = np.minimum(steps, 1.0)
    return out


def _prompt_means(differences: ArrayLike, clusters: ArrayLike) -> Array:
    """Each cluster's mean difference, in order of first appearance; one that is rounding alone is 0."""
    if not len(np.asarray(differences)):
        return np.zeros(0)
    (whole,) = strata_of(differences, clusters, None)
    (size,) = strata_of(np.abs(np.asarray(differences, np.float64)), clusters, None)
    return np.asarray(np.where(np.abs(whole.sums) <= ROUNDING * size.sums, 0.0, whole.sums) / whole.counts)


def win_rate(
    differences: ArrayLike, clusters: ArrayLike, higher_is_better: bool = True, *, confidence: float = 0.95
) -> WinRate:
    """The share of prompts on which a method beats its baseline, ties counting half, with Wilson's interval.

    `differences` are method minus baseline, paired by prompt and seed; each prompt (`clusters`) counts once, by the
    mean of its pairs, however many it has.

    The interval is Wilson's score interval, all p with |rate - p| <= z·√(variance / n), in which a prompt's variance
    is that of a score of 1, 1/2 or 0: p(1 - p) less a quarter of the share of ties, taken as ties / (n + z²) so that
    n ties of n are no certainty. Without ties it is `wilson_interval`. Libraries have it for no ties alone; with half
    of the prompts tied that covers 99 % where 95 % is asked for.
    """
    means = _prompt_means(differences, clusters)
    n, ties = len(means), int((means == 0).sum())
    wins = int((means > 0).sum()) if higher_is_better else int((means < 0).sum())
    if n == 0:
        return WinRate(float("nan"), float("nan"), float("nan"), 0, 0, 0, 0)
    rate = (wins + ties / 2) / n
    z2 = float(ndtri(0.5 + confidence / 2)) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    spread = rate * (1 - rate) + (z2 - ties) / (4 * n)
    half = float(np.sqrt(z2 / n * spread)) / (1 + z2 / n)
    return WinRate(rate, max(centre - half, 0.0), min(centre + half, 1.0), wins, ties, n - wins - ties, n)


def effect_size(differences: ArrayLike, clusters: ArrayLike) -> float:
    """Cohen's d_z (Cohen 1988, section 2.3.5): the mean of the prompts' mean differences over their standard
    deviation (n - 1). NaN with fewer than two prompts, or where all differ alike."""
    means = _prompt_means(differences, clusters)
    spread = _spread(means)
    return float(means.mean() / spread) if spread > 0 else float("nan")


def prompts_needed(
    differences: ArrayLike, clusters: ArrayLike, difference: float, power: float = 0.8, level: float = 0.05
) -> int:
    """How many prompts a paired two-sided test at `level` needs to see a true `difference` with the given power.

    The spread of the prompts' mean differences is taken from the pairs given (a pilot, or this very run), so the
    answer holds for as many seeds a prompt as they have. The power is the paired t-test's (statsmodels' TTestPower),
    which the sign-flip test equals for all but a handful of prompts.

    Raises:
        ValueError: fewer than two prompts, no difference, or a power that is not between `level` and 1.
    """
    from statsmodels.stats.power import TTestPower

    means = _prompt_means(differences, clusters)
    if len(means) < 2:
        raise ValueError(f"the spread between prompts is not known from {len(means)} of them: at least 2 are needed")
    if difference == 0 or not np.isfinite(difference):
        raise ValueError(f"a difference of {difference} is seen with no number of prompts")
    if not 0 < level < power < 1:
        raise ValueError(f"expected 0 < level < power < 1, got level {level} and power {power}")
    spread = _spread(means)
    if spread == 0:
        return 2
    effect = abs(float(difference)) / spread
    z = float(ndtri(1 - level / 2))
    needed = float((z + ndtri(power)) / effect) ** 2  # of a z-test; a t-test needs some z²/2 more
    if needed > MANY:
        return int(np.ceil(needed + z**2 / 2))
    n = max(2, int(needed))
    while TTestPower().power(effect, n, level) < power:  # it gives NaN where the power is all but 1
        n += 1
    return n


def _spread(means: Array) -> float:
    """The standard deviation (n - 1); 0 where it is rounding alone, or there are fewer than two."""
    found = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return found if found > ROUNDING * float(np.abs(means).max(initial=0)) else 0.0
