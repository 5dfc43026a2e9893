"""What `harness compare` prints: pairs of rows become a record a (cell, metric), and records a table.

`harness.compare` finds the pairs and decides what may be compared.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.analysis import render, stats
from harness.analysis.layout import Cell, Column, Table, decimals, fixed, interval, p_value
from harness.analysis.records import MetricInfo, Record, number, paired

LABELS = ["model", "prompts", "method", "against", "metric"]
LEAST = 1e-9  # of the largest difference of a pair: a mean difference below is what rounding leaves of none
CAPTION = (
    "Difference: method minus the one it is compared with, paired by prompt and seed, [95 % interval] (prompts "
    "resampled); p from sign flips of prompts, Holm-adjusted over the methods of a metric; bold: p < 0.05. Wins: share "
    "of prompts on which the method is better, ties half, with Wilson's interval. Effect: difference over its standard "
    "deviation between prompts. Needed: prompts that show the observed difference with 80 % power at p < 0.05. "
    "NFE ×: denoiser evaluations, relative."
)


@dataclass
class Comparison:
    """Records to print, and what is to be said of all of them."""

    records: list[Record]
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """All comparisons, a row each."""
        return lay_out(self.records, self.notes)

    def render(self, form: str) -> str:
        """As markdown, latex, csv, html or json; the last two of records, with every number in full."""
        if form == "json":
            found = {"comparisons": self.records, "notes": self.notes}
            return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if form == "csv":
            out = io.StringIO()
            rows = [record | {"notes": "; ".join(record.get("notes", ()))} for record in self.records]
            pd.DataFrame(rows, dtype=object).to_csv(out, index=False, lineterminator="\n")
            return out.getvalue()
        return render.FORMATS[form](self.table())


def paired_records(head: Record, pairs: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> list[Record]:
    """A record for each metric of one pair of cells.

    Args:
        head: model, prompts, method and against, which each record repeats.
        pairs: a row a (prompt, seed) and metric: prompt_id, category, metric, value, nfe, and value_against,
            nfe_against of the cell compared with.
        metrics: of the cell; metrics of whole cells, and those that average their lowest values, have none.

    A record holds the means of both (`mean`, `mean_against`), `value` (their difference), low, high, p, `n` (pairs),
    `clusters` (prompts), win_rate, win_low, win_high, wins, ties, losses, effect_size, prompts_needed, nfe,
    nfe_against, kind and higher_is_better. What does not exist is None. `p_holm` is for `adjust` to add.
    """
    found = []
    for label, rows in pairs.groupby("metric", sort=False):
        info = metrics[str(label)]
        if info.lowest or info.kind == "distribution":
            continue
        delta = rows["value"].to_numpy(float) - rows["value_against"].to_numpy(float)
        grouped = info.grouped and bool(rows["category"].notna().any())
        mean, other = (_mean(rows, name, grouped) for name in ("value", "value_against"))
        difference = paired(delta, rows["prompt_id"], rows["category"] if grouped else None, info.higher_is_better)
        found.append(head | {"metric": str(label), "mean": mean, "mean_against": other} | difference | {
            "prompts_needed": _needed(delta, rows["prompt_id"], difference["value"]), "nfe": number(rows["nfe"].mean()),
            "nfe_against": number(rows["nfe_against"].mean()), "kind": info.kind,
            "higher_is_better": info.higher_is_better,
        })
    return found


def plain_record(head: Record, label: str, info: MetricInfo, mean: float, other: float, **known: Any) -> Record:
    """A record of a difference without pairs (a metric of whole cells, a published number) by the metric `label`: what
    `known` does not give of the keys of `paired_records` is None."""
    nothing = dict.fromkeys((
        "low", "high", "p", "n", "clusters", "win_rate", "win_low", "win_high", "wins", "ties", "losses",
        "effect_size", "prompts_needed", "nfe", "nfe_against",
    ))
    tail = {"kind": info.kind, "higher_is_better": info.higher_is_better}
    value = {"metric": label, "mean": number(mean), "mean_against": number(other), "value": number(mean - other)}
    return head | value | nothing | tail | known


def adjust(records: Sequence[Record]) -> list[Record]:
    """The records with `p_holm`. A family is all that is compared by one metric on one (model, prompts)."""
    families: dict[tuple[str, ...], list[int]] = {}
    for place, record in enumerate(records):
        families.setdefault((record["model"], record["prompts"], record["metric"]), []).append(place)
    adjusted: dict[int, float | None] = {}
    for family in families.values():
        p = stats.holm([math.nan if records[i]["p"] is None else records[i]["p"] for i in family])
        adjusted |= {i: number(value) for i, value in zip(family, p, strict=True)}
    return [record | {"p_holm": adjusted[i]} for i, record in enumerate(records)]


def lay_out(records: Sequence[Record], notes: Sequence[str]) -> Table:
    """A row a record; `notes` are said of all of them, below."""
    columns = ["mean", "mean against", "difference", "p", "wins", "effect", "needed", "pairs", "NFE ×"]
    lower = dict.fromkeys(r["metric"] for r in records if not r["higher_is_better"])
    said = [*notes, *([f"Lower is better: {', '.join(lower)}."] if lower else [])]
    table = Table(LABELS, [Column(name) for name in columns], [], "\n".join([CAPTION, *said]), [], "Comparison")
    for record in records:
        mine = [r for r in records if r["metric"] == record["metric"]]
        means = decimals([r[key] for r in mine for key in ("mean", "mean_against")])
        cells = _cells(table, record, means, decimals([r["value"] for r in mine]))
        table.rows.append(([str(record[name]) for name in LABELS], cells))
    return table


def _cells(table: Table, record: Record, mean: int, digits: int) -> list[Cell]:
    """`mean` and `digits` are the decimals of the means and of the difference."""
    ratio = record["nfe"] / record["nfe_against"] if record["nfe"] and record["nfe_against"] else None
    p = record["p_holm"]
    difference = fixed(record["value"], digits, sign=True)
    known = record["low"] is not None or record["kind"] != "published"
    wins = {"value": record["win_rate"], "low": record["win_low"], "high": record["win_high"]}
    cells = [
        Cell(fixed(record["mean"], mean)),
        Cell(fixed(record["mean_against"], mean)),
        Cell(difference + (interval(record, digits, sign=True) if known else ""), rank=int(p is not None and p < 0.05)),
        Cell(p_value(p)),
        Cell("–" if record["win_rate"] is None else fixed(record["win_rate"], 2) + interval(wins, 2)),
        Cell(fixed(record["effect_size"], 2, sign=True)),
        Cell("–" if record["prompts_needed"] is None else f"{record['prompts_needed']:,}"),
        Cell("–" if record["n"] is None else str(record["n"])),
        Cell(fixed(ratio, 2)),
    ]
    for text in record.get("notes", ()):
        cells[2].marks.append(table.note(text))
    return cells


def _mean(rows: pd.DataFrame, name: str, grouped: bool) -> float | None:
    return number(rows.groupby("category")[name].mean().mean() if grouped else rows[name].mean())


def _needed(delta: Any, clusters: pd.Series, difference: float) -> int | None:
    """None where nothing differs beyond rounding (`LEAST`), or a single prompt tells of no spread."""
    if abs(difference) <= LEAST * abs(delta).max():
        return None
    try:
        return stats.prompts_needed(delta, clusters, difference)
    except ValueError:
        return None
