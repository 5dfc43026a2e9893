"""Metrics of whole cells, from the features that a run has stored: value, n, and an interval over prompts."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.metrics.base import DistributionMetric, Reference
from harness.plan import Cell
from harness.store import Store


@dataclass(frozen=True)
class _Side:
    """A cell's features `[N, D]` and the prompt of each row."""

    features: np.ndarray
    prompts: list[str]


def distribution_values(
    store: Store, cells: Collection[Cell], metrics: dict[str, tuple[DistributionMetric, str]],
    baselines: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A record for every cell and metric (`label -> (metric, digest)`): value, low, high, n, or the reason of none.

    Only samples of the plan count, whatever else the folder holds. `against` holds the paired difference to each
    of the `baselines` (methods) on the same model and prompts.
    """
    found = []
    shelves = {
        shelf: {(cell.model, cell.method, cell.prompts): _side(store, cell, shelf) for cell in cells}
        for shelf in {metric.shelf for metric, _ in metrics.values()}
    }
    for label, (metric, digest) in metrics.items():
        sides = shelves[metric.shelf]
        reference = metric.reference()
        for (model, method, prompts), side in sides.items():
            record = {
                "model": model, "method": method, "prompts": prompts,
                "metric": label, "metric_digest": digest, "n": len(side.features),
            }
            against = {
                baseline: _difference(metric, side, sides[model, baseline, prompts], reference)
                for baseline in baselines if baseline != method and (model, baseline, prompts) in sides
            }
            known = {baseline: value for baseline, value in against.items() if value is not None}
            found.append(record | _value(metric, side, reference) | {"against": known})
    return found


def _side(store: Store, cell: Cell, shelf: str) -> _Side:
    """The cell's features in the order of their ids: sums then do not depend on the order of files."""
    prompt_of = {
        cell.sample_id(prompt.id, seed): prompt.id for seed in cell.seeds for prompt in cell.prompt_set.prompts
    }
    ids, features = store.read_features(shelf, model=cell.model, method=cell.method, prompts=cell.prompts)
    keep = sorted((sample, row) for row, sample in enumerate(ids) if sample in prompt_of)
    return _Side(features[[row for _, row in keep]], [prompt_of[sample] for sample, _ in keep])


def _value(metric: DistributionMetric, side: _Side, reference: Reference | None) -> dict[str, Any]:
    nothing = {"value": None, "low": None, "high": None}
    if not len(side.features):
        return nothing | {"error": "no images"}
    try:
        value = metric.distance(side.features, reference)
        low, high = metric.interval(side.features, side.prompts, reference)
    except ValueError as error:
        return nothing | {"error": str(error)}
    return {"value": value, **_ends(low, high), "error": None}


def _difference(
    metric: DistributionMetric, side: _Side, other: _Side, reference: Reference | None
) -> dict[str, Any] | None:
    """None where the two sides cannot be compared (other prompts, too few of them)."""
    try:
        value, low, high = metric.difference(
            (side.features, side.prompts), (other.features, other.prompts), reference
        )
    except ValueError:
        return None
    return {"value": value, **_ends(low, high)}


def _ends(low: float, high: float) -> dict[str, float | None]:
    known = bool(np.isfinite(low) and np.isfinite(high))
    return {"low": low if known else None, "high": high if known else None}
