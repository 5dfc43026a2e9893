"""One number of several evaluations: a method's values on several selections of prompts, the best of them or the mean.

EDM2's protocol, and that of papers after it: three ranges of 50,000 seeds, of which the least distance is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from harness.analysis.records import Record

How = Literal["best", "mean"]
Repeats = Mapping[str, Mapping[How, Sequence[str]]]  # by the label that they get: how, and the labels of prompts


def combined(records: Sequence[Record], repeats: Repeats) -> list[Record]:
    """The overall records, those of repeated selections put together under the new label; all others as they are.

    A record that is put together holds `quantity` ("best" or "mean") and `repeats`, the values by label of prompts. It
    has a value where all of them have one. `n` counts the images of one evaluation (of unequal ones the least),
    `failed` those of all; costs are means. The mean has the interval of a mean of independent values; the best has
    none, as it is no estimate of what one evaluation gives.
    """
    parts = {label for how in repeats.values() for labels in how.values() for label in labels}
    overall = [record for record in records if record["group"] is None]
    found: list[Record] = []
    for name, given in repeats.items():
        for how, labels in given.items():
            cells: dict[tuple[str, str, str], dict[str, Record]] = {}
            for record in overall:
                if record["prompts"] in labels:
                    key = record["model"], record["method"], record["metric"]
                    cells.setdefault(key, {})[record["prompts"]] = record
            found += [_one([cell.get(label) or _none_yet(cell, label) for label in labels], name, how)
                      for cell in cells.values()]
    return found + [record for record in overall if record["prompts"] not in parts]


def _none_yet(cell: Mapping[str, Record], label: str) -> Record:
    """The record of an evaluation whose images an unfinished run has not begun, after the others'."""
    nothing = dict.fromkeys(("value", "low", "high", "nfe", "flops", "seconds"))
    return next(iter(cell.values())) | nothing | {"prompts": label, "n": 0, "failed": 0, "reason": "no images yet"}


def _one(parts: Sequence[Record], name: str, how: How) -> Record:
    values = [part["value"] for part in parts]
    lacking = [f"{part['prompts']}: {part['reason']}" for part in parts if part["value"] is None]
    reasons = [f"{part['prompts']}: {part['reason']}" for part in parts if part["reason"]]
    value = low = high = None
    if not lacking and how == "best":
        value = (max if parts[0].get("higher_is_better", True) else min)(values)
    elif not lacking:
        value = sum(values) / len(values)
        low, high = (_end(value, parts, end) for end in ("low", "high"))
    return {
        **{key: given for key, given in parts[0].items() if key != "against"},
        "prompts": name, "value": value, "low": low, "high": high,
        "n": min(part["n"] for part in parts), "failed": sum(part["failed"] for part in parts),
        "reason": "; ".join(lacking or reasons) or None, "trained": all(part["trained"] for part in parts),
        **{cost: _mean([part[cost] for part in parts]) for cost in ("nfe", "flops", "seconds")},
        "quantity": how, "repeats": {part["prompts"]: part["value"] for part in parts},
    }


def _end(mean: float, parts: Sequence[Record], end: str) -> float | None:
    """An end of the interval of the mean: the distances of theirs, as independent errors add up."""
    if any(part[end] is None for part in parts):
        return None
    away = math.sqrt(sum((part[end] - part["value"]) ** 2 for part in parts)) / len(parts)
    return mean - away if end == "low" else mean + away


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def said(records: Sequence[Record]) -> list[str]:
    """What a table says of the records that are put together, once for each label."""
    notes = {
        r["prompts"]: f"{r['prompts']}: the {r['quantity']} of {len(r['repeats'])} evaluations "
                      f"({', '.join(r['repeats'])}), n images in each"
                      + ("; the best has no interval" if r["quantity"] == "best" else "")
        for r in records if "repeats" in r
    }
    return list(notes.values())
