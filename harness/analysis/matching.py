"""What the same cost buys otherwise: each method beside the baseline whose cost is nearest to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from harness.analysis.records import MetricInfo, Record, differences

ALIKE = 0.05  # costs that differ by less count as equal
ENOUGH = 0.9  # a baseline of at least this share of a method's cost is preferred to a cheaper one
FAR = 1.5  # beyond this factor, either way, a comparison is not one at equal cost


def alike(cost: float, other: float) -> bool:
    """Whether two costs count as equal."""
    return abs(cost / other - 1) < ALIKE


def nearest(cost: float, baselines: Mapping[str, float]) -> str | None:
    """The baseline whose cost is nearest by ratio, the first of equally near ones; None where there are none.

    Those from 0.9 to 1.5 times the cost come before all others. Costs are above 0.
    """
    preferred = {name: c for name, c in baselines.items() if ENOUGH <= c / cost <= FAR}
    chosen = preferred or baselines
    return min(chosen, key=lambda name: max(chosen[name] / cost, cost / chosen[name]), default=None)


def matched(
    rows: pd.DataFrame, baselines: Sequence[str], metrics: Mapping[str, MetricInfo], cost: str
) -> list[Record]:
    """Every other method minus its nearest baseline by mean `cost` ("nfe", "flops"), on the rows of `scored_rows`.

    Records as `differences` gives them, each with the name of its `baseline`. Where a cost is not known there is none.
    """
    found: list[Record] = []
    for _, part in rows.groupby(["model", "prompts"], sort=False):
        images = part.drop_duplicates(["method", "prompt_id", "seed"])
        costs = {str(name): float(c) for name, c in images.groupby("method", sort=False)[cost].mean().items() if c > 0}
        offered = {name: costs[name] for name in baselines if name in costs}
        chosen = {name: nearest(c, offered) for name, c in costs.items() if name not in baselines}
        found += differences(part, {name: base for name, base in chosen.items() if base is not None}, metrics)
    return found


def misfit(record: Record, cost: str, candidates: Mapping[str, int]) -> str | None:
    """Why a record of `matched` is no comparison at equal cost, and what would be one; None where it is.

    `candidates` says how many noises a baseline samples for one image, so what one of them costs.
    """
    own, other = record[cost], record[f"baseline_{cost}"]
    if not own or not other or (other <= own * FAR and own <= other * FAR):
        return None
    text = f"no baseline within {FAR:g} times the cost of {record['method']}"
    tries = candidates.get(record["baseline"])
    if tries is None:
        return text
    matching = round(own * tries / other)
    if matching < 1:
        return f"{text}: one image of {record['baseline']} already costs more; fewer steps would match"
    return f"{text}: best_of_n with candidates: {matching}, sampled as {record['baseline']} is, would match"
