"""Metrics of whole cells, from the features that a run has stored: value, n, and an interval over prompts."""

from collections.abc import Collection
from typing import Any

import numpy as np

from harness.metrics.base import DistributionMetric
from harness.plan import Cell
from harness.store import Store


def distribution_values(
    store: Store, cells: Collection[Cell], metrics: dict[str, tuple[DistributionMetric, str]]
) -> list[dict[str, Any]]:
    """A record for every cell and metric (`label -> (metric, digest)`): value, low, high, n, or the reason of none.

    Only samples of the plan count, whatever else the folder holds.
    """
    found = []
    for cell in cells:
        prompt_of = {
            cell.sample_id(prompt.id, seed): prompt.id for seed in cell.seeds for prompt in cell.prompt_set.prompts
        }
        shelves: dict[str, tuple[list[str], np.ndarray]] = {}
        for label, (metric, digest) in metrics.items():
            if metric.shelf not in shelves:
                shelves[metric.shelf] = _planned(store, cell, metric.shelf, prompt_of)
            ids, features = shelves[metric.shelf]
            record = {
                "model": cell.model, "method": cell.method, "prompts": cell.prompts,
                "metric": label, "metric_digest": digest, "n": len(ids),
            }
            found.append(record | _value(metric, features, [prompt_of[sample] for sample in ids]))
    return found


def _planned(store: Store, cell: Cell, shelf: str, wanted: Collection[str]) -> tuple[list[str], np.ndarray]:
    """The cell's features in the order of their ids: sums then do not depend on the order of files."""
    ids, features = store.read_features(shelf, model=cell.model, method=cell.method, prompts=cell.prompts)
    keep = sorted((sample, row) for row, sample in enumerate(ids) if sample in wanted)
    return [sample for sample, _ in keep], features[[row for _, row in keep]]


def _value(metric: DistributionMetric, features: np.ndarray, prompts: list[str]) -> dict[str, Any]:
    if not len(features):
        return {"value": None, "low": None, "high": None, "error": "no images"}
    try:
        reference = metric.reference()
        value = metric.distance(features, reference)
        low, high = metric.interval(features, prompts, reference)
    except ValueError as error:
        return {"value": None, "low": None, "high": None, "error": str(error)}
    known = bool(np.isfinite(low) and np.isfinite(high))
    return {"value": value, "low": low if known else None, "high": high if known else None, "error": None}
