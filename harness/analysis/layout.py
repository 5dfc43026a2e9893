"""Table records laid out as a table: rows, columns, what is best, and every footnote. Formats are in render.py."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.analysis.beside import PRINTED_COSTS, Numbers, Place
from harness.analysis.matching import misfit
from harness.analysis.records import CELL, MetricInfo, Record
from harness.analysis.repeats import Repeats, said
from harness.analysis.sweep import value_text

LABELS = ("model", "prompts", "method")
COST_NAMES = {"nfe": "NFE", "flops": "FLOPs", "seconds": "s/image"}
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


class Spec(Protocol):
    """A table of the benchmark file (`harness.benchmark.TableSpec` is one)."""

    @property
    def rows(self) -> Sequence[str]: ...
    @property
    def columns(self) -> str | Sequence[str]: ...
    @property
    def baseline(self) -> str | Mapping[str, str] | None: ...
    @property
    def groups(self) -> bool: ...
    @property
    def average(self) -> bool: ...
    @property
    def show(self) -> str: ...
    @property
    def match(self) -> str | None: ...
    @property
    def baselines(self) -> Sequence[str] | None: ...
    @property
    def repeats(self) -> Repeats: ...


@dataclass(frozen=True)
class TableSpec:
    """Rows are told apart by `rows`; `columns` are metric labels in order, or all of them (docs/tables.md)."""

    rows: Sequence[str] = ("prompts", "method")
    columns: str | Sequence[str] = "metrics"
    baseline: str | Mapping[str, str] | None = None
    groups: bool = False
    average: bool = False
    show: str = "value"
    match: str | None = None
    baselines: Sequence[str] | None = None
    repeats: Repeats = field(default_factory=dict)


@dataclass
class Cell:
    """A cell: its text, the numbers behind it (by suffix; "" is the value itself), its rank and its footnotes."""

    text: str
    raw: dict[str, float | int | str | None] = field(default_factory=dict)
    rank: int = 0  # 1 best, 2 second, 0 neither
    marks: list[int] = field(default_factory=list)  # places in Table.notes


@dataclass(frozen=True)
class Column:
    """A column; `direction` is 1 where higher is better, -1 where lower is, 0 where neither.

    Columns that follow each other with one key are the `part`s of one: published, ours, difference. `scale` is what
    our values are multiplied by to be in the published unit; `digits` the decimals; `marks` the head's footnotes.
    """

    key: str
    direction: int = 0
    part: str = ""
    scale: float = 1.0
    digits: int = 0
    marks: tuple[int, ...] = ()


@dataclass
class Table:
    """A laid-out table. `rows` are (labels, cells)."""

    labels: list[str]
    columns: list[Column]
    rows: list[tuple[list[str], list[Cell]]]
    caption: str
    notes: list[str] = field(default_factory=list)
    title: str = ""

    def note(self, text: str) -> int:
        """The place of a footnote, which is added where it is new."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text)


def lay_out(
    records: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo],
    judges: Mapping[str, str] | None = None, *, ci: bool = False, numbers: Numbers | None = None,
) -> Table:
    """The table of overall values: a row a cell, a column a metric, then n, NFE and seconds per image.

    With published `numbers` a metric that has some becomes three columns, published, ours (in the published unit)
    and ours less published; a published row that is none of our cells is a row too, and a published metric that is
    none of `metrics` a column.
    """
    theirs = numbers or Numbers()
    chosen = shown(spec, metrics, theirs)
    own = [label for label in chosen if label in metrics]
    unlike = theirs.averaged() if set(theirs.averaged()) != set(own) else []
    theirs = theirs.of([*chosen, *PRINTED_COSTS.values(), *["average"] * (spec.average and not unlike)])
    mine = [theirs.scaled(r) for r in records if r["group"] is None and r["metric"] in own]
    won = spec.show == "win_rate"
    directions = {label: 1 if won else _direction(metrics[label]) for label in own}
    columns = [Column(label, directions.get(label, 0), scale=theirs.scale(label)) for label in chosen]
    if spec.average and own:
        mine += _averages(mine, own)
        columns.append(Column("average", directions[own[0]] if len(set(directions.values())) == 1 else 0))
    columns = _with_digits(columns, mine, "metric", theirs)
    places = theirs.places(_place(r) for r in mine)
    table = _grid(mine, places, spec, columns, "metric", judges=judges or {}, ci=ci)
    if spec.average and own:
        names = ", ".join(f"{c.key} ×{c.scale:g}" if c.scale != 1 else c.key for c in columns if c.key in own)
        note = table.note(f"average: plain mean of {names}{'' if won else '; it mixes their scales'}")
        table.columns[len(columns) - 1] = replace(columns[-1], marks=(note,))
        if unlike:
            table.note(f"average: the published one is not shown, a mean of other columns ({', '.join(unlike)})")
    for label in own:
        sizes = {r["n"] for r in mine if r["metric"] == label and r["value"] is not None}
        if metrics[label].kind == "distribution" and len(sizes) > 1:
            table.note(f"{label} depends on n: rows of different n must not be compared")
    for text in said(mine):
        table.note(text)
    made = [r for r in mine if "repeats" in r]
    if made and "prompts" not in table.labels:  # then all rows have this label, and none tells it
        table.title = f"{made[0]['prompts']}: {made[0]['quantity']} of {len(made[0]['repeats'])}"
    _beside(table, places, theirs, [*own, "average", *PRINTED_COSTS.values()])
    return table


def shown(spec: Spec, metrics: Mapping[str, MetricInfo], numbers: Numbers) -> list[str]:
    """The metric columns of a table: the metrics here, and those that are published alone."""
    if not isinstance(spec.columns, str):
        return [label for label in spec.columns if label in metrics or label in numbers.metrics]
    placed = {*metrics, *PRINTED_COSTS.values(), *["average"] * spec.average}
    return [*metrics, *(metric for metric in numbers.metrics if metric not in placed)]


def lay_out_groups(
    records: Sequence[Record], spec: Spec, label: str, metrics: Mapping[str, MetricInfo],
    judges: Mapping[str, str] | None = None, *, ci: bool = False,
) -> Table:
    """One metric by category: a row a cell, a column a category."""
    mine = [r for r in records if r["metric"] == label and r["group"] is not None]
    names = list(dict.fromkeys(r["group"] for r in mine))
    columns = [Column(name, _direction(metrics[label])) for name in names]
    columns = _with_digits(columns, mine, "group", Numbers())
    places = list(dict.fromkeys(map(_place, mine)))
    table = _grid(mine, places, spec, columns, "group", judges=judges or {}, ci=ci)
    table.title = f"{label} by category"
    return table


def lay_out_differences(
    found: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo], title: str,
    *, numbers: Numbers | None = None, cost: str = "nfe",
) -> Table:
    """Paired differences to a baseline: for each metric the difference with its interval, and Holm's p.

    Then the number of pairs, and the method's `cost` ("nfe" or "flops") relative to the baseline's. Published
    differences (`numbers`) stand beside ours, which are then in the published unit.
    """
    theirs = numbers or Numbers()
    found = [theirs.scaled(r) for r in found]
    names = list(dict.fromkeys((r["metric"], r["group"]) for r in found))
    columns, digits = [], {}
    for metric, group in names:
        head = metric if group is None else f"{metric}: {group}"
        mine = [r["value"] for r in found if (r["metric"], r["group"]) == (metric, group)]
        digits[metric, group] = max(decimals(mine), theirs.decimals(metric))
        columns += [Column(head, _direction(metrics[metric]), scale=theirs.scale(metric)), Column("p")]
    places = list(dict.fromkeys(map(_place, found)))
    labels, keys = _row_keys(places, spec)
    table = Table(labels, [*columns, Column("pairs"), Column(f"{COST_NAMES[cost]} ×")], [], "", title=title)
    for key, place in zip(keys, places, strict=True):
        row = {(r["metric"], r["group"]): r for r in found if _place(r) == place}
        cells: list[Cell] = []
        for name in names:
            record = row.get(name)
            if record is None:
                cells += [Cell("–"), Cell("–")]
                continue
            d = digits[name]
            text = fixed(record["value"], d, sign=True) + interval(record, d, sign=True)
            raw = {"": record["value"], "low": record["low"], "high": record["high"]}
            p = record["p_holm"]
            cells += [Cell(text, raw, 1 if p < 0.05 else 0), Cell(p_value(p), {"": p})]
        one = next(iter(row.values()))
        ratio = one[cost] / one[f"baseline_{cost}"] if one[cost] and one[f"baseline_{cost}"] else None
        cells += [Cell(str(one["n"]), {"": one["n"]}), Cell(fixed(ratio, 2), {"": ratio})]
        table.rows.append((list(key), cells))
    table.caption = (
        "Differences paired by prompt and seed, 95 % intervals (prompts resampled); p from sign flips of prompts, "
        "Holm-adjusted over the methods of a metric; bold: p < 0.05."
    )
    _beside(table, places, theirs, list(metrics), compare=False)
    return table


def lay_out_matched(
    found: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo], judges: Mapping[str, str],
    candidates: Mapping[str, int],
) -> Table:
    """`matching.matched` as a table of differences, the baseline of every row before them."""
    cost = spec.match or "nfe"
    table = lay_out_differences(found, spec, metrics, f"Paired differences at equal {COST_NAMES[cost]}", cost=cost)
    table.columns.insert(0, Column("against"))
    first = {place: next(r for r in found if _place(r) == place) for place in dict.fromkeys(map(_place, found))}
    for one, (_, cells) in zip(first.values(), table.rows, strict=True):
        for cell, column in zip(cells, table.columns[1:], strict=True):
            for who in (one["method"], one["baseline"]):
                if judges.get(who) == column.key:
                    cell.marks.append(table.note(_own_judge(who, column.key)))
        why = misfit(one, cost, candidates)
        cells.insert(0, Cell(one["baseline"], {"": one["baseline"]}, marks=[] if why is None else [table.note(why)]))
    table.caption = f"Each against the baseline of the nearest {COST_NAMES[cost]}. {table.caption}"
    return table


def lay_out_front(
    found: Sequence[Record], compared: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo],
    judges: Mapping[str, str],
) -> Table:
    """`pareto.points` of one metric as a table, the front bold; `compared` are its `against_dominators`."""
    first = found[0]
    cost, label = first["cost"], first["metric"]
    labels, keys = _row_keys([_place(r) for r in found], spec)
    heads = [Column(COST_NAMES[cost], -1), Column(label, _direction(metrics[label])), Column("n"),
             Column("dominated by"), Column("difference"), Column("p")]
    table = Table(labels, heads, [], "", title=f"{label} against {COST_NAMES[cost]}")
    digits = decimals([r["value"] for r in found])
    delta = {_place(r): r for r in compared}
    finer = decimals([r["value"] for r in compared])
    for key, record in zip(keys, found, strict=True):
        by, versus = record["dominated_by"], delta.get(_place(record))
        value = _value_cell(table, record, digits, None, judges=judges, ci=True)
        value.rank = 1 if record["front"] else 0
        price = Cell(COST_TEXTS[cost](record[cost]), {"": record[cost]})
        count = Cell(str(record["n"]), {"": record["n"]})
        cells = [price, value, count, Cell(by or ("" if record["front"] else "–"), {"": by})]
        if versus is None:
            cells += [Cell("–" if by else ""), Cell("–" if by else "")]
        else:
            text = fixed(versus["value"], finer, sign=True) + interval(versus, finer, sign=True)
            cells += [Cell(text, {"": versus["value"]}), Cell(p_value(versus["p_holm"]), {"": versus["p_holm"]})]
        table.rows.append((list(key), cells))
    table.caption = (
        "Bold: on the Pareto front; no method here is as good at a lower cost, or better at the same. The others are "
        "dominated by the method named, going by the values alone; the paired difference to it, with its 95 % interval "
        "and Holm's p, says how sure that is."
    )
    return table


def lay_out_sweep(
    found: Sequence[Record], metrics: Mapping[str, MetricInfo], judges: Mapping[str, str]
) -> Table:
    """`sweep.points` of one metric as a table: a row a value of the parameter, a column a line, its best bold."""
    label, word = found[0]["metric"], found[0]["parameter"].rpartition(".")[2]
    names = list(dict.fromkeys(r["line"] for r in found))
    digits = decimals([r["value"] for r in found])
    columns = [Column(name or label, _direction(metrics[label]), digits=digits) for name in names]
    cells = {(r["model"], r["prompts"], r["at"], r["line"]): r for r in found}
    blocks = list(dict.fromkeys((r["model"], r["prompts"]) for r in found))
    shown = [i for i in (0, 1) if len({block[i] for block in blocks}) > 1]
    table = Table([*(LABELS[i] for i in shown), word], columns, [], "", title=f"{label} against {word}")
    for block in blocks:
        for at in sorted({r["at"] for r in found if (r["model"], r["prompts"]) == block}):
            row = []
            for name in names:
                record = cells.get((*block, at, name))
                row.append(_value_cell(table, record, digits, None, judges=judges, ci=True))
                row[-1].rank = 1 if record is not None and record["best"] else 0
            table.rows.append(([*(block[i] for i in shown), value_text(at)], row))
    sizes = {r["n"] for r in found if r["value"] is not None}
    count = " to ".join(str(n) for n in dict.fromkeys((min(sizes), max(sizes)))) if sizes else "0"
    ends = "prompts left out by jackknife" if metrics[label].kind == "distribution" else "prompts resampled"
    table.caption = f"n = {count} images a value; [95 % interval], {ends}; bold: the best of its column."
    for text in said(found):
        table.note(text)
    return table


# ------------------------------------------------------------------------------------------------------ details


def _with_digits(columns: Sequence[Column], mine: Sequence[Record], by: str, numbers: Numbers) -> list[Column]:
    """The columns with as many decimals as their values need, and as many as the published ones have."""
    values: dict[str, list[float | None]] = {}
    for record in mine:
        values.setdefault(record[by], []).append(record["value"])
    return [replace(c, digits=max(decimals(values.get(c.key, [])), numbers.decimals(c.key))) for c in columns]


def _averages(mine: Sequence[Record], own: Sequence[str]) -> list[Record]:
    """A record a cell: the plain mean of its metrics' values, None where one has none."""
    rows: dict[Place, dict[str, Record]] = {}
    for record in mine:
        rows.setdefault(_place(record), {})[record["metric"]] = record
    found = []
    for row in rows.values():
        lacking = [label for label in own if label not in row or row[label]["value"] is None]
        value = None if lacking else sum(row[label]["value"] for label in own) / len(own)
        n = 0 if lacking else min(row[label]["n"] for label in own)
        found.append(next(iter(row.values())) | {
            "metric": "average", "value": value, "low": None, "high": None, "n": n, "failed": 0, "lowest": None,
            "reason": f"no value of {', '.join(lacking)}", "trained": all(row[label]["trained"] for label in row),
        })
    return found


def _grid(
    mine: Sequence[Record], places: Sequence[Place], spec: Spec, columns: list[Column], by: str,
    *, judges: Mapping[str, str], ci: bool,
) -> Table:
    """A row for each of `places`; one that has no records is a row of dashes."""
    labels, keys = _row_keys(places, spec)
    table = Table(labels, [*columns, Column("n"), Column("NFE"), Column("s/image")], [], "")
    sizes = []
    for key, place in zip(keys, places, strict=True):
        row = {r[by]: r for r in mine if _place(r) == place}
        n = max((r["n"] for r in row.values()), default=0)
        cells = [
            _value_cell(table, row.get(c.key), c.digits, n if by == "metric" else None, judges=judges, ci=ci)
            for c in columns
        ]
        costs = list(row.values())
        if by == "group":
            n = sum(r["n"] for r in costs)
        count = Cell(str(n), {"": n}) if row else Cell("–", {"": None})
        sizes += [n] if row else []
        _count_notes(table, count, costs)
        nfe, seconds = (_weighted(costs, name, by == "group") for name in ("nfe", "seconds"))
        cells += [count, Cell(_nfe(nfe), {"": nfe}), Cell(_seconds(seconds), {"": seconds})]
        table.rows.append((list(key), cells))
    _rank(table, mine, places, columns, by)
    table.caption = _caption(sizes, ci, any(r.get("kind") == "distribution" for r in mine), spec.show == "win_rate")
    return table


def _beside(
    table: Table, places: Sequence[Place], numbers: Numbers, own: Collection[str], compare: bool = True
) -> None:
    """Sets each published number before ours and, to `compare`, ours less published behind it.

    `own` are the columns that can have a value of ours; of any other the published numbers stand alone.
    """
    columns: list[Column] = []
    rows: list[list[Cell]] = [[] for _ in places]
    for i, column in enumerate(table.columns):
        found = [numbers.found.get((place, column.key)) for place in places]
        parts = ["published", "ours", "difference"] if compare else ["published", "ours"]
        if not any(found):
            parts = [""]
        elif column.key not in own:
            parts = ["published"]
        columns += [replace(column, part=part, marks=() if k else column.marks) for k, part in enumerate(parts)]
        for row, (_, cells), number in zip(rows, table.rows, found, strict=True):
            ours = cells[i]
            printed = number.value if number else None
            cell = Cell(fixed(printed, numbers.decimals(column.key)))
            cell.marks = [table.note(f"published: {note}") for note in number.notes] if number else []
            if parts == ["published"]:
                cell.raw["published"] = printed
            elif parts != [""]:
                ours.raw["published"] = printed
            value = ours.raw.get("")
            delta = value - printed if printed is not None and isinstance(value, int | float) else None
            if "difference" in parts:
                ours.raw["difference"] = delta
            behind = Cell(fixed(delta, max(column.digits, numbers.decimals(column.key)), sign=True))
            made = {"": ours, "published": cell, "ours": ours, "difference": behind}
            row += [made[part] for part in parts]
    table.columns = columns
    table.rows = [(labels, row) for (labels, _), row in zip(table.rows, rows, strict=True)]
    if any(column.part for column in columns):
        table.caption += f" Published: {numbers.cited()}."
        table.caption += " Difference: ours less published, which is no paired test." if compare else ""
    for text, count in numbers.left_out.items():
        table.note(f"{text} ({count})")


def _value_cell(
    table: Table, record: Record | None, digits: int, n: int | None, *, judges: Mapping[str, str], ci: bool
) -> Cell:
    if record is None:
        return Cell("–", {"": None, "low": None, "high": None, "n": 0})
    raw = {"": record["value"], "low": record["low"], "high": record["high"], "n": record["n"]}
    if record["value"] is None:
        return Cell("–", raw, marks=[table.note(f"{record['metric']}: {record['reason'] or 'no value'}")])
    cell = Cell(fixed(record["value"], digits) + (interval(record, digits) if ci else ""), raw)
    if n is not None and record["n"] != n:
        cell.text += f" (n={record['n']})"
    if record.get("judge") or judges.get(record["method"]) == record["metric"]:
        cell.marks.append(table.note(_own_judge(record["method"], record["metric"])))
    if record.get("lowest"):
        cell.marks.append(table.note(f"{record['metric']}: mean of the {record['lowest']} lowest values"))
    if not record["trained"]:
        cell.marks.append(table.note("random weights: this number says nothing about a trained model"))
    cell.marks.sort()
    return cell


def _own_judge(method: str, metric: str) -> str:
    return f"{method} chooses by {metric} itself: no independent evidence there"


def _count_notes(table: Table, cell: Cell, row: Sequence[Record]) -> None:
    """Says how many rows have no value, and why, once for each reason."""
    lacking: dict[str, int] = {}
    for record in row:
        if record["failed"] and record["value"] is not None:
            reason = record["reason"] or "not scored"
            lacking[reason] = max(lacking.get(reason, 0), record["failed"])
    for reason, failed in lacking.items():
        cell.marks.append(table.note(f"{failed} further image{'s' * (failed > 1)} without a value: {reason}"))


def _rank(
    table: Table, mine: Sequence[Record], places: Sequence[Place], columns: Sequence[Column], by: str
) -> None:
    """Marks best and second of each column among the methods of one model and prompt set (win rates: against one
    baseline); ties share a rank."""
    for i, column in enumerate(columns):
        blocks: dict[tuple[str, str, str | None], dict[int, float]] = {}
        for record in mine:
            if record[by] == column.key and record["value"] is not None and column.direction:
                block = blocks.setdefault((record["model"], record["prompts"], record.get("baseline")), {})
                block[places.index(_place(record))] = column.direction * record["value"]
        for block in blocks.values():
            order = sorted(set(block.values()), reverse=True)[:2] if len(block) > 1 else []
            for row, value in block.items():
                if value in order:
                    table.rows[row][1][i].rank = order.index(value) + 1


def _row_keys(places: Sequence[Place], spec: Spec) -> tuple[list[str], list[tuple[str, ...]]]:
    """The label columns (those asked for, and any other that tells two cells apart) and each cell's labels."""
    rows = [dict(zip(CELL, place, strict=True)) for place in places]
    wanted = list(spec.rows) or ["method"]
    extra = [k for k in LABELS if k not in wanted and len({row[k] for row in rows}) > 1]
    labels = [*extra, *wanted]
    return labels, [tuple(row[label] for label in labels) for row in rows]


def _place(record: Record) -> Place:
    return (str(record["model"]), str(record["method"]), str(record["prompts"]))


def _direction(info: MetricInfo) -> int:
    return 1 if info.higher_is_better else -1


def _weighted(row: Sequence[Record], name: str, by_group: bool) -> float | None:
    """A cell's cost: the same in all its records, or the mean over its categories' rows."""
    known = [(r[name], r["n"] if by_group else 1) for r in row if r[name] is not None]
    weight = sum(w for _, w in known)
    return sum(v * w for v, w in known) / weight if weight else None


def _caption(sizes: Sequence[int], ci: bool, distribution: bool, won: bool) -> str:
    low, high = min(sizes, default=0), max(sizes, default=0)
    unit = "prompts" if won else "images"
    text = f"n = {low} {unit} a row" if low == high else f"n = {low} to {high} {unit} a row"
    if won:
        text += "; values: the share of prompts on which a method beats its baseline, ties half"
    text += "; NFE: denoiser evaluations an image; s/image: seconds to generate one"
    if ci:
        text += "; [95 % interval], Wilson's over prompts" if won else "; [95 % interval], prompts resampled"
        if distribution and not won:
            text += " (distribution metrics: prompts left out by jackknife, which shows no bias of small n)"
    return text + "."


def decimals(values: Sequence[float | None]) -> int:
    """How many decimals a column shows, from its largest value."""
    top = max((abs(v) for v in values if v is not None), default=0.0)
    return 1 if top >= 100 else 2 if top >= 10 else 3 if top >= 0.1 else 4


def fixed(value: float | None, digits: int, sign: bool = False) -> str:
    """A number with fixed decimals, never "-0.000"; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "").replace("+", "") if float(text) == 0 else text


def interval(record: Record, digits: int, sign: bool = False) -> str:
    """" [low, high]", or " [–]" where there is none."""
    if record["low"] is None or record["high"] is None:
        return " [–]"
    return f" [{fixed(record['low'], digits, sign)}, {fixed(record['high'], digits, sign)}]"


def p_value(p: float | None) -> str:
    """A p-value with two digits, or "<0.001"."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _nfe(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def operations(value: float | None) -> str:
    """Floating-point operations with three digits: "1.25 G", "83.2 T"."""
    if value is None:
        return "–"
    power = max(0, min(int(math.log10(value)) // 3, len(PREFIXES) - 1)) if value > 0 else 0
    scaled = value / 1000**power
    return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {PREFIXES[power]}".strip()


COST_TEXTS = {"nfe": _nfe, "flops": operations, "seconds": _seconds}
