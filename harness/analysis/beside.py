"""Which published numbers stand beside ours, and in what scale. They have no rows of samples: they are never tested."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from harness.analysis.records import CELL, Record

PRINTED_COSTS = {"nfe": "NFE", "seconds": "s/image"}  # published words that are columns of every table of ours
Place = tuple[str, str, str]  # a cell of the benchmark: model, method, prompts


class Number(NamedTuple):
    """A published number as it was printed, its table and paper, and what must be said of it."""

    value: float
    table: str
    paper: str
    notes: tuple[str, ...] = ()


@dataclass
class Numbers:
    """The published numbers of one table, by (model, method, prompts) and metric.

    `scales` has what ours is multiplied by to be in the printed unit, where that is not 1. `left_out` counts the
    numbers that are not shown by what is said of them: the table, and that they are of a model or prompt set that the
    run does not have, or against another baseline.
    """

    found: dict[tuple[Place, str], Number] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, table: str, which: str) -> None:
        """Counts one more number of a published table that is not shown."""
        said = f"{table}: numbers {which} are left out"
        self.left_out[said] = self.left_out.get(said, 0) + 1

    @property
    def metrics(self) -> list[str]:
        """The metrics that have a number, in the order of the papers."""
        return list(dict.fromkeys(metric for _, metric in self.found))

    def cited(self) -> str:
        """The published tables that the numbers are of, by paper."""
        tables: dict[str, dict[str, None]] = {}
        for number in self.found.values():
            tables.setdefault(number.paper, {})[number.table] = None
        return "; ".join(f"{', '.join(names)} of {paper}" for paper, names in tables.items())

    def averaged(self) -> list[str]:
        """The metrics beside which an average is printed: what it is the mean of."""
        rows = {(place, number.table) for (place, metric), number in self.found.items() if metric == "average"}
        mean_of = [metric for (place, metric), number in self.found.items() if (place, number.table) in rows]
        return [metric for metric in dict.fromkeys(mean_of) if metric not in ("average", *PRINTED_COSTS.values())]

    def of(self, metrics: Collection[str]) -> Numbers:
        """The numbers of these metrics alone."""
        return replace(self, found={key: number for key, number in self.found.items() if key[1] in metrics})

    def scale(self, metric: str) -> float:
        """What ours is multiplied by."""
        return self.scales.get(metric, 1.0)

    def decimals(self, metric: str) -> int:
        """With how many decimals the metric was printed (the most of any of its numbers)."""
        return printed_decimals([number.value for (_, name), number in self.found.items() if name == metric])

    def scaled(self, record: Record) -> Record:
        """A record of ours in the printed unit."""
        scale = self.scale(record["metric"])
        ends = {key: record[key] for key in ("value", "low", "high")}
        return record | {key: end if end is None else end * scale for key, end in ends.items()}

    def places(self, ours: Iterable[Place]) -> list[Place]:
        """Our cells and the published ones, by model and prompt set: first as the paper has them, then our others."""
        own = list(dict.fromkeys(ours))
        theirs = list(dict.fromkeys(place for place, _ in self.found))
        blocks = list(dict.fromkeys((model, prompts) for model, _, prompts in [*own, *theirs]))
        return [place for block in blocks for place in dict.fromkeys([*theirs, *own]) if (place[0], place[2]) == block]


def numbers(
    published: pd.DataFrame | None, quantity: str, ours: Sequence[Record],
    baseline: str | Mapping[str, str] | None = None, other_models: bool = False,
) -> Numbers:
    """The published numbers of one `quantity` (value, win_rate or difference) for the models and prompt sets of `ours`.

    Args:
        published: rows as `harness.analysis.published.rows` gives them, of one table or several, the preferred first;
            None for none.
        quantity: what the table shows.
        ours: the records that the table is made of.
        baseline: what the table compares with, or, by method, each with its own. A win rate or difference that is
            said to be against another is left out; one that does not say is not.
        other_models: whether those of models that `ours` does not have are among them.

    Where two tables print the same number, the first one's is taken and a note says what the other prints. Tables
    that print a metric in different units are brought to the unit of the first. The label `any` is every one of ours.
    """
    chosen = Numbers()
    if published is None:
        return chosen
    labels = _labels(ours)
    for row in published[published["quantity"] == quantity].to_dict("records"):
        models, methods, prompts = (labels[key] if row[key] == "any" else [row[key]] for key in CELL)
        ours_too = other_models or set(models) <= set(labels["model"])
        if not ours_too or not set(prompts) <= set(labels["prompts"]):
            chosen.leave_out(row["table"], "of other models or prompt sets")
            continue
        compared = baseline if baseline is None or isinstance(baseline, str) else baseline.get(row["method"])
        if row["against"] and row["against"] != compared:
            chosen.leave_out(row["table"], "against another baseline")
            continue
        metric = PRINTED_COSTS.get(row["metric"], row["metric"])
        scale = chosen.scales.setdefault(metric, row["scale"])
        value = row["value"] if row["scale"] == scale else row["value"] / row["scale"] * scale
        for place in product(models, methods, prompts):
            _keep(chosen.found, (place, metric), value, row)
    chosen.scales = {metric: scale for metric, scale in chosen.scales.items() if scale != 1}
    return chosen


def _labels(ours: Iterable[Mapping[Any, Any]]) -> dict[str, list[str]]:
    return {key: list(dict.fromkeys(row[key] for row in ours)) for key in CELL}


def _keep(found: dict[tuple[Place, str], Number], key: tuple[Place, str], value: float, row: dict[Any, Any]) -> None:
    note = _note(row)
    if key not in found:
        found[key] = Number(value, row["table"], row["paper"], (note,) if note else ())
    elif found[key].value != value:
        notes = (*found[key].notes, f"{row['table']} prints {value:g}")
        found[key] = found[key]._replace(notes=notes)


def _note(row: Mapping[Any, Any]) -> str | None:
    return row["note"] if isinstance(row["note"], str) else None  # a frame may hold NaN for None


def printed_decimals(values: Iterable[float]) -> int:
    """The decimals, at most six, that show all values in full; papers print a column with as many."""
    return max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values), default=0)


def objects(published: pd.DataFrame | None) -> list[Record]:
    """Published numbers as table records without a value: the number is in `published`, `quantity` says what it is.

    `value` is None and `n` 0, so that whoever reads records by their `value` takes none of them for a measurement.
    """
    if published is None:
        return []
    none = dict.fromkeys(("value", "low", "high", "nfe", "flops", "seconds", "trained"))
    found = []
    for row in published.to_dict("records"):
        head = {key: row[key] for key in CELL} | {"group": None, "metric": row["metric"], "metric_digest": None}
        said = {"table": row["table"], "source": row["source"], "note": _note(row)}
        if row["against"]:
            said["baseline"] = row["against"]
        found.append(
            head | none | {"n": 0, "quantity": row["quantity"], "published": row["value"], "scale": row["scale"]} | said
        )
    return found


def agreement(published: pd.DataFrame, labels: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong with a published table for a benchmark of these labels (by `model`, `method`, `prompts`).

    None where at least one of its rows is of a model, a method and a prompt set of the benchmark.
    """
    if any(all(row[key] in ("any", *labels[key]) for key in CELL) for row in published[CELL].to_dict("records")):
        return None
    theirs = _labels(published[CELL].to_dict("records"))
    sides = "; ".join(f"{key}: here {', '.join(labels[key])}, there {', '.join(theirs[key])}" for key in CELL)
    return (
        f"no row of it is of a model, a method and a prompt set of this benchmark ({sides}): give yours the table's "
        f"labels, or leave it out"
    )
