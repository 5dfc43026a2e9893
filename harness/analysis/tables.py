"""Tables of a run, in every format: the face of records.py (numbers), layout.py (rows) and render.py (formats)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import pandas as pd
from rich.console import Console

from harness.analysis import render as formats
from harness.analysis.layout import Cell, Column, Spec, Table, TableSpec, lay_out, lay_out_differences, lay_out_groups
from harness.analysis.records import MetricInfo, Record, differences, records, scored_rows

__all__ = ["MetricInfo", "Outcome", "Record", "TableSpec", "differences", "laid_out", "records", "render",
           "scored_rows", "show"]

FORMATS = {"markdown": formats.markdown, "latex": formats.latex, "html": formats.html}


class Outcome(Protocol):
    """What a run offers to its tables (`harness.run.Outcome` is one)."""

    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def rows(self) -> pd.DataFrame: ...
    @property
    def scores(self) -> pd.DataFrame: ...
    @property
    def metrics(self) -> Mapping[str, MetricInfo]: ...
    @property
    def judges(self) -> Mapping[str, str]: ...


def laid_out(outcome: Outcome, spec: Spec, *, ci: bool = False, groups: bool = False) -> list[Table]:
    """All that a spec asks for: the table, one by category for each metric that has them (`groups`), and the
    paired differences to the baseline where one is named."""
    metrics, judges = outcome.metrics, outcome.judges
    tables = [lay_out(outcome.records, spec, metrics, judges, ci=ci)]
    chosen = list(metrics) if isinstance(spec.columns, str) else list(spec.columns)
    if groups or spec.groups:
        grouped = dict.fromkeys(r["metric"] for r in outcome.records if r["group"] is not None)
        tables += [
            lay_out_groups(outcome.records, spec, label, metrics, judges, ci=ci)
            for label in grouped if label in chosen
        ]
    if spec.baseline is not None:
        rows = scored_rows(outcome.rows, outcome.scores, {label: metrics[label] for label in chosen})
        found = differences(rows, spec.baseline, metrics)
        if found:
            tables.append(lay_out_differences(found, spec, metrics, f"Paired differences against {spec.baseline}"))
    return tables


def render(outcome: Outcome, spec: Spec, form: str, *, ci: bool = False, groups: bool = False) -> str:
    """The tables of a spec as `markdown`, `latex`, `csv`, `html` or `json` (the table records themselves).

    CSV is one table that a spreadsheet opens: values and, with `groups`, those of the categories as further
    columns; no differences.
    """
    if form == "json":
        return json.dumps(list(outcome.records), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if form == "csv":
        return formats.csv_text(_wide(outcome, spec, groups))
    return "\n".join(FORMATS[form](table) for table in laid_out(outcome, spec, ci=ci, groups=groups))


def _wide(outcome: Outcome, spec: Spec, groups: bool) -> Table:
    """The main table with the categories' values as columns `metric:category` before n, NFE and seconds."""
    plain = TableSpec(spec.rows, spec.columns, None, spec.groups)
    main, *others = laid_out(outcome, plain, groups=groups)
    for other in others:
        label = other.title.removesuffix(" by category")
        cells = dict((tuple(key), row) for key, row in other.rows)
        names = [Column(f"{label}:{column.key}", column.direction) for column in other.columns[:-3]]
        main.columns[-3:-3] = names
        for key, row in main.rows:
            row[-3:-3] = cells.get(tuple(key), [Cell("–", {"": None}) for _ in names])[: len(names)]
    return main


def show(
    outcome: Outcome, spec: Spec, *, ci: bool = False, groups: bool = False, console: Console | None = None
) -> None:
    """Prints the tables of a spec. Where standard output is no terminal, no line is folded to its width."""
    show_tables(laid_out(outcome, spec, ci=ci, groups=groups), console)


def show_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Prints tables as `show` does."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    for table in tables:
        console.print(formats.terminal(table, console.width))
