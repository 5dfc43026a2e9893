"""Intervals against scipy, closed forms and simulated coverage."""

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.analysis import intervals


def test_mean_interval_agrees_with_scipys_bootstrap_where_every_cluster_has_one_row():
    values = np.random.default_rng(0).normal(3, 2, 80)
    ours = intervals.mean_interval(values, np.arange(80), draws=20_000)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    widen = np.sqrt(80 / 79) * scipy_stats.t.ppf(0.975, 79) / scipy_stats.norm.ppf(0.975)
    mean = values.mean()
    assert ours.value == pytest.approx(mean)
    assert ours.low == pytest.approx(mean + (theirs.confidence_interval.low - mean) * widen, abs=0.02)
    assert ours.high == pytest.approx(mean + (theirs.confidence_interval.high - mean) * widen, abs=0.02)


def test_mean_interval_agrees_with_students_t():
    values = np.random.default_rng(2).normal(0, 1, 12)
    ours = intervals.mean_interval(values, np.arange(12), draws=50_000)
    half = scipy_stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (ours.high - ours.low) / 2 == pytest.approx(half, rel=0.06)


def test_seeds_of_one_prompt_are_one_cluster():
    prompts = np.random.default_rng(3).normal(size=50)
    once = intervals.mean_interval(prompts, np.arange(50))
    tenfold = intervals.mean_interval(np.repeat(prompts, 10), np.repeat(np.arange(50), 10))
    assert (tenfold.n, tenfold.clusters) == (500, 50)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_many_clusters_take_the_normal_limit_and_it_agrees_with_resampling(monkeypatch):
    values = np.random.default_rng(4).exponential(size=3000)
    clusters = np.arange(3000) // 2
    slow = intervals.mean_interval(values, clusters, draws=8000)
    monkeypatch.setattr(intervals, "MANY", 100)
    fast = intervals.mean_interval(values, clusters, draws=8000)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.006)


def test_the_normal_limit_is_students_t_too(monkeypatch):
    monkeypatch.setattr(intervals, "MANY", 2)
    values = np.random.default_rng(4).normal(0, 1, 6)
    ours = intervals.mean_interval(values, np.arange(6), draws=100_000)
    half = scipy_stats.t.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6)
    assert (ours.high - ours.low) / 2 == pytest.approx(half, rel=0.02)


def test_a_million_rows_take_seconds():
    rng = np.random.default_rng(5)
    values, clusters = rng.normal(size=1_000_000), np.arange(1_000_000) // 4
    start = time.perf_counter()
    intervals.mean_interval(values, clusters)
    assert time.perf_counter() - start < 10


def test_mean_of_groups_weighs_groups_alike():
    values, groups = [1, 1, 1, 1, 0, 1, 0], list("aaaabbb")
    found = intervals.mean_of_groups_interval(values, groups, np.arange(7))
    assert found.value == pytest.approx((1 + 1 / 3) / 2)
    assert 0 <= found.low <= found.value <= found.high <= 1


def _lowest_by_hand(values, clusters, k, draws):
    """Percentiles of the resampled mean of the k lowest, a prompt at a time."""
    rng = np.random.default_rng(9)
    rows = [values[clusters == name] for name in np.unique(clusters)]
    point = np.sort(values)[:k].mean()
    found = [
        np.sort(np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]))[:k].mean()
        for _ in range(draws)
    ]
    c, order = len(rows), np.argsort(values)
    carriers = len(set(clusters[order[:k]]))
    widen = np.sqrt(c / (c - 1)) * scipy_stats.t.ppf(0.975, carriers - 1) / scipy_stats.norm.ppf(0.975)
    half = np.diff(np.quantile(found, [0.025, 0.975]))[0] / 2 * widen
    return point, point - half, point + half


@pytest.mark.parametrize("k", [7, 40, 115])
def test_the_mean_of_the_lowest_resamples_prompts(k):
    rng = np.random.default_rng(10)
    clusters = np.sort(np.concatenate([np.arange(60), rng.integers(0, 60, 60)]))  # prompts of one to a few seeds
    values = 3 + rng.normal(size=60)[clusters] + 0.3 * rng.normal(size=120)
    order = rng.permutation(120)
    found = intervals.mean_of_lowest_interval(values[order], clusters[order], k, draws=20_000)
    point, low, high = _lowest_by_hand(values, clusters, k, 20_000)
    assert found.value == pytest.approx(point, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert (found.n, found.clusters) == (120, 60)
    moved = intervals.mean_of_lowest_interval(values[order] + 100, clusters[order], k, draws=20_000)
    assert (moved.low, moved.high) == pytest.approx((found.low + 100, found.high + 100))


def test_the_mean_of_more_than_there_are_is_the_mean_of_all():
    values = np.random.default_rng(11).normal(size=30)
    all_of_them = intervals.mean_interval(values, np.arange(30))
    for k in (30, 1000):
        found = intervals.mean_of_lowest_interval(values, np.arange(30), k)
        assert found.value == pytest.approx(all_of_them.value)
        assert found.high - found.low == pytest.approx(all_of_them.high - all_of_them.low, abs=1e-9)
    nothing = intervals.mean_of_lowest_interval([], [], 5)
    assert np.isnan(nothing.value)
    assert nothing.n == 0
    alone = intervals.mean_of_lowest_interval([3.0, 1.0, 2.0], ["p"] * 3, 2)
    assert (alone.value, alone.n) == (1.5, 3)
    assert np.isnan(alone.low)
    with pytest.raises(ValueError, match="not finite"):
        intervals.mean_of_lowest_interval([1.0, np.nan], [0, 1], 1)


def test_the_mean_of_the_lowest_of_many_prompts_takes_the_normal_limit(monkeypatch):
    rng = np.random.default_rng(12)
    clusters = np.arange(3000) // 2
    values = rng.normal(size=1500)[clusters] + 0.5 * rng.normal(size=3000)
    monkeypatch.setattr(intervals, "MANY", 2000)
    slow = intervals.mean_of_lowest_interval(values, clusters, 300, draws=4000)
    monkeypatch.setattr(intervals, "MANY", 100)
    fast = intervals.mean_of_lowest_interval(values, clusters, 300, draws=4000)
    assert fast.value == slow.value
    assert fast.high - fast.low == pytest.approx(slow.high - slow.low, rel=0.08)


def test_the_interval_of_the_lowest_covers():
    rng = np.random.default_rng(13)
    truth = np.mean([np.sort(rng.normal(size=200))[:40].mean() for _ in range(4000)])
    hits = 0
    for k in range(300):
        found = intervals.mean_of_lowest_interval(rng.normal(size=200), np.arange(200), 40, draws=400, seed=k)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_all_right_is_no_certainty_and_one_prompt_has_no_interval():
    found = intervals.mean_interval(np.ones(40), np.arange(40))
    assert found.value == found.high == 1.0
    widen = scipy_stats.t.ppf(0.975, 39) / scipy_stats.norm.ppf(0.975)
    jeffreys = scipy_stats.beta.ppf(0.975, 0.5, 40.5)  # of the share of wrong prompts
    assert found.low == pytest.approx(1 - jeffreys * widen, abs=0.01)
    alone = intervals.mean_interval([1.0, 0.0], ["p", "p"])
    assert (alone.value, alone.n) == (0.5, 2)
    assert np.isnan([alone.low, alone.high]).all()
    nothing = intervals.mean_interval([], [])
    assert np.isnan(nothing.value)
    assert nothing.n == 0


def test_not_finite_values_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        intervals.mean_interval([1.0, np.nan], [0, 1])


def test_wilson_agrees_with_scipy():
    for k, n in ((0, 10), (3, 10), (10, 10), (540, 553)):
        theirs = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        assert intervals.wilson_interval(k, n) == pytest.approx((theirs.low, theirs.high))
    with pytest.raises(ValueError, match="3 successes of 2"):
        intervals.wilson_interval(3, 2)


def _coverage(prompts: int, repeats: int, binary: bool, groups: int) -> float:
    """The share of simulated studies (2 seeds a prompt) whose 95 % interval holds the true mean of groups."""
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(groups), prompts * 2)
    clusters = np.arange(groups * prompts * 2) // 2
    difficulty = np.linspace(0.3, 0.85, groups)[labels]
    hits = 0
    for k in range(repeats):
        if binary:  # the prompt's own chance is Beta-distributed around its group's
            chance = np.repeat(rng.beta(3 * difficulty[::2], 3 * (1 - difficulty[::2])), 2)
            values = (rng.random(len(labels)) < chance).astype(float)
        else:
            values = difficulty + np.repeat(rng.normal(size=len(labels) // 2), 2) + rng.normal(size=len(labels))
        found = intervals.mean_of_groups_interval(values, labels, clusters, draws=500, seed=k)
        hits += found.low <= np.mean(np.linspace(0.3, 0.85, groups)) <= found.high
    return 100 * hits / repeats


def test_coverage_in_short():
    assert 91 <= _coverage(prompts=20, repeats=300, binary=True, groups=3) <= 99


@pytest.mark.long
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("prompts", "groups"), [(10, 6), (40, 6), (30, 1), (200, 1), (1500, 1)])
def test_coverage(prompts, groups, binary):
    covered = _coverage(prompts, 2000, binary, groups)
    print(f"{groups} groups of {prompts} prompts, binary={binary}: {covered:.1f}")
    assert 93 <= covered <= 97


@pytest.mark.long
@pytest.mark.parametrize("prompts", [50, 200, 1500])
def test_coverage_of_the_lowest(prompts):
    """A tenth of the rows, two seeds a prompt that share half of their variance; 1,500 take the normal limit."""
    rng, rows, repeats = np.random.default_rng(14), 2 * prompts, 2000
    clusters = np.arange(rows) // 2

    def draw() -> np.ndarray:
        return np.repeat(rng.normal(size=prompts), 2) + rng.normal(size=rows)

    truth = np.mean([np.sort(draw())[: rows // 10].mean() for _ in range(20_000)])
    hits = 0
    for k in range(repeats):
        found = intervals.mean_of_lowest_interval(draw(), clusters, rows // 10, draws=400, seed=k)
        hits += found.low <= truth <= found.high
    print(f"lowest tenth of {prompts} prompts: {100 * hits / repeats:.1f}")
    assert 93 <= 100 * hits / repeats <= 97


@pytest.mark.parametrize("n", [20, 40, 100, 500])
def test_wilson_covers(n):
    """Exactly, by summing binomial chances; single shares swing with n, their average is what is asked for."""
    low, high = np.array([intervals.wilson_interval(k, n) for k in range(n + 1)]).T
    covered = [
        100 * scipy_stats.binom.pmf(np.arange(n + 1), n, share)[(low <= share) & (share <= high)].sum()
        for share in np.linspace(0.05, 0.95, 181)
    ]
    print(f"wilson n={n}: {np.mean(covered):.1f} ({min(covered):.1f} to {max(covered):.1f})")
    assert 94 <= np.mean(covered) <= 96
    assert min(covered) >= 90
