"""Kernel Inception Distance against torch-fidelity, a formula by hand and what must hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kid_features_to_metric

from harness.kid import kid, kid_without


def _cloud(rows: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dimension)) + shift


def _theirs(x, y, **settings) -> float:
    told = {f"kid_{name}": value for name, value in settings.items()}
    found = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), rng_seed=2020, verbose=False, **told)
    return found["kernel_inception_distance_mean"]


@pytest.mark.parametrize(("rows", "subset_size", "subsets"), [(40, 20, 5), (60, 60, 3), (200, 50, 100)])
def test_equals_torch_fidelity(rows, subset_size, subsets):
    x, y = _cloud(rows, 24, 0, 0.3), _cloud(rows + 17, 24, 1)
    ours = kid(x, y, subset_size=subset_size, subsets=subsets)
    assert ours == pytest.approx(_theirs(x, y, subset_size=subset_size, subsets=subsets), rel=1e-9)


def test_equals_torch_fidelity_on_float32_features():
    x, y = _cloud(500, 64, 2, 0.1).astype(np.float32), _cloud(500, 64, 3).astype(np.float32)
    ours, settings = kid(x, y, subset_size=400, subsets=5), {"subset_size": 400, "subsets": 5}
    assert ours == pytest.approx(_theirs(x.astype(np.float64), y.astype(np.float64), **settings), rel=1e-9)
    assert ours == pytest.approx(_theirs(x, y, **settings), abs=1e-6)  # their kernel in float32


@pytest.mark.long
def test_equals_torch_fidelity_with_its_defaults():
    x, y = _cloud(1100, 64, 2, 0.1), _cloud(1000, 64, 3)
    assert kid(x, y) == pytest.approx(_theirs(x, y), rel=1e-9)


def test_is_the_unbiased_estimator():
    x, y = _cloud(12, 3, 4), _cloud(12, 3, 5)

    def kernel(a, b):
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(12) for j in range(12)]
    within = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j])
    across = np.mean([kernel(x[i], y[j]) for i, j in pairs])
    assert kid(x, y, subset_size=12, subsets=1) == pytest.approx(within - 2 * across)
    assert kid(y, x, subset_size=12, subsets=1) == pytest.approx(within - 2 * across)


def test_has_no_bias_where_a_frechet_distance_has():
    small = [kid(_cloud(20, 8, i), _cloud(20, 8, 1000 + i), subset_size=20, subsets=1) for i in range(400)]
    assert abs(np.mean(small)) < 4 * np.std(small) / np.sqrt(400)
    assert min(small) < 0


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(16)), st.permutations(range(16)))
def test_order_does_not_matter_where_a_subset_is_the_whole(first, second):
    x, y = _cloud(16, 4, 6), _cloud(16, 4, 7, 0.5)
    whole = kid(x, y, subset_size=16, subsets=2)
    assert kid(x[first], y[second], subset_size=16, subsets=2) == pytest.approx(whole)


def test_neither_the_global_generator_nor_its_state_matters():
    x, y = _cloud(30, 4, 8), _cloud(30, 4, 9)
    np.random.seed(0)
    first, state = kid(x, y, subset_size=10), np.random.get_state()[1].copy()
    np.random.seed(0)
    assert (np.random.get_state()[1] == state).all()
    assert kid(x, y, subset_size=10) == first
    assert kid(x, y, subset_size=10, seed=1) != first


def test_leaving_groups_out_equals_doing_so_by_hand():
    x, y = _cloud(40, 5, 10), _cloud(40, 5, 11, 0.4)
    group = np.arange(40) // 2 % 7
    by_hand = []
    for k in range(7):
        rest = x[group != k]
        xx, xy, yy = ((a @ b.T / 5 + 1) ** 3 for a, b in ((rest, rest), (rest, y), (y, y)))
        within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in (xx, yy)]
        by_hand.append(sum(within) - 2 * xy.mean())
    assert kid_without(x, group, y, subset_size=40, subsets=2) == pytest.approx(by_hand)
    several = kid_without(x, group, y, subset_size=20, subsets=50)
    assert several.mean() == pytest.approx(kid(x, y, subset_size=20, subsets=50), abs=0.1)
    with pytest.raises(ValueError, match="fewer than 2"):
        kid_without(x, np.zeros(40, int), y, subset_size=20)


def test_bad_input_is_refused():
    x = _cloud(30, 4, 12)
    with pytest.raises(ValueError, match="set subset_size to at most 20"):
        kid(x, x[:20])
    with pytest.raises(ValueError, match="dimensions"):
        kid(x, x[:, :3], subset_size=10)
    with pytest.raises(ValueError, match="not finite"):
        kid(np.full((30, 4), np.inf), x, subset_size=10)
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        kid(x[0], x, subset_size=10)
    with pytest.raises(ValueError, match="at least 2"):
        kid(x, x, subset_size=1)
