"""Fréchet distance and MMD against known answers, other implementations and simulation."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from harness import frechet
from harness.frechet import Moments, frechet_distance, frechet_distance_of, gaussian_mmd


def _cloud(rows: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dimension)) @ rng.normal(size=(dimension, dimension)) / dimension**0.5 + shift


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    a, b = Moments.of(x), Moments.of(y)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _others(a: Moments, b: Moments) -> dict[str, float]:
    """The distance as scipy's matrix root (pytorch-fid, clean-fid, EDM2), torchmetrics and torch-fidelity give it."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    root = linalg.sqrtm(a.covariance @ b.covariance)
    theirs = [{"mu": m.mean, "sigma": m.covariance} for m in (a, b)]
    return {
        "scipy": ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real),
        "torchmetrics": _compute_fid(*(torch.from_numpy(z) for m in (a, b) for z in (m.mean, m.covariance))).item(),
        "torch-fidelity": fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"],
    }


@pytest.mark.parametrize("dimension", [3, 64, 192, pytest.param(2048, marks=pytest.mark.long)])
def test_equals_scipy_torchmetrics_and_torch_fidelity(dimension):
    a, b = Moments.of(_cloud(4 * dimension, dimension, 0)), Moments.of(_cloud(5 * dimension, dimension, 1, 0.5))
    ours = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    for name, theirs in _others(a, b).items():
        assert ours == pytest.approx(theirs, rel=1e-8), name


def test_a_singular_reference_equals_the_limit_of_regular_ones():
    x, y = Moments.of(_cloud(90, 32, 14)), Moments.of(_cloud(12, 32, 15))
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(y.covariance - 1e-12 * np.eye(32))
    found = frechet_distance(x.mean, x.covariance, y.mean, y.covariance)
    assert found == pytest.approx(frechet_distance(y.mean, y.covariance, x.mean, x.covariance), rel=1e-6)
    singular = np.diag([4.0, 0.0, 0.0])
    assert frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), singular) == pytest.approx(3 + 4 - 2 * 2)
    a = frechet.factor_of(singular)
    assert a @ a.T == pytest.approx(singular)
    a = frechet.factor_of(x.covariance)
    assert a @ a.T == pytest.approx(x.covariance)


def test_analytic_cases():
    x = _cloud(500, 8, 2)
    m = Moments.of(x)
    assert abs(_distance(x, x)) < 1e-9
    assert _distance(x, x + 3.0) == pytest.approx(8 * 9.0)
    scaled = _distance(x - m.mean, 2.5 * (x - m.mean))
    assert scaled == pytest.approx(1.5**2 * np.trace(m.covariance))
    s1, s2 = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.0])
    diagonal = frechet_distance(np.zeros(3), np.diag(s1), np.ones(3), np.diag(s2))
    assert diagonal == pytest.approx(3 + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum())


def test_low_rank_path_equals_the_moments():
    few, many = _cloud(20, 48, 3), _cloud(200, 48, 4, 0.2)
    reference = Moments.of(many)
    low_rank = frechet_distance_of(few, reference.mean, reference.covariance)
    assert low_rank == pytest.approx(_distance(few, many), rel=1e-5)
    assert frechet_distance_of(many, reference.mean, reference.covariance) == pytest.approx(0, abs=1e-9)


def test_moments_are_numpys_and_merge():
    x = _cloud(101, 7, 5)
    whole = Moments.of(x)
    assert whole.covariance == pytest.approx(np.cov(x, rowvar=False))
    merged = Moments.of(x[:40]) + Moments.of(x[40:41]) + Moments.of(x[41:]) + Moments.zero(7)
    assert merged.count == 101
    assert merged.covariance == pytest.approx(whole.covariance, rel=1e-12)
    assert (merged - Moments.of(x[:40])).mean == pytest.approx(x[40:].mean(axis=0))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 50))
def test_moments_of_parts_are_those_of_the_whole(lengths, block):
    x = _cloud(sum(lengths) + 5, 4, 16).astype(np.float32)
    parts = np.split(x, np.cumsum(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "BLOCK", block)
        found = Moments.of_parts(iter(parts))
    assert found.count == len(x)
    assert found.mean == pytest.approx(x.mean(axis=0, dtype=np.float64))
    assert found.covariance == pytest.approx(np.cov(x, rowvar=False))
    assert (found.covariance == found.covariance.T).all()


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no features"):
        Moments.of_parts([])
    with pytest.raises(ValueError, match="dimensions"):
        Moments.of_parts([np.zeros((2000, 3)), np.zeros((2000, 4))])
    with pytest.raises(ValueError, match="not finite"):
        Moments.of_parts([np.zeros((2, 3)), np.full((1, 3), np.nan)])


def _peak(dimension: int, rows: int, parts: int) -> int:
    """Bytes that streaming and the covariance held at most."""

    def features():
        for i in range(parts):
            yield np.random.default_rng(i).standard_normal((rows, dimension), dtype=np.float32)

    tracemalloc.start()
    Moments.of_parts(features()).covariance  # noqa: B018
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_streamed_moments_hold_two_sums_and_a_few_blocks():
    few, many = _peak(512, 64, 8), _peak(512, 64, 80)
    assert many < few + 10_000

    def limit(d: int) -> float:
        return 2 * 8 * d**2 + 4 * 8 * d * frechet.BLOCK + 3 * 4 * d * 64

    assert many < limit(512)
    assert limit(2048) < 100e6


@pytest.mark.long
def test_streamed_moments_of_inception_features_stay_below_100_mb():
    assert _peak(2048, 64, 400) < 100e6


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=4))
def test_neither_order_nor_sharding_matters(order, cuts):
    x, y = _cloud(24, 4, 6), Moments.of(_cloud(50, 4, 7))
    shards = np.split(x[list(order)], sorted(cuts))
    m = sum((Moments.of(s) for s in shards), Moments.zero(4))
    whole = frechet_distance_of(x, y.mean, y.covariance)
    assert frechet_distance(m.mean, m.covariance, y.mean, y.covariance) == pytest.approx(whole, rel=1e-9)
    assert gaussian_mmd(x[list(order)], x) == pytest.approx(0, abs=1e-9)


def test_bad_input_is_refused():
    good = Moments.of(_cloud(9, 3, 8))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance_of(np.zeros((1, 3)), good.mean, good.covariance)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance_of(np.full((9, 3), np.nan), good.mean, good.covariance)
    with pytest.raises(ValueError, match="different size"):
        frechet_distance_of(np.zeros((9, 4)), good.mean, good.covariance)
    with pytest.raises(ValueError, match="dimensions"):
        gaussian_mmd(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="at least 1"):
        gaussian_mmd(np.zeros((0, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        _ = Moments.of(np.zeros((1, 2))).covariance


def test_cmmd_known_answers(monkeypatch):
    rng = np.random.RandomState(0)
    x = rng.normal(size=(64, 768))
    y = rng.normal(size=(48, 768)) + 0.05
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    assert gaussian_mmd(x, y) == pytest.approx(0.40946185131951474, rel=1e-10)
    assert gaussian_mmd(y, x) == pytest.approx(gaussian_mmd(x, y))
    assert gaussian_mmd([[1.0, 0.0]], [[-1.0, 0.0]]) == pytest.approx(39.60265338648949, rel=1e-12)
    chunked = frechet.kernel_sums(x, y, 10.0, chunk=7)
    assert chunked == pytest.approx(frechet.kernel_sums(x, y, 10.0), rel=1e-13)


@pytest.mark.parametrize("dimension", [5, 70])
def test_leaving_groups_out_equals_doing_so_by_hand(dimension):
    x, y = _cloud(60, dimension, 9), _cloud(80, dimension, 10)
    reference = Moments.of(y)
    group = frechet.prompt_groups(np.arange(60) // 2, groups=7)
    by_hand = [frechet_distance_of(x[group != k], reference.mean, reference.covariance) for k in range(7)]
    assert frechet.frechet_without(x, group, reference.mean, reference.covariance) == pytest.approx(by_hand)
    assert frechet.mmd_without(x, group, y) == pytest.approx([gaussian_mmd(x[group != k], y) for k in range(7)])
    with pytest.raises(ValueError, match="one group"):
        frechet.mmd_without(x, np.zeros_like(group), y)


def test_prompt_groups_keep_prompts_whole_and_are_even():
    clusters = np.repeat([f"p{i}" for i in range(103)], 3)
    group = frechet.prompt_groups(clusters, groups=20)
    assert all(len(set(group[clusters == name])) == 1 for name in set(clusters))
    sizes = np.bincount(group) // 3
    assert sizes.sum() == 103
    assert sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(len(clusters))
    assert (frechet.prompt_groups(clusters[order], groups=20) == group[order]).all()


def test_the_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(13).normal(size=12)
    left_out = (x.sum() - x) / 11
    half = stats.t.ppf(0.975, 11) * x.std(ddof=1) / np.sqrt(12)
    low, high = frechet.jackknife_interval(x.mean(), left_out, np.ones(12))
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half))


def test_pairs_leave_the_interval_of_a_mean_as_it_is():
    x = np.random.default_rng(16).normal(size=(90, 1))
    found = frechet.Jackknife.of(
        x, np.arange(90) // 2, distance=lambda y: float(y.mean()), without=lambda y, group: np.array([
            y[group != k].mean() for k in range(group.max() + 1)
        ]))
    assert len(found.pairs) == len(found.without) // 2 == 22
    plain = frechet.jackknife_interval(found.value, found.without, found.sizes)
    assert found.interval() == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("prompts", [50, 70])
def test_pairs_halve_the_jackknifes_variance_of_a_purely_quadratic_statistic(prompts):
    # |mean|² of n standard normal rows in D dimensions has variance 2 D / n², the plain jackknife's expectation is
    # twice that; prompts in groups of unequal size (70 in 50) included
    rng, dimension, repeats = np.random.default_rng(17), 60, 300

    def without(y, group):
        return np.array([(y[group != k].mean(axis=0) ** 2).sum() for k in range(group.max() + 1)])

    variance = np.zeros(2)
    for _ in range(repeats):
        found = frechet.Jackknife.of(
            rng.normal(size=(prompts, dimension)), np.arange(prompts),
            distance=lambda y: float((y.mean(axis=0) ** 2).sum()), without=without)
        plain = frechet.jackknife_interval(found.value, found.without, found.sizes)
        for i, (low, high) in enumerate((found.interval(), plain)):
            variance[i] += ((high - low) / 2 / stats.t.ppf(0.975, len(found.without) - 1)) ** 2 / repeats
    true = 2 * dimension / prompts**2
    assert variance[1] == pytest.approx(2 * true, rel=0.1)
    assert true * 0.9 < variance[0] < true * 1.3  # above 1: no less than half of the plain one is left each time


def test_the_point_lies_in_its_interval_where_a_bootstrap_would_not():
    rng = np.random.default_rng(11)
    x, mean, cov = rng.normal(size=(500, 64)), np.zeros(64), np.eye(64)
    point = frechet_distance_of(x, mean, cov)
    low, high = frechet.frechet_interval(x, np.arange(500), mean, cov)
    assert low < point < high
    plain = [frechet_distance_of(x[rng.integers(0, 500, 500)], mean, cov) for _ in range(40)]
    assert np.quantile(plain, 0.025) > point
    assert np.isnan(frechet.frechet_interval(x, np.zeros(500), mean, cov)).all()


def test_a_paired_difference_cancels_what_both_sides_share():
    rng = np.random.default_rng(12)
    shared = rng.normal(size=(200, 8))
    first, second = shared * 1.1 + 0.3, shared * 1.1
    y = Moments.of(rng.normal(size=(1000, 8)))

    def jackknife(features, prompts):
        return frechet.Jackknife.of(
            features, prompts,
            distance=lambda x: frechet_distance_of(x, y.mean, y.covariance),
            without=lambda x, group: frechet.frechet_without(x, group, y.mean, y.covariance),
        )

    prompts = np.arange(200)
    difference = jackknife(first, prompts) - jackknife(second, prompts)
    low, high = difference.interval()
    assert low < difference.value < high
    alone = frechet.frechet_interval(first, prompts, y.mean, y.covariance)
    assert high - low < alone[1] - alone[0]
    by_hand = _left_out(first, prompts, y) - _left_out(second, prompts, y)
    assert difference.without == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="same prompts"):
        jackknife(first, prompts) - jackknife(second, prompts + 1)
    one = jackknife(first, np.zeros(200))
    assert np.isnan(one.interval()).all()
    with pytest.raises(ValueError, match="too few"):
        one - one


def _left_out(features: np.ndarray, prompts: np.ndarray, y: Moments) -> np.ndarray:
    group = frechet.prompt_groups(prompts)
    return np.array([frechet_distance_of(features[group != k], y.mean, y.covariance) for k in range(frechet.GROUPS)])


def coverage(dimension: int, prompts: int, *, shift: float, scale: float, repeats: int) -> tuple[float, float]:
    """Percent of 95 % intervals that hold the statistic's expectation at this n, and mean width over 3.92 sd.

    At 2048 dimensions the rows are far fewer than those, as in a run of a hundred images. Two seeds a prompt, half of
    the variance between prompts; the truth is |shift|² plus (scale - 1)² tr S.
    """
    rng = np.random.default_rng(1)
    variance = np.linspace(1.5, 0.2, dimension)
    mean, cov, clusters = np.zeros(dimension), np.diag(variance), np.repeat(np.arange(prompts), 2)

    def draw():
        between, within = rng.normal(size=(prompts, 1, dimension)), rng.normal(size=(prompts, 2, dimension))
        x = (between + within) * np.sqrt(variance / 2) * scale + shift / np.sqrt(dimension)
        return x.reshape(-1, dimension)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "factor_of", lambda _: np.diag(np.sqrt(variance)))  # the same each time: once is enough
        expected = np.mean([frechet_distance_of(draw(), mean, cov) for _ in range(3 * repeats)])
        points, hits, width = [], 0, 0.0
        for _ in range(repeats):
            x = draw()
            points.append(frechet_distance_of(x, mean, cov))
            low, high = frechet.frechet_interval(x, clusters, mean, cov)
            hits += low <= expected <= high
            width += (high - low) / repeats
    return 100 * hits / repeats, width / (3.92 * float(np.std(points)))


def test_coverage_in_short():
    covered, width = coverage(8, 60, shift=1.0, scale=1.2, repeats=100)
    assert covered >= 88
    assert width < 1.25


@pytest.mark.long
@pytest.mark.parametrize(
    ("dimension", "prompts", "repeats"), [(32, 40, 1000), (64, 240, 1000), (128, 120, 500), (2048, 60, 200)]
)
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.1), (2.0, 1.3)])
def test_coverage(dimension, prompts, repeats, shift, scale):
    covered, width = coverage(dimension, prompts, shift=shift, scale=scale, repeats=repeats)
    error = 100 * np.sqrt(0.05 * 0.95 / repeats)
    print(f"d={dimension} prompts={prompts} shift={shift} scale={scale}: {covered:.1f} % ± {error:.1f}, {width:.2f}")
    assert 93 - 2 * error <= covered <= 97 + 2 * error  # 95 ± 2 but for chance
    assert width <= 1.3
