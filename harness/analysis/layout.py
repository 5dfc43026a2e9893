"""Table records laid out as a table: rows, columns, what is best, and every footnote. Formats are in render.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.analysis.matching import misfit
from harness.analysis.records import MetricInfo, Record

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
    def baseline(self) -> str | None: ...
    @property
    def groups(self) -> bool: ...
    @property
    def match(self) -> str | None: ...
    @property
    def baselines(self) -> Sequence[str] | None: ...


@dataclass(frozen=True)
class TableSpec:
    """Rows are told apart by `rows`; `columns` are metric labels in order, or all of them."""

    rows: Sequence[str] = ("prompts", "method")
    columns: str | Sequence[str] = "metrics"
    baseline: str | None = None
    groups: bool = False
    match: str | None = None
    baselines: Sequence[str] | None = None


@dataclass
class Cell:
    """A cell: its text, the numbers behind it (by suffix; "" is the value itself), its rank and its footnotes."""

    text: str
    raw: dict[str, float | int | str | None] = field(default_factory=dict)
    rank: int = 0  # 1 best, 2 second, 0 neither
    marks: list[int] = field(default_factory=list)  # places in Table.notes


@dataclass(frozen=True)
class Column:
    """A column; `direction` is 1 where higher is better, -1 where lower is, 0 where neither."""

    key: str
    direction: int = 0


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
    judges: Mapping[str, str] | None = None, *, ci: bool = False,
) -> Table:
    """The table of overall values: a row a cell, a column a metric, then n, NFE and seconds per image."""
    chosen = list(metrics) if isinstance(spec.columns, str) else list(spec.columns)
    columns = {label: (label, _direction(metrics[label])) for label in chosen}
    mine = [r for r in records if r["group"] is None and r["metric"] in columns]
    heads = [Column(*column) for column in columns.values()]
    table = _grid(mine, spec, heads, "metric", metrics=metrics, judges=judges or {}, ci=ci)
    for label in chosen:
        sizes = {r["n"] for r in mine if r["metric"] == label and r["value"] is not None}
        if metrics[label].kind == "distribution" and len(sizes) > 1:
            table.note(f"{label} depends on n: rows of different n must not be compared")
    return table


def lay_out_groups(
    records: Sequence[Record], spec: Spec, label: str, metrics: Mapping[str, MetricInfo],
    judges: Mapping[str, str] | None = None, *, ci: bool = False,
) -> Table:
    """One metric by category: a row a cell, a column a category."""
    mine = [r for r in records if r["metric"] == label and r["group"] is not None]
    names = list(dict.fromkeys(r["group"] for r in mine))
    columns = [Column(name, _direction(metrics[label])) for name in names]
    table = _grid(mine, spec, columns, "group", metrics=metrics, judges=judges or {}, ci=ci)
    table.title = f"{label} by category"
    return table


def lay_out_differences(
    found: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo], title: str, cost: str = "nfe"
) -> Table:
    """Paired differences to a baseline: for each metric the difference with its interval, and Holm's p.

    Then the number of pairs, and the method's `cost` ("nfe" or "flops") relative to the baseline's.
    """
    names = list(dict.fromkeys((r["metric"], r["group"]) for r in found))
    columns = []
    for metric, group in names:
        head = metric if group is None else f"{metric}: {group}"
        columns += [Column(head, _direction(metrics[metric])), Column("p")]
    labels, keys = _row_keys(found, spec)
    table = Table(labels, [*columns, Column("pairs"), Column(f"{COST_NAMES[cost]} ×")], [], "", title=title)
    digits = {name: decimals([r["value"] for r in found if (r["metric"], r["group"]) == name]) for name in names}
    for key in keys:
        mine = {(r["metric"], r["group"]): r for r in found if _key(r, labels) == key}
        cells: list[Cell] = []
        for name in names:
            record = mine.get(name)
            if record is None:
                cells += [Cell("–"), Cell("–")]
                continue
            d = digits[name]
            text = fixed(record["value"], d, sign=True) + interval(record, d, sign=True)
            raw = {"": record["value"], "low": record["low"], "high": record["high"]}
            p = record["p_holm"]
            cells += [Cell(text, raw, 1 if p < 0.05 else 0), Cell(p_value(p), {"": p})]
        one = next(iter(mine.values()))
        ratio = one[cost] / one[f"baseline_{cost}"] if one[cost] and one[f"baseline_{cost}"] else None
        cells += [Cell(str(one["n"]), {"": one["n"]}), Cell(fixed(ratio, 2), {"": ratio})]
        table.rows.append((list(key), cells))
    table.caption = (
        "Differences paired by prompt and seed, 95 % intervals (prompts resampled); p from sign flips of prompts, "
        "Holm-adjusted over the methods of a metric; bold: p < 0.05."
    )
    return table


def lay_out_matched(
    found: Sequence[Record], spec: Spec, metrics: Mapping[str, MetricInfo], judges: Mapping[str, str],
    candidates: Mapping[str, int],
) -> Table:
    """`matching.matched` as a table of differences, the baseline of every row before them."""
    cost = spec.match or "nfe"
    table = lay_out_differences(found, spec, metrics, f"Paired differences at equal {COST_NAMES[cost]}", cost)
    table.columns.insert(0, Column("against"))
    for key, cells in table.rows:
        one = next(r for r in found if _key(r, table.labels) == tuple(key))
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
    labels, keys = _row_keys(found, spec)
    heads = [Column(COST_NAMES[cost], -1), Column(label, _direction(metrics[label])), Column("n"),
             Column("dominated by"), Column("difference"), Column("p")]
    table = Table(labels, heads, [], "", title=f"{label} against {COST_NAMES[cost]}")
    digits = decimals([r["value"] for r in found])
    delta = {_key(r, labels): r for r in compared}
    finer = decimals([r["value"] for r in compared])
    for key, record in zip(keys, found, strict=True):
        by, versus = record["dominated_by"], delta.get(key)
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


# ------------------------------------------------------------------------------------------------------ details


def _grid(
    mine: Sequence[Record], spec: Spec, columns: list[Column], by: str,
    *, metrics: Mapping[str, MetricInfo], judges: Mapping[str, str], ci: bool,
) -> Table:
    labels, keys = _row_keys(mine, spec)
    table = Table(labels, [*columns, Column("n"), Column("NFE"), Column("s/image")], [], "")
    digits = {c.key: decimals([r["value"] for r in mine if r[by] == c.key]) for c in columns}
    sizes = []
    for key in keys:
        row = {r[by]: r for r in mine if _key(r, labels) == key}
        n = max((r["n"] for r in row.values()), default=0)
        sizes.append(n)
        cells = [
            _value_cell(table, row.get(c.key), digits[c.key], n if by == "metric" else None, judges=judges, ci=ci)
            for c in columns
        ]
        costs = list(row.values())
        if by == "group":
            n = sum(r["n"] for r in costs)
            sizes[-1] = n
        count = Cell(str(n), {"": n})
        _count_notes(table, count, costs)
        nfe, seconds = (_weighted(costs, name, by == "group") for name in ("nfe", "seconds"))
        cells += [count, Cell(_nfe(nfe), {"": nfe}), Cell(_seconds(seconds), {"": seconds})]
        table.rows.append((list(key), cells))
    _rank(table, mine, labels, keys, columns=columns, by=by)
    table.caption = _caption(sizes, ci, any(metrics[r["metric"]].kind == "distribution" for r in mine))
    return table


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
    if judges.get(record["method"]) == record["metric"]:
        cell.marks.append(table.note(_own_judge(record["method"], record["metric"])))
    if record.get("lowest"):
        cell.marks.append(table.note(f"{record['metric']}: mean of the {record['lowest']} lowest values"))
    if not record["trained"]:
        cell.marks.append(table.note("random weights: this number says nothing about a trained model"))
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
    table: Table, mine: Sequence[Record], labels: list[str], keys: list[tuple[str, ...]], *,
    columns: list[Column], by: str,
) -> None:
    """Marks best and second of each column among the methods of one model and prompt set; ties share a rank."""
    for place, column in enumerate(columns):
        blocks: dict[tuple[str, str], dict[int, float]] = {}
        for record in mine:
            if record[by] == column.key and record["value"] is not None and column.direction:
                block = blocks.setdefault((record["model"], record["prompts"]), {})
                block[keys.index(_key(record, labels))] = column.direction * record["value"]
        for block in blocks.values():
            order = sorted(set(block.values()), reverse=True)[:2] if len(block) > 1 else []
            for row, value in block.items():
                if value in order:
                    table.rows[row][1][place].rank = order.index(value) + 1


def _row_keys(mine: Sequence[Record], spec: Spec) -> tuple[list[str], list[tuple[str, ...]]]:
    """The label columns (those asked for, and any other that tells two cells apart) and the rows in order."""
    wanted = list(spec.rows) or ["method"]
    extra = [k for k in LABELS if k not in wanted and len({r[k] for r in mine}) > 1]
    labels = [*extra, *wanted]
    return labels, list(dict.fromkeys(_key(r, labels) for r in mine))


def _key(record: Record, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(record[label]) for label in labels)


def _direction(info: MetricInfo) -> int:
    return 1 if info.higher_is_better else -1


def _weighted(row: Sequence[Record], name: str, by_group: bool) -> float | None:
    """A cell's cost: the same in all its records, or the mean over its categories' rows."""
    known = [(r[name], r["n"] if by_group else 1) for r in row if r[name] is not None]
    weight = sum(w for _, w in known)
    return sum(v * w for v, w in known) / weight if weight else None


def _caption(sizes: Sequence[int], ci: bool, distribution: bool) -> str:
    low, high = min(sizes, default=0), max(sizes, default=0)
    text = f"n = {low} images a row" if low == high else f"n = {low} to {high} images a row"
    text += "; NFE: denoiser evaluations an image; s/image: seconds to generate one"
    if ci:
        text += "; [95 % interval], prompts resampled"
        if distribution:
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
