"""Quality against cost: which methods nobody beats at their price, and by whom the others are beaten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from harness.analysis.records import MetricInfo, Record, differences

MISSING = -1


def dominators(
    costs: Sequence[float | None], values: Sequence[float | None], higher_is_better: bool = True
) -> list[int]:
    """For each point the index of the one that dominates it: its own on the front, -1 without a cost or value.

    A point dominates another where it costs no more and is no worse, and is cheaper or better; equal points do not.
    Of several that do, the best is named, and of equally good ones the cheapest, which is itself on the front.
    """
    sign = 1.0 if higher_is_better else -1.0
    known = {
        i: (float(cost), sign * float(value))
        for i, (cost, value) in enumerate(zip(costs, values, strict=True))
        if cost is not None and value is not None and not math.isnan(cost) and not math.isnan(value)
    }
    found = [MISSING] * len(costs)
    best = MISSING
    for i in sorted(known, key=lambda i: (known[i][0], -known[i][1])):
        cost, value = known[i]
        beaten = best != MISSING and (known[best][1] > value or (known[best][1] == value and known[best][0] < cost))
        found[i] = best if beaten else i
        if best == MISSING or value > known[best][1]:
            best = i
    return found


def points(records: Sequence[Record], metric: str, cost: str) -> list[Record]:
    """The overall records of a metric, cheapest first within each (model, prompts).

    Each has `cost` (the name), `front` (None without a value or cost) and `dominated_by` (a method, None on the front).
    """
    found: list[Record] = []
    mine = [r for r in records if r["metric"] == metric and r["group"] is None]
    for place in dict.fromkeys((r["model"], r["prompts"]) for r in mine):
        block = [r for r in mine if (r["model"], r["prompts"]) == place]
        block.sort(key=lambda r: math.inf if r[cost] is None else r[cost])
        higher = bool(block[0].get("higher_is_better", True))
        by = dominators([r[cost] for r in block], [r["value"] for r in block], higher)
        found += [
            record | {
                "cost": cost,
                "front": None if k == MISSING else k == i,
                "dominated_by": None if k in (MISSING, i) else block[k]["method"],
            }
            for i, (record, k) in enumerate(zip(block, by, strict=True))
        ]
    return found


def against_dominators(found: Sequence[Record], rows: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> list[Record]:
    """Of `points`, every dominated method minus the one that dominates it, paired (`records.differences`)."""
    compared: list[Record] = []
    for model, prompts in dict.fromkeys((r["model"], r["prompts"]) for r in found):
        mine = [r for r in found if (r["model"], r["prompts"]) == (model, prompts) and r["dominated_by"] is not None]
        part = rows[(rows["model"] == model) & (rows["prompts"] == prompts)]
        for metric in dict.fromkeys(r["metric"] for r in mine):
            by = {r["method"]: r["dominated_by"] for r in mine if r["metric"] == metric}
            compared += differences(part[part["metric"] == metric], by, metrics)
    return compared
