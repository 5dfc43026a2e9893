"""Tables of a run, in every format: the face of records.py (numbers), layout.py (rows) and render.py (formats)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
from rich.console import Console

from harness.analysis import pareto, sweep
from harness.analysis import render as formats
from harness.analysis.beside import numbers, objects
from harness.analysis.layout import (
    Cell,
    Column,
    Spec,
    Table,
    TableSpec,
    lay_out,
    lay_out_differences,
    lay_out_front,
    lay_out_groups,
    lay_out_matched,
    lay_out_sweep,
)
from harness.analysis.matching import matched
from harness.analysis.records import CELL, MetricInfo, Record, baselines, differences, records, scored_rows, win_rates
from harness.analysis.repeats import Repeats, combined
from harness.errors import HarnessError

__all__ = ["MetricInfo", "Outcome", "Record", "TableSpec", "as_json", "baselines", "differences", "draw_fronts",
           "draw_sweeps", "fronts", "laid_out", "must_be_png", "records", "render", "render_fronts", "render_sweeps",
           "scored_rows", "show", "show_tables", "sweeps"]


class Outcome(Protocol):
    """What a run offers to its tables (`harness.run.Outcome` is one)."""

    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def specs(self) -> Sequence[Spec]: ...
    @property
    def rows(self) -> pd.DataFrame: ...
    @property
    def scored(self) -> pd.DataFrame: ...  # scored_rows of all metrics
    @property
    def paired(self) -> dict[str, list[Record]]: ...  # kept between the tables of one outcome
    @property
    def metrics(self) -> Mapping[str, MetricInfo]: ...
    @property
    def judges(self) -> Mapping[str, str]: ...
    @property
    def published(self) -> pd.DataFrame | None: ...
    @property
    def candidates(self) -> Mapping[str, int]: ...
    @property
    def parameters(self) -> Mapping[str, sweep.Settings]: ...  # by method


def laid_out(outcome: Outcome, spec: Spec, *, ci: bool = False, groups: bool = False) -> list[Table]:
    """All that a spec asks for: the table, one by category for each metric that has them (`groups`), and the
    paired differences to the baseline where one is named."""
    paired = _paired(outcome, spec)
    tables = [_main(outcome, spec, paired, ci)]
    if groups or spec.groups:
        tables += _by_category(outcome, spec, ci).values()
    if paired:
        theirs = numbers(outcome.published, "difference", paired, spec.baseline)
        title = _against("Paired differences", spec.baseline)
        tables.append(lay_out_differences(paired, spec, outcome.metrics, title, numbers=theirs))
    if spec.match is not None:
        metrics = {label: outcome.metrics[label] for label in _measured(outcome, spec)}
        offered = list(outcome.candidates) if spec.baselines is None else spec.baselines
        rows = outcome.scored[outcome.scored["metric"].isin(list(metrics))]
        found = matched(rows, offered, metrics, spec.match)
        if found:
            tables.append(lay_out_matched(found, spec, outcome.metrics, outcome.judges, outcome.candidates))
    return tables


def _main(outcome: Outcome, spec: Spec, paired: Sequence[Record], ci: bool = False) -> Table:
    shown = _shown(outcome, spec, paired)
    theirs = numbers(outcome.published, spec.show, shown, spec.baseline, other_models="model" in spec.rows)
    table = lay_out(shown, spec, outcome.metrics, outcome.judges, ci=ci, numbers=theirs)
    if spec.show == "win_rate":
        table.title = _against("Win rates", spec.baseline)
    return table


def _by_category(outcome: Outcome, spec: Spec, ci: bool = False) -> dict[str, Table]:
    grouped = {r["metric"] for r in outcome.records if r["group"] is not None}
    return {
        label: lay_out_groups(outcome.records, spec, label, outcome.metrics, outcome.judges, ci=ci)
        for label in _measured(outcome, spec) if label in grouped
    }


def _measured(outcome: Outcome, spec: Spec) -> list[str]:
    """The metrics of a spec; the other columns that it may name are published alone."""
    return [label for label in outcome.metrics if isinstance(spec.columns, str) or label in spec.columns]


def _paired(outcome: Outcome, spec: Spec) -> list[Record]:
    if spec.baseline is None:
        return []
    metrics = {label: outcome.metrics[label] for label in _measured(outcome, spec)}
    kept, key = outcome.paired, json.dumps([spec.baseline, list(metrics)])
    if key not in kept:
        kept[key] = differences(outcome.scored, spec.baseline, metrics)
    return kept[key]


def _shown(outcome: Outcome, spec: Spec, paired: Sequence[Record]) -> list[Record]:
    """The records of the main table."""
    if spec.show == "win_rate" and spec.baseline is not None:
        return win_rates(outcome.records, paired, spec.baseline)
    return combined(outcome.records, spec.repeats) if spec.repeats else list(outcome.records)


def _repeats(specs: Sequence[Spec]) -> Repeats:
    """Those of all tables."""
    return {name: how for spec in specs for name, how in spec.repeats.items()}


def _against(what: str, baseline: str | Mapping[str, str] | None) -> str:
    if isinstance(baseline, Mapping):
        return f"{what}: " + ", ".join(f"{method} against {base}" for method, base in baseline.items())
    return f"{what} against {baseline}"


def fronts(outcome: Outcome, cost: str, wanted: Sequence[str] = ()) -> list[Table]:
    """For each metric (`wanted`, or all that have a value) which methods are on the Pareto front over `cost`.

    Raises:
        HarnessError: no such metric, or the run has no values yet.
    """
    rows = outcome.scored
    return [
        lay_out_front(
            found, pareto.against_dominators(found, rows, outcome.metrics), TableSpec(), outcome.metrics, outcome.judges
        )
        for found in (pareto.points(outcome.records, metric, cost) for metric in _valued(outcome, wanted))
    ]


def _valued(outcome: Outcome, wanted: Sequence[str] = (), option: str = "--pareto") -> list[str]:
    """The metrics asked for that have a record, or else all that have a value.

    Raises:
        HarnessError: one is asked for that the run does not have, or none is left.
    """
    for metric in wanted:
        if metric not in outcome.metrics:
            known = ", ".join(outcome.metrics) or "none"
            raise HarnessError(f"--metric {metric}: this run has no such metric; it has {known}")
    having = {r["metric"] for r in outcome.records if r["group"] is None and (wanted or r["value"] is not None)}
    found = [metric for metric in wanted or outcome.metrics if metric in having]
    if not found:
        raise HarnessError(f"{option}: no values yet: this run has {_state(outcome)}")
    return found


def _state(outcome: Outcome) -> str:
    """What a run without values has, and the command that brings it on."""
    if outcome.rows.empty:
        return "no images; `harness run BENCHMARK` makes them"
    images = f"{len(outcome.rows):,} images"
    if not outcome.metrics:
        return f"{images}, but names no metrics to score them with; `harness score RUN --metric NAME` adds one"
    return f"{images}, but no scores; `harness score RUN` makes them, or says what they lack"


def draw_fronts(outcome: Outcome, cost: str, wanted: Sequence[str], path: Path) -> None:
    """Writes `fronts` as a figure. Raises HarnessError where `path` is no .png."""
    from harness.analysis.figures import quality_against_cost  # the drawing library takes its time to import

    must_be_png("--figure", path)
    quality_against_cost(outcome.records, _valued(outcome, wanted), path, cost=cost)


def must_be_png(option: str, path: Path) -> None:
    """Raises HarnessError where `path`, the value of an `option`, is no .png."""
    if path.suffix != ".png":
        raise HarnessError(f"{option} {path}: expected a file that ends in .png")


def render_fronts(outcome: Outcome, cost: str, wanted: Sequence[str], form: str) -> str:
    """`fronts` as `markdown`, `latex`, `html`, or all points in one as `csv` or `json`."""
    if form not in ("csv", "json"):
        return "\n".join(formats.FORMATS[form](table) for table in fronts(outcome, cost, wanted))
    found = [point for metric in _valued(outcome, wanted) for point in pareto.points(outcome.records, metric, cost)]
    if form == "json":
        return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    columns = [*CELL, "metric", "value", "low", "high", "n", cost, "front", "dominated_by"]
    return str(pd.DataFrame(found, columns=columns).to_csv(index=False, lineterminator="\n"))


def sweeps(outcome: Outcome, parameter: str, wanted: Sequence[str] = ()) -> list[Table]:
    """For each metric (`wanted`, or all that have a value) its values over a `parameter` of the methods.

    Raises:
        HarnessError: no such metric or parameter, no two methods that differ in it alone, or no values yet.
    """
    return [lay_out_sweep(found, outcome.metrics, outcome.judges) for found in _swept(outcome, parameter, wanted)]


def _swept(outcome: Outcome, parameter: str, wanted: Sequence[str]) -> list[list[Record]]:
    """`sweep.points` by metric, beside what was published there (`published`, in our unit)."""
    name = sweep.chosen(outcome.parameters, parameter)
    records = combined(outcome.records, _repeats(outcome.specs))
    theirs = numbers(outcome.published, "value", records)
    found = []
    for metric in _valued(outcome, wanted, "--sweep"):
        points = sweep.points(records, outcome.parameters, metric, name)
        for point in points:
            printed = theirs.found.get(((point["model"], point["method"], point["prompts"]), metric))
            point["published"] = printed.value / theirs.scale(metric) if printed else None
        found.append(points)
    return found


def draw_sweeps(outcome: Outcome, parameter: str, wanted: Sequence[str], path: Path) -> None:
    """Writes `sweeps` as a figure. Raises HarnessError as that does, and where `path` is no .png."""
    from harness.analysis.figures import quality_against_parameter

    must_be_png("--figure", path)
    quality_against_parameter([point for points in _swept(outcome, parameter, wanted) for point in points], path)


def render_sweeps(outcome: Outcome, parameter: str, wanted: Sequence[str], form: str) -> str:
    """`sweeps` as `markdown`, `latex`, `html`, or all points in one as `csv` or `json` (infinity: null)."""
    if form not in ("csv", "json"):
        return "\n".join(formats.FORMATS[form](table) for table in sweeps(outcome, parameter, wanted))
    found = [
        point | {"at": None if math.isinf(point["at"]) else point["at"]}
        for points in _swept(outcome, parameter, wanted) for point in points
    ]
    if form == "json":
        return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    columns = ["model", "prompts", "metric", "parameter", "line", "at", "method", "value", "low", "high", "n", "best",
               "published", "quantity", "repeats"]
    texts = [point | {"repeats": json.dumps(point["repeats"])} if "repeats" in point else point for point in found]
    return str(pd.DataFrame(texts, columns=columns).to_csv(index=False, lineterminator="\n"))


def render(outcome: Outcome, spec: Spec, form: str, *, ci: bool = False, groups: bool = False) -> str:
    """The tables of a spec as `markdown`, `latex`, `csv`, `html` or `json` (as `as_json`).

    CSV is one table that a spreadsheet opens: values and, with `groups`, those of the categories as further
    columns; no paired differences.
    """
    if form == "json":
        return as_json(outcome, [spec])
    if form == "csv":
        return formats.csv_text(_wide(outcome, spec, groups))
    return "\n".join(formats.FORMATS[form](table) for table in laid_out(outcome, spec, ci=ci, groups=groups))


def as_json(outcome: Outcome, specs: Sequence[Spec]) -> str:
    """The table records themselves, then the win rates of `specs`, what their repeats put together, and the published
    numbers, told by `quantity`."""
    rates = [r for spec in specs if spec.show == "win_rate" for r in _shown(outcome, spec, _paired(outcome, spec))]
    repeated = [r for r in combined(outcome.records, _repeats(specs)) if "repeats" in r]
    found = [*outcome.records, *rates, *repeated, *objects(outcome.published)]
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _wide(outcome: Outcome, spec: Spec, groups: bool) -> Table:
    """The main table with the categories' values as columns `metric:category` before n, NFE and seconds."""
    main = _main(outcome, spec, _paired(outcome, spec) if spec.show == "win_rate" else [])
    for label, other in _by_category(outcome, spec).items() if groups or spec.groups else ():
        cells = dict((tuple(key), row) for key, row in other.rows)
        names = [Column(f"{label}:{column.key}", column.direction) for column in other.columns[:-3]]
        at = [column.key for column in main.columns].index("n")
        main.columns[at:at] = names
        for key, row in main.rows:
            row[at:at] = cells.get(tuple(key), [Cell("–", {"": None}) for _ in names])[: len(names)]
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
