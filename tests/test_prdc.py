"""Precision, recall, density and coverage against torch-fidelity, formulas by hand and what must hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from harness import prdc as module
from harness.prdc import prdc, prdc_without


def _cloud(rows: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dimension)) + shift


def _by_hand(generated, reference, k):
    """From the papers' formulas, differences taken before they are squared."""

    def distances(a, b):
        return ((a[:, None].astype(float) - b[None]) ** 2).sum(axis=2)

    def radii(a):
        return np.sort(distances(a, a), axis=1)[:, k]

    d, real, fake = distances(generated, reference), radii(reference), radii(generated)
    return (
        (d <= real).any(axis=1).mean(), (d <= fake[:, None]).any(axis=0).mean(),
        (d < real).sum(axis=1).mean() / k, (d.min(axis=0) < real).mean(),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("rows", "dimension", "shift"), [(300, 16, 0.3), (77, 4, 1.0), (120, 64, 0.0)])
def test_precision_and_recall_equal_torch_fidelity(rows, dimension, shift, k):
    x, y = _cloud(rows, dimension, 0, shift), _cloud(2 * rows, dimension, 1)
    theirs = prc_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=k, prc_batch_size=50, verbose=False
    )
    ours = prdc(x, y, k)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)
    assert ours == pytest.approx(_by_hand(x, y, k))
    assert ours.precision > 0


def test_blocks_do_not_matter(monkeypatch):
    x, y, group = _cloud(90, 5, 2, 0.2), _cloud(70, 5, 3), np.arange(90) % 6
    whole, without = prdc(x, y, 3), prdc_without(x, group, y, 3)
    monkeypatch.setattr(module, "ENTRIES", 500)
    assert prdc(x, y, 3) == whole
    assert prdc_without(x, group, y, 3) == without


def test_a_set_against_itself_and_against_one_far_away():
    x = _cloud(64, 12, 4)
    assert prdc(x, x, 5) == (1, 1, 1, 1)
    assert prdc(x, x + 1e6, 5) == (0, 0, 0, 0)
    assert prdc(x, np.random.default_rng(0).permutation(x), 3) == (1, 1, 1, 1)


LATTICE = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=5, max_size=14)


@settings(max_examples=60, deadline=None)
@given(LATTICE, LATTICE, st.integers(1, 4), st.sampled_from([1.0, 0.1, 1e-3]), st.randoms())
def test_ties_bounds_and_order(first, second, k, scale, random):
    """Points of a lattice: ties, and rows that stand there twice, wherever the lattice lies."""
    x, y = np.array(first), np.array(second)
    expected = _by_hand(x, y, k)
    offset = 0.0 if scale == 1 else 0.3
    found = prdc(x * scale + offset, y * scale + offset, k)
    assert found == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in (found.precision, found.recall, found.coverage))
    random.shuffle(first)
    assert prdc(np.array(first) * scale + offset, y * scale + offset, k) == pytest.approx(found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.booleans())
def test_leaving_groups_out_equals_doing_so(seed, k, lattice):
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-3, 4, (n, 2)) if lattice else rng.normal(size=(n, 3)) for n in (40, 30))
    group = rng.integers(0, 6, 40)
    x = x[np.argsort(group + rng.normal(size=40))] + 0.0  # neighbours often share a group
    expected = [prdc(x[group != g], y, k) for g in range(group.max() + 1)]
    assert np.array(prdc_without(x, group, y, k)) == pytest.approx(np.array(expected))


def test_bad_input_is_refused():
    x = _cloud(9, 3, 5)
    with pytest.raises(ValueError, match="more than 9 rows a side, got 9 generated"):
        prdc(x, _cloud(20, 3, 6), 9)
    with pytest.raises(ValueError, match="got 4 generated"):
        prdc_without(x, np.array([0] * 4 + [1] * 5), x, 5)
    with pytest.raises(ValueError, match="dimensions"):
        prdc(x, x[:, :2], 3)
    with pytest.raises(ValueError, match="not finite"):
        prdc(np.full((9, 3), np.nan), x, 3)
