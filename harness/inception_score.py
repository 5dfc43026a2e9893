"""Inception Score: how sure a classifier is of each image, and how varied its answers are over all of them.

Salimans et al. 2016 (arXiv:1606.03498): exp of the mean KL(p(y|x) || p(y)), averaged over splits. Shuffle, seed and
the cut into splits are those of torch-fidelity 0.4 (`isc_features_to_metric`), whose logits have no bias and 1008
classes. torchmetrics shuffles without a seed; dgm-eval drops the rows that do not fill a split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, xlogy

from harness.frechet import Array, feature_rows


def inception_score(logits: ArrayLike, *, splits: int = 10, seed: int = 2020) -> float:
    """The score of `[N, C]` logits: 1 (all images alike, or the classifier unsure of each) to C; higher is better.

    It rises with N / splits, so compare equal N and splits only. Raises ValueError where N is below `splits`, or a
    logit is not finite.
    """
    nobody = np.full(len(np.asarray(logits)), -1)
    return float(_leaving_out(logits, nobody, 1, splits, seed)[0])


def inception_score_without(
    logits: ArrayLike, group: ArrayLike, *, splits: int = 10, seed: int = 2020
) -> Array:
    """The scores with the rows of each group 0 ... g-1 left out, `[g]`, for a jackknife.

    Each row stays in its split: dealt anew each time, the splits' noise would be taken for that of the images.
    Raises ValueError as `inception_score`, and where a split keeps no row.
    """
    labels = np.asarray(group)
    return _leaving_out(logits, labels, int(labels.max()) + 1, splits, seed)


def _leaving_out(logits: ArrayLike, labels: NDArray, groups: int, splits: int, seed: int) -> Array:
    x = feature_rows(logits)
    if splits < 1 or len(x) < splits:
        raise ValueError(f"an Inception Score of {splits} splits needs at least {max(splits, 1)} rows, got {len(x)}")
    order = np.random.RandomState(seed).permutation(len(x))
    scores = np.zeros((splits, groups))
    for i in range(splits):
        chosen = order[i * len(x) // splits : (i + 1) * len(x) // splits]
        members = (labels[chosen][:, None] == np.arange(groups)).astype(np.float64)
        left = len(chosen) - members.sum(axis=0)
        if left.min() < 1:
            raise ValueError("a split keeps no row when one group is left out: use fewer splits or smaller groups")
        log_p = log_softmax(x[chosen].astype(np.float64), axis=1)
        p = np.exp(log_p)
        sure = (p * log_p).sum(axis=1)
        varied = (p.sum(axis=0) - members.T @ p) / left[:, None]
        scores[i] = np.exp((sure.sum() - sure @ members) / left - _negative_entropy(varied))
    return np.asarray(scores.mean(axis=0))


def _negative_entropy(p: Array) -> Array:
    """Σ p ln p of each row; rounding below 0, where all rows of a class were left out, counts as 0."""
    positive = np.maximum(p, 0.0)
    return np.asarray(xlogy(positive, positive).sum(axis=1))
