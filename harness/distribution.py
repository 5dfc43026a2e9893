"""Metrics of whole cells, from the features that a run has stored: value, n, and an interval over prompts."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from harness.frechet import Jackknife
from harness.metrics.base import DistributionMetric, Reference
from harness.plan import Cell
from harness.store import Store

_Place = tuple[str, str, str]  # model, method, prompt set


@dataclass(frozen=True)
class _Side:
    """A cell's features `[N, D]` and the prompt of each row."""

    features: np.ndarray
    prompts: list[str]


@dataclass(frozen=True)
class _Estimate:
    """What a metric says of the n images of a cell: the jackknife, or why there is none."""

    n: int
    jackknife: Jackknife | None
    error: str | None


def distribution_values(
    store: Store, cells: Collection[Cell], metrics: dict[str, tuple[DistributionMetric, str]],
    baselines: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A record for every cell and metric (`label -> (metric, digest)`): value, low, high, n, or the reason of none.

    Only samples of the plan count, whatever else the folder holds. `against` holds the paired difference to each
    of the `baselines` (methods) on the same model and prompts. The features of each cell are read once, and those of
    two cells at most are in memory at a time.
    """
    places = {(cell.model, cell.method, cell.prompts): cell for cell in cells}
    found: dict[tuple[str, _Place], dict[str, Any]] = {}
    shelves: dict[str, list[str]] = {}
    for label, (metric, _) in metrics.items():
        shelves.setdefault(metric.shelf, []).append(label)
    for shelf, labels in shelves.items():
        estimate = _estimates(store, places, shelf, {label: metrics[label][0] for label in labels}, len(baselines))
        for place in sorted(places, key=lambda place: (place[0], place[2])):  # those of one baseline in a row
            model, method, prompts = place
            rivals = [b for b in baselines if b != method and (model, b, prompts) in places]
            for label in labels:
                metric, digest = metrics[label]
                mine = estimate(place, label)
                differences = {b: _difference(mine, estimate((model, b, prompts), label)) for b in rivals}
                found[label, place] = {
                    "model": model, "method": method, "prompts": prompts,
                    "metric": label, "metric_digest": digest,
                    **_value(metric, mine),
                    "against": {b: value for b, value in differences.items() if value is not None},
                }
    return [found[label, place] for label in metrics for place in places]


def paired_distances(
    metric: DistributionMetric, first: tuple[Store, Cell], second: tuple[Store, Cell],
    pairs: Collection[tuple[str, int]],
) -> dict[str, Any]:
    """The distances of two cells, which may stand in two runs, on the `pairs` (prompt id, seed) that have features
    on both sides: first, second, value (first - second), low, high, n, prompts.

    Raises:
        ValueError: there are none, or too few.
    """
    sides = []
    for store, cell in (first, second):
        ids, features = store.read_features(metric.shelf, model=cell.model, method=cell.method, prompts=cell.prompts)
        row = {sample: place for place, sample in enumerate(ids)}
        planned = {prompt.id for prompt in cell.prompt_set.prompts}
        made = {pair: cell.sample_id(*pair) for pair in pairs if pair[0] in planned}
        known = {pair: row[sample] for pair, sample in made.items() if sample in row}
        sides.append((features, known))
    common = sorted(set(sides[0][1]) & set(sides[1][1]))
    if not common:
        raise ValueError("no (prompt, seed) has features on both sides")
    prompts, reference = [prompt for prompt, _ in common], metric.reference()
    one, other = (
        metric.jackknife(features[[known[pair] for pair in common]], prompts, reference) for features, known in sides
    )
    found = one - other
    ends = _ends(*found.interval())
    values = {"first": one.value, "second": other.value, "value": found.value}
    return {**values, **ends, "n": len(common), "prompts": len(set(prompts))}


def _estimates(
    store: Store, places: dict[_Place, Cell], shelf: str, metrics: dict[str, DistributionMetric], baselines: int
) -> Callable[[_Place, str], _Estimate]:
    """A function from cell and metric to its estimate, which keeps those of one cell and of the baselines."""
    references = {label: metric.reference() for label, metric in metrics.items()}

    @lru_cache(maxsize=2)
    def side(place: _Place) -> _Side:
        return _side(store, places[place], shelf)

    @lru_cache(maxsize=len(metrics) * (baselines + 1))
    def estimate(place: _Place, label: str) -> _Estimate:
        found = side(place)
        if not len(found.features):
            return _Estimate(0, None, _no_features(store, places[place], metrics[label]))
        return _estimate(metrics[label], found, references[label])

    return estimate


def _side(store: Store, cell: Cell, shelf: str) -> _Side:
    """The cell's features in the order of their ids: sums then do not depend on the order of files."""
    prompt_of = {
        cell.sample_id(prompt.id, seed): prompt.id for seed in cell.seeds for prompt in cell.prompt_set.prompts
    }
    ids, features = store.read_features(shelf, model=cell.model, method=cell.method, prompts=cell.prompts)
    keep = sorted((sample, row) for row, sample in enumerate(ids) if sample in prompt_of)
    return _Side(features[[row for _, row in keep]], [prompt_of[sample] for sample, _ in keep])


def _no_features(store: Store, cell: Cell, metric: DistributionMetric) -> str:
    """Why a cell without features has none."""
    rows = store.read(
        "images", columns=["sample_id", "frame", "error"], model=cell.model, method=cell.method, prompts=cell.prompts
    )
    frames = rows.loc[rows["error"].isna() & rows["sample_id"].isin(list(cell.sample_ids())), "frame"]
    if frames.empty:
        return "no images"
    if metric.only_stills and frames.max() > 0:
        return f"{metric.name} is defined for stills; these samples have {frames.max() + 1} frames"
    return "no features of the images here; `harness score RUN` makes them, or says what they lack"


def _estimate(metric: DistributionMetric, side: _Side, reference: Reference | None) -> _Estimate:
    try:
        return _Estimate(len(side.features), metric.jackknife(side.features, side.prompts, reference), None)
    except ValueError as error:
        return _Estimate(len(side.features), None, str(error))


def _value(metric: DistributionMetric, mine: _Estimate) -> dict[str, Any]:
    if mine.jackknife is None:
        return {"n": mine.n, "value": None, "low": None, "high": None, "error": mine.error}
    low, high = metric.interval_of(mine.jackknife)
    return {"n": mine.n, "value": mine.jackknife.value, **_ends(low, high), "error": None}


def _difference(mine: _Estimate, other: _Estimate) -> dict[str, Any] | None:
    """None where the two sides cannot be compared (other prompts, too few of them)."""
    if mine.jackknife is None or other.jackknife is None:
        return None
    try:
        found = mine.jackknife - other.jackknife
    except ValueError:
        return None
    return {"value": found.value, **_ends(*found.interval())}


def _ends(low: float, high: float) -> dict[str, float | None]:
    known = bool(np.isfinite(low) and np.isfinite(high))
    return {"low": low if known else None, "high": high if known else None}
