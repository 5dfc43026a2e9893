"""Inception Score against torch-fidelity, known answers and what must hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric

from harness.inception_score import inception_score, inception_score_without


def _logits(rows: int, classes: int, seed: int, sharpness: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, classes)) * sharpness).astype(np.float32)


@pytest.mark.parametrize(("rows", "classes", "splits"), [(50, 7, 10), (101, 12, 10), (99, 1008, 4), (12, 3, 12)])
def test_equals_torch_fidelity(rows, classes, splits):
    x = _logits(rows, classes, rows)
    theirs = isc_features_to_metric(torch.from_numpy(x), splits, True, 2020)["inception_score_mean"]
    assert inception_score(x, splits=splits) == pytest.approx(theirs, rel=1e-12)


def test_known_answers():
    sure = np.eye(5)[np.arange(50) % 5] * 1e4
    assert inception_score(sure, splits=1) == pytest.approx(5)
    assert inception_score(np.tile([[3.0, 1.0, -2.0]], (20, 1))) == pytest.approx(1)
    assert inception_score(np.zeros((20, 4)), splits=2) == pytest.approx(1)
    assert inception_score(_logits(10, 4, 0), splits=10) == pytest.approx(1)  # a row a split


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(1, 8), st.floats(0, 300), st.integers(0, 99), st.randoms())
def test_bounds_and_order(rows, classes, sharpness, seed, random):
    x = _logits(rows, classes, seed, sharpness)
    score = inception_score(x, splits=1)
    assert 1 - 1e-12 <= score <= min(rows, classes) + 1e-9
    order = list(range(rows))
    random.shuffle(order)
    assert inception_score(x[order], splits=1) == pytest.approx(score)
    assert inception_score(x + 7, splits=2) == pytest.approx(inception_score(x, splits=2), rel=1e-4)


def test_the_shuffle_has_a_generator_of_its_own():
    x = _logits(40, 6, 1)
    np.random.seed(0)
    first = inception_score(x)
    assert inception_score(x) == first
    assert inception_score(x, seed=1) != first


def test_leaving_groups_out_equals_doing_so_by_hand():
    x, group = _logits(60, 5, 2), np.arange(60) % 7
    by_hand = [inception_score(x[group != k], splits=1) for k in range(7)]
    assert inception_score_without(x, group, splits=1) == pytest.approx(by_hand)
    order = np.random.RandomState(2020).permutation(60)
    halves = [
        np.mean([inception_score(x[half][group[half] != k], splits=1) for half in (order[:30], order[30:])])
        for k in range(7)
    ]
    assert inception_score_without(x, group, splits=2) == pytest.approx(halves)
    with pytest.raises(ValueError, match="keeps no row"):
        inception_score_without(x, np.arange(60) // 2, splits=60)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 10 rows, got 9"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.full((20, 3), np.nan))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        inception_score(np.zeros(20))
