"""Tests, win rates, effect sizes and numbers of prompts against scipy, statsmodels, closed forms and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from harness.analysis import stats


def test_sign_flips_agree_with_scipy_exactly_for_few_and_closely_for_many():
    few = np.array([0.3, -0.1, 0.5, 0.7, 0.2, -0.4, 0.9, 0.1])
    theirs = scipy_stats.permutation_test((few,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip_test(few) == pytest.approx(theirs.pvalue)
    many = np.random.default_rng(6).normal(0.15, 1, 200)
    theirs = scipy_stats.permutation_test(
        (many,), np.mean, permutation_type="samples", n_resamples=9999, rng=0, vectorized=True)
    assert stats.sign_flip_test(many) == pytest.approx(theirs.pvalue, abs=0.012)
    assert stats.sign_flip_test(np.zeros(5)) == 1.0
    likely = np.random.default_rng(6).normal(0, 1, 200)
    theirs = scipy_stats.permutation_test(
        (likely,), np.mean, permutation_type="samples", n_resamples=9999, rng=0, vectorized=True)
    assert 0.2 < theirs.pvalue < 0.8
    assert stats.sign_flip_test(likely) == pytest.approx(theirs.pvalue, abs=0.03)


def test_paired_difference_of_the_same_images_is_nothing():
    found = stats.paired_difference(np.zeros(20), np.arange(20))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_paired_difference_sees_what_unpaired_would_not():
    rng = np.random.default_rng(7)
    prompts = rng.normal(0, 5, 100)
    found = stats.paired_difference((prompts + 0.3 + rng.normal(0, 0.5, 100)) - prompts, np.arange(100))
    assert found.low > 0
    assert found.p < 0.001
    assert found.n == 100


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert stats.holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert stats.holm([]).size == 0
    assert np.isnan(stats.holm([np.nan])).all()


def test_holm_agrees_with_statsmodels():
    p = np.random.default_rng(2).random(40) ** 3
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_keeps_order_never_lowers_and_stays_below_bonferroni(p, random):
    p = np.array(p)
    adjusted = stats.holm(p)
    assert (adjusted >= p - 1e-15).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-15).all()
    order = list(range(len(p)))
    random.shuffle(order)
    assert stats.holm(p[order]) == pytest.approx(adjusted[order])


def test_win_rate_counts_prompts_not_pairs():
    #            won: one pair of two is much better    lost        tied      tied: the pairs cancel
    differences = [0.9, -0.1,                           -0.2, -0.2, 0.0,      0.1, 0.2, -0.3]
    found = stats.win_rate(differences, list("aabbcddd"))
    assert (found.wins, found.ties, found.losses, found.clusters) == (1, 2, 1, 4)
    assert found.rate == 0.5
    worse = stats.win_rate([0.9, 0.1, 0.1, -0.5], list("abcd"), higher_is_better=False)
    assert (worse.wins, worse.ties, worse.losses, worse.rate) == (1, 0, 3, 0.25)
    nothing = stats.win_rate([], [])
    assert np.isnan([nothing.rate, nothing.low, nothing.high]).all()
    assert nothing.clusters == 0


@pytest.mark.parametrize(("wins", "n"), [(0, 7), (1, 1), (3, 10), (10, 10), (540, 553)])
def test_without_ties_the_interval_of_a_win_rate_is_wilsons(wins, n):
    found = stats.win_rate([1.0] * wins + [-1.0] * (n - wins), np.arange(n))
    assert found.rate == wins / n
    assert (found.low, found.high) == pytest.approx(proportion_confint(wins, n, method="wilson"), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(stats.wilson_interval(wins, n), abs=1e-12)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(5, 3, 4), (30, 50, 20), (1, 9, 0)])
def test_with_ties_the_interval_holds_what_the_score_test_does_not_refuse(wins, ties, losses):
    n, z = wins + ties + losses, scipy_stats.norm.ppf(0.975)
    found = stats.win_rate([1.0] * wins + [0.0] * ties + [-1.0] * losses, np.arange(n))
    rate, tied = (wins + ties / 2) / n, ties / (n + z**2)

    def beyond(p):
        return (rate - p) ** 2 - z**2 * (p * (1 - p) - tied / 4) / n

    low, high = optimize.brentq(beyond, -0.1, rate), optimize.brentq(beyond, rate, 1.1)
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-9)
    plain = proportion_confint(wins + ties / 2, n, method="wilson")
    assert plain[0] < found.low < found.rate < found.high < plain[1] + 1e-12


def test_nothing_but_ties_is_no_certainty():
    found = stats.win_rate(np.zeros(40), np.arange(40))
    assert (found.rate, found.ties) == (0.5, 40)
    assert 0.4 < found.low < 0.48
    assert found.high == pytest.approx(1 - found.low)


def _win_rate_coverage(n: int, tied: float) -> list[float]:
    """Exact percent of win rates' 95 % intervals that hold the true rate, for true rates over their whole range."""
    counts = [(w, t, n - w - t) for w in range(n + 1) for t in range(n + 1 - w)]
    found = [stats.win_rate(np.repeat([1.0, 0.0, -1.0], c), np.arange(n)) for c in counts]
    low, high = np.array([f.low for f in found]), np.array([f.high for f in found])
    covered = []
    for true in np.linspace(0.05 + tied / 2, 0.95 - tied / 2, 19):
        chance = scipy_stats.multinomial.pmf(counts, n, [true - tied / 2, tied, 1 - true - tied / 2])
        covered.append(100 * float(chance[(low <= true) & (true <= high)].sum()))
    return covered


@pytest.mark.parametrize("tied", [0.0, 0.2, 0.5, 0.8])
def test_the_interval_of_a_win_rate_covers(tied):
    covered = _win_rate_coverage(40, tied)
    print(f"n=40 tied={tied}: {np.mean(covered):.1f} ({min(covered):.1f} to {max(covered):.1f})")
    assert 93 <= np.mean(covered) <= (97 if tied < 0.6 else 99)  # wide where nearly all is tied
    assert min(covered) >= 92


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(-3, 3)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_laws_of_win_rate_and_effect_size(pairs, random):
    clusters, values = [f"p{c}" for c, _ in pairs], [d / 10 for _, d in pairs]
    found, size = stats.win_rate(values, clusters), stats.effect_size(values, clusters)
    swapped = stats.win_rate([-v for v in values], clusters)
    assert swapped.rate == pytest.approx(1 - found.rate)
    assert (swapped.low, swapped.high) == pytest.approx((1 - found.high, 1 - found.low))
    assert stats.win_rate(values, clusters, higher_is_better=False) == swapped
    assert stats.effect_size([-v for v in values], clusters) == pytest.approx(-size, nan_ok=True)
    order = list(range(len(pairs)))
    random.shuffle(order)
    shuffled = [values[i] for i in order], [clusters[i] for i in order]
    assert stats.win_rate(*shuffled) == found
    assert stats.effect_size(*shuffled) == pytest.approx(size, nan_ok=True)
    first = [(v, c) for v, c in zip(values, clusters, strict=True) if c == clusters[0]]  # twice the seeds
    doubled = values + [v for v, _ in first], clusters + [c for _, c in first]
    assert stats.win_rate(*doubled) == found
    assert stats.effect_size(*doubled) == pytest.approx(size, nan_ok=True)
    by_hand = [np.mean([d for k, d in pairs if k == c]) for c in dict.fromkeys(k for k, _ in pairs)]
    assert found.rate == pytest.approx(np.mean([0.5 if abs(d) < 1e-9 else float(d > 0) for d in by_hand]))


def test_effect_size_is_students_t_without_n():
    rng = np.random.default_rng(3)
    prompts = rng.normal(0.4, 1, 25)
    differences = np.repeat(prompts, 2) + np.tile([0.3, -0.3], 25)
    found = stats.effect_size(differences, np.arange(50) // 2)
    assert found == pytest.approx(scipy_stats.ttest_1samp(prompts, 0).statistic / 5, rel=1e-12)
    assert np.isnan(stats.effect_size([0.1, 0.1, 0.1], list("abc")))
    assert np.isnan(stats.effect_size([0.1, 0.2], list("aa")))
    assert np.isnan(stats.effect_size([], []))


@pytest.mark.parametrize("effect", [0.08, 0.3, 1.0])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_prompts_needed_agrees_with_statsmodels(effect, power):
    pilot = scipy_stats.zscore(np.random.default_rng(4).normal(size=30), ddof=1) * 2.5
    needed = stats.prompts_needed(pilot, np.arange(30), -2.5 * effect, power)
    theirs = TTestPower().solve_power(effect_size=effect, power=power, alpha=0.05)
    assert needed == np.ceil(theirs)


def test_prompts_needed_beyond_what_statsmodels_can(monkeypatch):
    pilot = scipy_stats.zscore(np.arange(10.0), ddof=1)
    for effect in (0.02, 0.05):  # both sides of the change of method
        n = stats.prompts_needed(pilot, np.arange(10), effect)
        critical = scipy_stats.t.ppf(0.975, n - 1)
        assert scipy_stats.nct.sf(critical, n - 1, effect * np.sqrt(n)) == pytest.approx(0.8, abs=2e-4)
    monkeypatch.setattr(stats, "MANY", 500)
    exact = TTestPower().solve_power(effect_size=0.1, power=0.8, alpha=0.05)
    assert abs(stats.prompts_needed(pilot, np.arange(10), 0.1) - exact) < 1
    assert stats.prompts_needed(pilot, np.arange(10), 1e6) == 2
    assert stats.prompts_needed([0.3, 0.3], [0, 1], 0.3) == 2


def test_the_sign_flip_test_has_the_power_that_prompts_needed_promises():
    rng = np.random.default_rng(5)
    n = stats.prompts_needed(rng.normal(size=4000), np.arange(4000), 0.5)
    assert 32 <= n <= 36
    seen = [stats.sign_flip_test(rng.normal(0.5, 1, n), flips=399, seed=k) <= 0.05 for k in range(400)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.06)  # three standard errors


def test_prompts_needed_says_what_it_lacks():
    with pytest.raises(ValueError, match="at least 2"):
        stats.prompts_needed([0.1, 0.2], ["a", "a"], 0.1)
    with pytest.raises(ValueError, match="no number of prompts"):
        stats.prompts_needed([0.1, 0.2], ["a", "b"], 0.0)
    with pytest.raises(ValueError, match="level < power"):
        stats.prompts_needed([0.1, 0.2], ["a", "b"], 0.1, power=0.01)


def test_sign_flips_of_a_few_equal_trying_all_by_hand():
    w = np.array([0.5, -0.2, 0.9, 0.4, 0.4])
    sums = [abs(sum(s * x for s, x in zip(signs, w, strict=True))) for signs in itertools.product([1, -1], repeat=5)]
    assert stats.sign_flip_test(w) == np.mean([total >= abs(w.sum()) - 1e-9 for total in sums])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=4, max_size=30), st.randoms(use_true_random=False))
def test_value_and_p_do_not_depend_on_row_order(values, random):
    clusters = [i // 2 for i in range(len(values))]
    order = list(range(len(values)))
    random.shuffle(order)
    one = stats.paired_difference(values, clusters, draws=50)
    two = stats.paired_difference([values[i] for i in order], [clusters[i] for i in order], draws=50)
    assert two.value == pytest.approx(one.value, abs=1e-9)
    assert (two.n, two.clusters) == (one.n, one.clusters)
    if one.clusters <= stats.EXACT:
        assert two.p == pytest.approx(one.p, abs=0.02)


def _paired_coverage(prompts: int, repeats: int, skewed: bool) -> tuple[float, float]:
    """Percent of intervals of a paired difference that hold the true one, and of p <= 0.05 where there is none.

    Two seeds a prompt, some prompts with one; the difference varies between prompts and between seeds.
    """
    rng = np.random.default_rng(15)
    clusters = np.concatenate([np.arange(prompts), np.arange(prompts)[: prompts * 3 // 4]])
    hits = false = 0
    for k in range(repeats):
        between = rng.exponential(size=prompts) - 1 if skewed else rng.normal(size=prompts)
        found = stats.paired_difference(
            between[clusters] + rng.normal(size=len(clusters)), clusters, draws=500, flips=399, seed=k)
        hits += found.low <= 0 <= found.high
        false += found.p <= 0.05
    return 100 * hits / repeats, 100 * false / repeats


def test_paired_differences_cover_in_short():
    covered, false = _paired_coverage(30, 300, skewed=False)
    assert 91 <= covered <= 99
    assert 1 <= false <= 9


@pytest.mark.long
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("prompts", [10, 30, 200, 1500])
def test_coverage_of_paired_differences(prompts, skewed):
    covered, false = _paired_coverage(prompts, 2000, skewed)
    print(f"{prompts} prompts, skewed={skewed}: covers {covered:.1f}, false alarms {false:.1f}")
    if prompts > 10 or not skewed:
        assert 93 <= covered <= 97
        assert 3.5 <= false <= 6.5


@pytest.mark.long
def test_permutation_test_keeps_its_level():
    rng = np.random.default_rng(9)
    p = [stats.sign_flip_test(rng.normal(size=40), flips=499, seed=k) for k in range(2000)]
    assert 0.035 <= np.mean(np.array(p) <= 0.05) <= 0.065
