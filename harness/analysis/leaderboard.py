"""The leaderboard's rows: what a row holds, reading and adding to the files, and the table that is printed.

`results/leaderboard/*.jsonl`: a file a prompt set, a JSON object a line, sorted, so that git merges additions. A row is
one value: (model, method, prompts, seeds, metric), measured (with `provenance`) or cited from a paper (`citation`).
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.analysis import layout
from harness.analysis.layout import Cell, Column, Table
from harness.analysis.records import MetricInfo, Record
from harness.benchmark import LABEL, explain
from harness.errors import HarnessError
from harness.files import write_atomic, writing
from harness.json_text import json_value
from harness.registry import nearest

Text = Annotated[str, Field(min_length=1, max_length=200)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Cost = Annotated[float, Field(ge=0)]
Key = tuple[Any, ...]
Place = tuple[str, str, str]  # prompts, model, method, as shown
SOURCE = "source"  # the column that says where a row comes from
COSTS = ("nfe", "flops", "seconds")
CAPTION = "n: images; NFE: denoiser evaluations an image; s/image: seconds to generate one, on the device of the row."
NUMBERED = " (2) behind a label: another model, method or published table, other prompts of that number, other seeds."
CI_CAPTION = " [95 % interval], prompts resampled (distribution metrics: prompts left out by jackknife)."
MEASURED = ("n", "seeds", "metric_digest")  # and the prompts' n and selection


class _Strict(BaseModel):
    """No unknown keys, no numbers as text, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Prompts(_Strict):
    """Which prompts: a set, how many of it, and the digest of their ids and texts."""

    set: Text
    n: Annotated[int, Field(ge=1)] | None = None
    selection: Hex | None = None


class Provenance(_Strict):
    """Where a measured value comes from."""

    run: Hex
    model: Hex
    method: Hex
    versions: dict[str, str]
    commit: str | None
    device: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class Citation(_Strict):
    """Where a published value was read; `note`: what a reader must know of it, such as a misprint."""

    paper: Annotated[str, Field(min_length=1)]
    table: str
    source: str
    note: str | None = None


class Row(_Strict):
    """One row. `judge`: the method chooses by this very metric. Costs are means an image."""

    model: Text
    method: Text
    prompts: Prompts
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    seeding: Text = "identity"
    metric: Text
    metric_digest: Hex | None = None
    higher_is_better: bool
    value: float
    low: float | None = None
    high: float | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    nfe: Cost | None = None
    flops: Cost | None = None
    seconds: Cost | None = None
    judge: bool = False
    provenance: Provenance | None = None
    citation: Citation | None = None

    @model_validator(mode="after")
    def _whole(self) -> Row:
        if (self.provenance is None) == (self.citation is None):
            raise ValueError("provenance: expected 'provenance' or 'citation', one of the two")
        if self.provenance is not None:
            missing = [name for name in MEASURED if getattr(self, name) is None]
            missing += [f"prompts.{name}" for name in ("n", "selection") if getattr(self.prompts, name) is None]
            if missing:
                raise ValueError(f"{missing[0]}: a measured value needs it")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{'low' if self.low is None else 'high'}: an interval has two ends")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"value: {self.value} lies outside its interval [{self.low}, {self.high}]")
        return self

    @property
    def key(self) -> Key:
        """What names the row: a board has one of each."""
        cited = None if self.citation is None else (self.citation.paper, self.citation.table)
        place = (self.prompts.set, self.model, self.method, self.metric, self.prompts.selection)
        return (*place, self.seeds, self.seeding, self.metric_digest, cited)

    @property
    def line_key(self) -> Key:
        """What names the line of a table in which the row stands: its key without the metric."""
        return self.key[:3] + self.key[4:7] + self.key[8:]

    @property
    def digests(self) -> tuple[str, str] | None:
        """Which model and method these labels stood for; None of a published number."""
        return None if self.provenance is None else (self.provenance.model, self.provenance.method)

    @property
    def text(self) -> str:
        """The row for people, without its value."""
        return f"{self.method} by {self.metric} ({self.model} on {prompts_text(self)})"

    def line(self) -> str:
        """As a line of a file, without the end of it."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=False, allow_nan=False)

    def agrees(self, other: Row) -> bool:
        """Whether both say the same of one key. Seconds, dates, devices and versions may differ."""
        same = (self.n, self.digests) == (other.n, other.digests)
        return same and math.isclose(self.value, other.value, rel_tol=1e-9, abs_tol=1e-12)


def prompts_text(row: Row) -> str:
    """`shapes, 96 prompts`, and how many seeds where there are more than one."""
    size = "" if row.prompts.n is None else f", {row.prompts.n} prompts"
    return row.prompts.set + size + (f" × {len(row.seeds)} seeds" if row.seeds and len(row.seeds) > 1 else "")


# ---- files ----


def parse(line: str, place: str) -> Row:
    """A row from a line of a file; `place` is what an error calls it.

    Raises:
        HarnessError: not JSON, a column that is missing, unknown or of another type, a value that makes no sense.
    """
    try:
        json_value(line, f"{place}: this")
        return Row.model_validate_json(line)
    except ValidationError as error:
        raise HarnessError(explain(place, error, _keys_at)) from error


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    blocks: dict[str, type[_Strict]] = {"prompts": Prompts, "provenance": Provenance, "citation": Citation}
    return sorted(blocks.get(str(place[0]) if place else "", Row).model_fields)


def read(folder: Path) -> dict[Key, Row]:
    """The rows of a board in order; none where there is no such folder.

    Raises:
        HarnessError: a row that is broken or stands there twice, with its file, line and column.
    """
    found: dict[Key, Row] = {}
    places: dict[Key, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in _rows(path):
            place = f"{path}, line {number}"
            if row.key in found:
                raise HarnessError(f"{place}: {row.text} stands already in {places[row.key]}: keep one of them")
            found[row.key], places[row.key] = row, place
    return {row.key: row for row in sorted(found.values(), key=_order)}


def _rows(path: Path) -> list[tuple[int, Row]]:
    """The rows of one file and their line numbers; none where there is no such file."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")  # not splitlines: a JSON text may hold its other ends
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} cannot be read: {error}") from error
    return [(n, parse(line, f"{path}, line {n}")) for n, line in enumerate(lines, 1) if line.strip()]


def add(folder: Path, new: Sequence[Row], others: Sequence[Path] = ()) -> list[Row]:
    """Adds rows to the board in `folder` and returns those that were not there yet. A file is whole or unchanged.

    `others` are boards that are read beside it. A row that agrees with one that is there is left out. Two that add at
    once wait for each other.

    Raises:
        HarnessError: a row of the same key says something else, or one of the same model, method, prompts and seeds
            is of another model or method under these labels; nothing is written.
        StoreError: the board cannot be written.
    """
    with writing(folder, "--board"):
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / ".lock").acquire()
    with held:
        known: dict[Key, Row] = {}
        for board in (*others, folder):
            known |= read(board)
        lines: dict[Key, list[Row]] = {}
        for row in known.values():
            lines.setdefault(row.line_key, []).append(row)
        clashes = []
        for row in new:
            unlike = [other for other in lines.get(row.line_key, ()) if other.digests != row.digests]
            old = known.get(row.key, unlike[0] if unlike else row)
            if not row.agrees(old):
                clashes.append(f"  {clash(old, row)}")
        if clashes:
            raise HarnessError(
                "these rows stand in the leaderboard with other values, or of something else under their labels; "
                "nothing was added:\n" + "\n".join(clashes)
                + "\nA row is never written over: give what is new another label in the benchmark, and add that"
            )
        fresh = [row for row in new if row.key not in known]
        for name in sorted({row.prompts.set for row in fresh}):
            if not LABEL.fullmatch(name):
                raise HarnessError(f"prompt set {name!r} cannot name a file of the leaderboard")
            path = folder / f"{name}.jsonl"
            rows = [row for _, row in _rows(path)] + [row for row in fresh if row.prompts.set == name]
            text = "".join(row.line() + "\n" for row in sorted(rows, key=_order))
            write_atomic(path, text.encode(), "--board")
        return fresh


def _order(row: Row) -> list[str]:
    return [json.dumps(part, ensure_ascii=False) for part in row.key]


def clash(old: Row, new: Row) -> str:
    """In which way a new row does not fit to one that is there."""
    said = f"{old.text}: {old.value:.6g} (n = {old.n}) there, {new.value:.6g} (n = {new.n}) now"
    if old.key != new.key:
        said = f"{new.text}: its line has {old.metric}"
    if old.provenance and new.provenance:
        said += f"; it was added from a run of {old.provenance.date}"
        for kind in ("model", "method"):
            if getattr(old.provenance, kind) != getattr(new.provenance, kind):
                said += f", where {kind} {getattr(new, kind)!r} was another"
    return said


# ---- what is shown ----


def select(rows: Iterable[Row], **wanted: str | None) -> list[Row]:
    """The rows whose model, method, prompts (the set) and metric match; `*` stands for anything.

    Raises:
        HarnessError: a filter that leaves nothing.
    """
    kept = list(rows)
    for name, pattern in wanted.items():
        if pattern is None:
            continue
        have = dict.fromkeys(_label(row, name) for row in kept)
        kept = [row for row in kept if fnmatch.fnmatchcase(_label(row, name), pattern)]
        if not kept:
            raise HarnessError(f"--{name} {pattern}: no such row in the leaderboard; {nearest(pattern, list(have))}")
    return kept


def _label(row: Row, name: str) -> str:
    return row.prompts.set if name == "prompts" else str(getattr(row, name))


@dataclass(frozen=True)
class Arranged:
    """Rows as they are shown: by place (prompts, model, method) the row of each column, places in order."""

    places: dict[Place, dict[str, Row]]
    metrics: dict[str, MetricInfo]  # by column

    @property
    def rows(self) -> list[Row]:
        """All of them in order."""
        return [row for columns in self.places.values() for row in columns.values()]


@dataclass
class Board:
    """A laid-out leaderboard; `cited` are the places of the rows that are published numbers."""

    table: Table
    cited: set[int]


def arrange(rows: Sequence[Row], sort: str | None = None, top: int | None = None) -> Arranged:
    """Rows that belong to one line together, lines in order.

    Args:
        sort: a metric, best first, or nfe, seconds or flops, least first, within each (prompts, model).
        top: only so many of each (prompts, model).

    Raises:
        HarnessError: `sort` is no column of these rows, or `top` without it.
    """
    columns = _columns(rows)
    prompts = _numbered((prompts_text(row), _sample(row)) for row in rows)
    models = _numbered((row.model, row.digests[0]) for row in rows if row.digests)
    places: dict[Place, dict[str, Row]] = {}
    for row in rows:
        model = models[row.model, row.digests[0]] if row.digests else row.model  # of a paper: with the first so named
        block = prompts[prompts_text(row), _sample(row)], model
        places.setdefault(_place(row, block, places, columns[row.key]), {})[columns[row.key]] = row
    metrics = {
        columns[row.key]: MetricInfo(columns[row.key], "", higher_is_better=row.higher_is_better) for row in rows
    }
    order = sorted(places, key=lambda place: (place[0].casefold(), place[1].casefold(), place[:2]))
    if sort is not None:
        known = [*metrics, *COSTS]
        if sort not in known:
            raise HarnessError(f"--sort {sort}: no such column: {nearest(sort, known)}")
        sign = -1 if sort in metrics and metrics[sort].higher_is_better else 1
        order.sort(key=lambda place: (place[:2], *_rank(places[place], sort, sign)))
    if top is not None:
        if sort is None:
            raise HarnessError("--top needs --sort COLUMN: best by what?")
        blocks = itertools.groupby(order, key=lambda place: place[:2])
        order = [place for _, block in blocks for place in itertools.islice(block, top)]
    return Arranged({place: places[place] for place in order}, metrics)


def lay_out(arranged: Arranged, *, ci: bool = False, sources: bool = False) -> Board:
    """A row a (prompts, model, method), a column a metric, then n, NFE and seconds per image.

    Args:
        sources: a last column that says where each row comes from.
    """
    metrics = arranged.metrics
    records = [_record(place, *each) for place, rows in arranged.places.items() for each in rows.items()]
    table = layout.lay_out(records, layout.TableSpec(rows=("prompts", "model", "method")), metrics, ci=ci)
    numbered = any(place != (prompts_text(row), row.model, row.method + _dagger(row))
                   for place, rows in arranged.places.items() for row in rows.values())
    table.title, table.caption = "Leaderboard", CAPTION + NUMBERED * numbered + CI_CAPTION * ci
    cited = set()
    for number, (labels, cells) in enumerate(table.rows):
        mine = arranged.places[labels[0], labels[1], labels[2]]
        one = next(iter(mine.values()))
        if one.citation is not None:
            cited.add(number)
            cells[len(metrics)] = Cell("–")  # n
            for cell, column in zip(cells, metrics, strict=False):
                if column in mine:
                    cell.text = cell.text.removesuffix(" [–]")
                    cell.marks += [] if sources else [table.note(f"published: {_source(one)}")]
                    cited_in = mine[column].citation
                    if cited_in is not None and cited_in.note:
                        cell.marks.append(table.note(cited_in.note))
        if sources:
            cells.append(Cell(_source(one)))
    if sources:
        table.columns.append(Column(SOURCE))
    return Board(table, cited)


def _columns(rows: Sequence[Row]) -> dict[Key, str]:
    """The column of each row: its metric, with the digest where there are several of one name."""
    digests: dict[str, set[str]] = {}
    for row in rows:
        digests.setdefault(row.metric, set()).update({row.metric_digest} - {None})  # type: ignore[arg-type]
    return {
        row.key: f"{row.metric} ({row.metric_digest[:6]})"
        if row.metric_digest is not None and len(digests[row.metric]) > 1 else row.metric
        for row in rows
    }


def _numbered(named: Iterable[tuple[str, Hashable]]) -> dict[tuple[str, Hashable], str]:
    """A label for each (name, identity): its name, with a number where another identity has that already."""
    found: dict[tuple[str, Hashable], str] = {}
    for each in dict.fromkeys(named):
        labels = itertools.chain([each[0]], (f"{each[0]} ({number})" for number in itertools.count(2)))
        found[each] = next(label for label in labels if label not in found.values())
    return found


def _sample(row: Row) -> Hashable:
    """Which prompts and seeds: only values of the same are ranked together."""
    return row.prompts.selection, row.seeds, row.seeding


def _dagger(row: Row) -> str:
    return "" if row.citation is None else " †"


def _place(row: Row, block: tuple[str, str], places: Mapping[Place, Mapping[str, Row]], column: str) -> Place:
    """The labels under which a row is shown. A published method carries a dagger; where two rows would fall
    together (two methods of one name, two papers), the later gets a number."""
    for number in itertools.count(1):
        place = (*block, row.method + _dagger(row) + (f" ({number})" if number > 1 else ""))
        there = places.get(place, {})
        if column not in there and all(_together(row, other) for other in there.values()):
            return place
    raise AssertionError


def _together(row: Row, other: Row) -> bool:
    """Whether two rows are values of one method on the same images (or of one published line)."""
    return (row.line_key, row.digests) == (other.line_key, other.digests)


def _rank(columns: Mapping[str, Row], sort: str, sign: int) -> tuple[bool, float]:
    """Best first, what has no value last."""
    if sort in COSTS:
        value = getattr(next(iter(columns.values())), sort)
    else:
        value = columns[sort].value if sort in columns else None
    return value is None, 0.0 if value is None else sign * value


def _record(place: Place, column: str, row: Row) -> Record:
    """As `layout.lay_out` takes it."""
    return {
        "prompts": place[0], "model": place[1], "method": place[2], "group": None, "metric": column,
        "value": row.value, "low": row.low, "high": row.high, "n": row.n or 0, "trained": True, "failed": 0,
        "reason": None, "judge": row.judge, **{name: getattr(row, name) for name in COSTS},
    }


def _source(row: Row) -> str:
    """Where a row comes from, in a few words."""
    if row.citation is not None:
        return ", ".join(part for part in (row.citation.paper, row.citation.table) if part)
    known = row.provenance
    assert known is not None
    commit = f", commit {known.commit[:8]}" if known.commit else ""
    return f"run {known.run[:8]}, {known.device}, {known.date}{commit}"
