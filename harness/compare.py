"""Methods of one run or of several compared, paired by prompt and seed, or set beside published numbers.

What must be equal for a comparison to mean something is checked here, all of it before anything is computed.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import registry, run
from harness.analysis import comparison, published
from harness.analysis.comparison import Comparison
from harness.analysis.records import CELL, SAMPLE, MetricInfo, Record
from harness.distribution import paired_distances
from harness.errors import HarnessError
from harness.identity import digest, unequal
from harness.metrics.base import DistributionMetric
from harness.metrics.load import higher_is_better
from harness.plan import Cell
from harness.resolve import Resolved
from harness.scoring import references
from harness.store import Store
from harness.units import PICTURE

PUBLISHED = "published:"
PAIR = ["prompt_id", "seed"]
SHOWN = 4  # ids, parameters, ... that a reason lists before it says "and n more"


@dataclass(frozen=True)
class _Run:
    """A run folder, opened: its table, and the text, picture and size of every image."""

    store: Store
    resolved: Resolved
    outcome: run.Outcome
    images: pd.DataFrame  # outcome.rows with prompt, width, height, picture (a SHA-256: what it is made from)

    def cell(self, place: tuple[str, str, str]) -> Cell:
        """The plan of (model, method, prompts)."""
        return next(cell for cell in self.resolved.cells() if (cell.model, cell.method, cell.prompts) == place)

    def rows(self, place: tuple[str, str, str]) -> pd.DataFrame:
        """The images of (model, method, prompts)."""
        chosen = self.images
        for name, label in zip(CELL, place, strict=True):
            chosen = chosen[chosen[name] == label]
        return chosen

    def references(self, place: tuple[str, str, str], label: str) -> pd.Series:
        """By (prompt, seed) of (model, method, prompts) the hash of the pictures that a metric has compared with."""
        known = references(self.store, label, self.outcome.metrics[label].digest, dict(zip(CELL, place, strict=True)))
        return self.rows(place).set_index(PAIR)["sample_id"].map(known)


@dataclass(frozen=True)
class _Side:
    """One thing that is compared: a run or published rows; `method` is the one named, None for all."""

    name: str  # without the method
    source: _Run | pd.DataFrame
    labels: dict[str, list[str]]  # by model, method, prompts: what it has, `method` alone where one is named
    method: str | None = None

    @property
    def text(self) -> str:
        """As the user gave it."""
        return self.name if self.method is None else f"{self.name}/{self.method}"


@dataclass(frozen=True)
class _Pair:
    """Two cells, (model, method, prompts) each, that are to be compared."""

    first: tuple[str, str, str]
    other: tuple[str, str, str]


def compare(names: Sequence[str], *, results: Path, anyway: bool = False) -> Comparison:
    """Each of `names` but the first, minus the first.

    A name is a run, a method of a run (`RUN/METHOD`), or published rows (`published:NAME`, `published:NAME/METHOD`).
    Of two runs methods of the same label are compared; a method named first is compared with all of the others'.

    Raises:
        HarnessError: fewer than two names, an unknown one, nothing in common, or, without `anyway`, sides that are
            not comparable: every reason in one message.
    """
    if len(names) < 2:
        raise HarnessError("compare needs two or more: runs, RUN/METHOD, or published:NAME")
    opened: dict[str, _Side] = {}
    first, *others = (_side(name, results, opened) for name in names)
    several = len({side.name for side in (first, *others) if isinstance(side.source, _Run)}) > 1
    reasons: list[str] = []
    notes: list[str] = []
    tasks: list[tuple[_Side, _Pair]] = []
    for other in others:
        pairs = _matched(first, other, notes)
        tasks += [(other, pair) for pair in pairs]
        if isinstance(first.source, _Run) and isinstance(other.source, _Run):
            found, told = _incomparable(first, other, pairs)
            reasons += found
            notes += told
    reasons = list(dict.fromkeys(reasons))
    if reasons and not anyway:
        raise HarnessError(
            "these cannot be compared:\n" + "\n".join(f"  {reason}" for reason in reasons)
            + "\nMake them alike, or give --anyway: then only the (prompt, seed) pairs in common are used"
        )
    if reasons:
        notes = ["not comparable in full, common pairs only: " + "; ".join(reasons), *notes]
    records: list[Record] = []
    for other, pair in tasks:
        head = _head(first, other, pair, several)
        if isinstance(first.source, _Run) and isinstance(other.source, _Run):
            records += _paired(first.source, other.source, pair, head, notes)
        else:
            records += _beside(first, other, pair, head, notes)
    if not records:
        said = "".join(f"\n  {note}" for note in dict.fromkeys(notes))
        raise HarnessError(f"{' and '.join(side.text for side in (first, *others))} have no value of one metric on one "
                           f"(prompt, seed) in common{said}")
    return Comparison(comparison.adjust(records), list(dict.fromkeys(notes)))


# ---- the sides ----


def _side(text: str, results: Path, opened: dict[str, _Side]) -> _Side:
    """What a name means. `opened` keeps the runs that have been read."""
    if text.startswith(PUBLISHED):
        name, _, method = text.removeprefix(PUBLISHED).partition("/")
        rows = published.rows(name)
        labels = {kind: _unique(rows[kind]) for kind in CELL}
        return _one(_Side(PUBLISHED + name, rows, labels), method or None)
    name, method = text, ""
    if not _is_run(text, results) and _is_run(text.rpartition("/")[0], results):
        name, _, method = text.rpartition("/")
    if name not in opened:
        opened[name] = _open(name, results)
    return _one(opened[name], method or None)


def _is_run(text: str, results: Path) -> bool:
    return bool(text) and any((folder / "benchmark.yaml").is_file() for folder in (Path(text), results / text))


def _one(side: _Side, method: str | None) -> _Side:
    if method is None:
        return side
    if method not in side.labels["method"]:
        raise HarnessError(f"{side.name} has no method {method!r}: {registry.nearest(method, side.labels['method'])}")
    return replace(side, method=method, labels=side.labels | {"method": [method]})


def _open(name: str, results: Path) -> _Side:
    store, resolved = run.opened(name, results)
    kept = store.read_benchmark() or {}
    now = resolved.definitions()
    for kind in ("models", "methods"):
        for label, definition in kept.get("definitions", {}).get(kind, {}).items():
            if label in now[kind] and digest(definition) != digest(now[kind][label]):
                raise HarnessError(
                    f"{name}: {kind}.{label} is not any more what the run was made with: "
                    + _listed(_unlike(definition, now[kind][label], "then", "now"))
                    + "; its rows cannot be told from others. Put back what has changed, or run it anew"
                )
    outcome = run.tabulate(store, resolved, resolved.cells(), [])
    extra = store.read("images", columns=["sample_id", "frame", "prompt", "width", "height", "record"])
    extra = extra[extra["frame"] == 0]
    extra = extra.assign(picture=extra["record"].map(_picture))
    images = outcome.rows.merge(extra[[*SAMPLE, "prompt", "width", "height", "picture"]], on=SAMPLE, how="left")
    labels = {kind: _unique(images[kind]) for kind in CELL}
    return _Side(name, _Run(store, resolved, outcome, images), labels)


def _picture(record: Any) -> Any:
    """The SHA-256 of the picture that a sample was made from; None of one that was made from none, or failed."""
    return json.loads(record).get(PICTURE) if isinstance(record, str) and PICTURE in record else None


def _unique(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(map(str, values)))


# ---- which cells meet ----


def _matched(first: _Side, other: _Side, notes: list[str]) -> list[_Pair]:
    """The cells of two sides that stand for the same thing, by their labels."""
    if (first.name, first.method) == (other.name, other.method):
        raise HarnessError(f"{first.text} would be compared with itself; name methods: RUN/METHOD RUN/METHOD")
    methods = [(a, b) for a in first.labels["method"] for b in other.labels["method"]]
    if first.method is None and not (len(methods) == 1 and first.name != other.name):
        methods = [(a, b) for a, b in methods if a == b]
    if first.name == other.name:
        methods = [(a, b) for a, b in methods if a != b]
    if not methods:
        raise HarnessError(
            f"{first.text} and {other.text} have no method of the same label "
            f"({', '.join(first.labels['method'])}; {', '.join(other.labels['method'])}): "
            f"name one of each, RUN/METHOD RUN/METHOD"
        )
    models, prompts = (_meeting(kind, first, other, notes) for kind in ("model", "prompts"))
    pairs = [
        _Pair((a, one, p), (b, two, q)) for a, b in models for p, q in prompts for one, two in methods
    ]
    return [pair for pair in pairs if _has(first, pair.first) and _has(other, pair.other)]


def _meeting(kind: str, first: _Side, other: _Side, notes: list[str]) -> list[tuple[str, str]]:
    """Models (or prompt sets) of the same label; one with one where they have none in common."""
    ours, theirs = first.labels[kind], other.labels[kind]
    common = [label for label in ours if label in theirs]
    if not common and len(ours) == len(theirs) == 1:
        notes.append(f"{kind}: {ours[0]} in {first.name}, {theirs[0]} in {other.name}")
        return [(ours[0], theirs[0])]
    if not common:
        raise HarnessError(
            f"{first.text} and {other.text} have no {kind} of the same label "
            f"({', '.join(ours)}; {', '.join(theirs)})"
        )
    for side, labels in ((first, ours), (other, theirs)):
        alone = [label for label in labels if label not in common]
        if alone:
            notes.append(f"{kind} only in {side.name}: {_listed(alone)}")
    return [(label, label) for label in common]


def _has(side: _Side, place: tuple[str, str, str]) -> bool:
    rows = side.source.images if isinstance(side.source, _Run) else side.source
    keep = pd.Series(True, rows.index)
    for name, label in zip(CELL, place, strict=True):
        keep &= rows[name].astype(str) == label
    return bool(keep.any())


def _head(first: _Side, other: _Side, pair: _Pair, several: bool) -> Record:
    def said(side: _Side, method: str) -> str:
        return f"{side.name}/{method}" if several or not isinstance(side.source, _Run) else method

    return {
        "model": pair.other[0], "prompts": pair.other[2], "method": said(other, pair.other[1]),
        "against": said(first, pair.first[1]),
    }


# ---- whether they may be compared ----


def _incomparable(first: _Side, other: _Side, pairs: Sequence[_Pair]) -> tuple[list[str], list[str]]:
    """What forbids the comparison, and what is merely to be said."""
    a, b = first.source, other.source
    assert isinstance(a, _Run)
    assert isinstance(b, _Run)
    reasons: list[str] = []
    notes: list[str] = []
    for pair in pairs:
        reasons += _unlike_rows(first.name, other.name, pair, a, b)
    if a is b:
        return reasons, notes
    if a.resolved.benchmark.seeding != b.resolved.benchmark.seeding:
        reasons.append(f"seeding: {_sides(first, other, a.resolved.benchmark.seeding, b.resolved.benchmark.seeding)}")
    for pair in pairs:
        ours, theirs = pair.first[0], pair.other[0]
        one, two = a.resolved.models[ours].identity, b.resolved.models[theirs].identity
        if ours == theirs and one != two:
            reasons.append(f"model {ours} is another: {_listed(_unlike(one, two, first.name, other.name))}")
        if pair.first[1] == pair.other[1]:
            one, two = a.resolved.methods[pair.first[1]].identity, b.resolved.methods[pair.other[1]].identity
            if one != two:
                notes.append(f"method {pair.first[1]}: {_listed(_unlike(one, two, first.name, other.name))}")
    for label in (label for label in a.outcome.metrics if label in b.outcome.metrics):
        if a.outcome.metrics[label].digest != b.outcome.metrics[label].digest:
            one, two = a.resolved.metrics[label].identity, b.resolved.metrics[label].identity
            reasons.append(f"metric {label} is another: {_listed(_unlike(one, two, first.name, other.name))}")
    return reasons, notes


def _unlike_rows(ours: str, theirs: str, pair: _Pair, a: _Run, b: _Run) -> Iterator[str]:
    """What the images of two cells do not share: prompts, their texts, pictures and classes, seeds, resolution."""
    one, two = a.rows(pair.first), b.rows(pair.other)
    label = pair.first[2] if pair.first[2] == pair.other[2] else f"{pair.first[2]} and {pair.other[2]}"
    sets = a.resolved.prompts[pair.first[2]].id, b.resolved.prompts[pair.other[2]].id
    if sets[0] != sets[1]:
        yield f"prompts {label}: the set {sets[0]} in {ours}, {sets[1]} in {theirs}"
    texts = [dict(zip(rows["prompt_id"], rows["prompt"], strict=True)) for rows in (one, two)]
    for name, mine, yours in ((ours, *texts), (theirs, *reversed(texts))):
        alone = [prompt for prompt in mine if prompt not in yours]
        if alone:
            yield f"prompts {label}: {len(alone)} only in {name}{_cell(a is b, pair)}: {_listed(alone)}"
    other = [prompt for prompt in texts[0] if texts[1].get(prompt, texts[0][prompt]) != texts[0][prompt]]
    if other:
        example = f"{other[0]} reads {texts[0][other[0]]!r} in {ours}, {texts[1][other[0]]!r} in {theirs}"
        yield f"prompts {label}: {len(other)} of the same id have another text: {example}"
    other = _unequal(*(rows.set_index(PAIR)["picture"] for rows in (one, two)))
    if other:
        yield f"prompts {label}: {len(other)} of the same id are made from another picture: {_listed(other)}"
    for metric in _by_pictures(a, b):
        other = _unequal(a.references(pair.first, metric), b.references(pair.other, metric))
        if other:
            said = f"{metric} compares {len(other)} of the same id with other pictures"
            yield f"prompts {label}: {said}: {_listed(other)}"
    classes = [_classes(source, place) for source, place in ((a, pair.first), (b, pair.other))]
    other = [prompt for prompt in texts[0] if prompt in texts[1] and classes[0][prompt] != classes[1][prompt]]
    if other:
        example = f"{other[0]} has {classes[0][other[0]]} in {ours}, {classes[1][other[0]]} in {theirs}"
        yield f"prompts {label}: {len(other)} of the same id have another class_label: {example}"
    seeds = [sorted(set(rows["seed"])) for rows in (one, two)]
    if seeds[0] != seeds[1]:
        yield f"seeds: {_listed(seeds[0])} in {ours}, {_listed(seeds[1])} in {theirs}"
    sizes = [_sizes(rows) for rows in (one, two)]
    if all(sizes) and sizes[0] != sizes[1]:
        yield f"resolution: {_listed(sizes[0])} in {ours}, {_listed(sizes[1])} in {theirs}"


def _by_pictures(a: _Run, b: _Run) -> list[str]:
    """The metrics of both runs that compare with the prompts' own pictures, where they are the same metric."""
    theirs = b.outcome.metrics
    return [
        label for label, info in a.outcome.metrics.items()
        if info.kind == "paired" and not info.against and label in theirs and theirs[label].digest == info.digest
    ]


def _unequal(one: pd.Series, two: pd.Series) -> list[str]:
    """The ids of the prompts for which two things known by (prompt, seed) differ; what is not known is not counted."""
    both = pd.concat([one, two], axis=1, keys=["one", "two"], join="inner").dropna()
    return _unique(both.index[both["one"] != both["two"]].get_level_values(0))


def _classes(source: _Run, place: tuple[str, str, str]) -> dict[str, int | None]:
    """The class that each prompt of a cell gives."""
    return {prompt.id: prompt.class_label for prompt in source.resolved.prompts[place[2]].prompts}


def _cell(same: bool, pair: _Pair) -> str:
    """Which methods are meant, where both sides are one run."""
    return f" ({pair.first[1]} and {pair.other[1]})" if same else ""


def _sizes(rows: pd.DataFrame) -> list[str]:
    made = rows.dropna(subset=["width", "height"]).drop_duplicates(["width", "height"])
    return sorted(f"{int(width)} x {int(height)}" for width, height in zip(made["width"], made["height"], strict=True))


def _unlike(one: Any, two: Any, ours: str, theirs: str) -> list[str]:
    return [f"{place} {_short(x)} in {ours}, {_short(y)} in {theirs}" for place, x, y in unequal(one, two)]


def _short(value: Any) -> str:
    text = "left out" if value is None else repr(value)
    return text if len(text) <= 60 else text[:24] + "..." + text[-8:]


def _sides(first: _Side, other: _Side, ours: Any, theirs: Any) -> str:
    return f"{ours} in {first.name}, {theirs} in {other.name}"


def _listed(items: Sequence[Any]) -> str:
    shown = [str(item) for item in items[:SHOWN]]
    return ", ".join(shown + ([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []))


# ---- differences ----


def _paired(a: _Run, b: _Run, pair: _Pair, head: Record, notes: list[str]) -> list[Record]:
    """The records of two cells of runs, from their common (prompt, seed) pairs of the same text, class and picture."""
    one, two = a.rows(pair.first), b.rows(pair.other)
    both = one.merge(two, on=PAIR, suffixes=("_against", ""))
    repictured = {*_unequal(*(rows.set_index(PAIR)["picture"] for rows in (one, two)))}
    classes = [_classes(source, place) for source, place in ((a, pair.first), (b, pair.other))]
    alike = [p not in repictured and classes[0][p] == classes[1][p] for p in both["prompt_id"]]
    both = both.loc[(both["prompt"] == both["prompt_against"]) & np.array(alike, bool), PAIR]
    metrics = {label: info for label, info in b.outcome.metrics.items() if label in a.outcome.metrics}
    for label in sorted({*a.outcome.metrics} ^ {*b.outcome.metrics}):
        notes.append(f"{label}: in one of the two only")
    ours, theirs = _scores(a, pair.first, metrics), _scores(b, pair.other, metrics)
    pairs = theirs.merge(ours, on=[*PAIR, "metric"], suffixes=("", "_against")).merge(both, on=PAIR)
    for label in _by_pictures(a, b):
        other = _unequal(a.references(pair.first, label), b.references(pair.other, label))
        pairs = pairs[~((pairs["metric"] == label) & pairs["prompt_id"].isin(other))]
    records = comparison.paired_records(head, pairs, metrics)
    for label, info in metrics.items():
        if info.kind == "distribution":
            records += _whole(a, b, pair, label, head, set(both.itertuples(index=False, name=None)), notes)
        elif info.lowest:
            notes.append(f"{label}: a mean of the lowest values has no paired difference")
        elif info.missing is not None:
            notes.append(f"{label}: {info.missing}")
    order = {label: place for place, label in enumerate(metrics)}
    told = [record | {"notes": _remarks(record, len(both), (a, pair.first), (b, pair.other))} for record in records]
    return sorted(told, key=lambda record: order[record["metric"]])


def _scores(source: _Run, place: tuple[str, str, str], metrics: dict[str, MetricInfo]) -> pd.DataFrame:
    """The finite scores of one cell, a row each, by the metrics as this run has them."""
    rows = source.outcome.scored[source.outcome.scored["metric"].isin(list(metrics))]
    for name, label in zip(CELL, place, strict=True):
        rows = rows[rows[name] == label]
    return rows[["prompt_id", "category", "seed", "nfe", "metric", "value"]]


def _whole(
    a: _Run, b: _Run, pair: _Pair, label: str, head: Record, pairs: set[tuple[str, int]], notes: list[str]
) -> list[Record]:
    """A distribution metric on the common pairs, with the jackknife's interval; a note where there is none."""
    info, metric = b.outcome.metrics[label], b.resolved.metrics[label].metric
    assert isinstance(metric, DistributionMetric)
    if info.missing is not None or info.digest != a.outcome.metrics[label].digest:
        notes.append(f"{label}: {info.missing or 'of another digest, so that its features cannot be compared'}")
        return []
    try:
        found = paired_distances(metric, (b.store, b.cell(pair.other)), (a.store, a.cell(pair.first)), pairs)
    except ValueError as error:
        notes.append(f"{label}: {error}")
        return []
    cost = [float(source.rows(place)["nfe"].mean()) for source, place in ((b, pair.other), (a, pair.first))]
    return [comparison.plain_record(
        head, label, info, found["first"], found["second"], low=found["low"], high=found["high"], n=found["n"],
        clusters=found["prompts"], nfe=cost[0], nfe_against=cost[1],
    )]


def _remarks(record: Record, pairs: int, *sides: tuple[_Run, tuple[str, str, str]]) -> list[str]:
    """What a reader must know of a difference: pairs without a value, judges, random weights."""
    said = []
    lacking = pairs - (record["n"] or 0)
    if lacking:
        said.append(f"{lacking} of {pairs} pairs without a value on both sides")
    for source, place in sides:
        if source.outcome.judges.get(place[1]) == record["metric"]:
            said.append(f"{place[1]} chooses by {record['metric']} itself: no independent evidence there")
        if not source.resolved.models[place[0]].trained:
            said.append("random weights: this number says nothing about a trained model")
    return list(dict.fromkeys(said))


# ---- published numbers ----


def _beside(first: _Side, other: _Side, pair: _Pair, head: Record, notes: list[str]) -> list[Record]:
    """Differences to published numbers, in the scale in which the first is printed: no rows, so no test."""
    notes.append("Published numbers have no rows to pair with: a difference without interval or test, and whether "
                 "prompts, seeds and weights were the same cannot be checked.")
    ours, theirs = _values(first, pair.first, notes), _values(other, pair.other, notes)
    records = []
    for label in (label for label in theirs if label in ours):
        (one, of_one), (two, of_two) = ours[label], theirs[label]
        unit = next(side["scale"] for side in (one, two) if "scale" in side)
        info = of_one or of_two or MetricInfo(label, "", higher_is_better=higher_is_better(label))
        factors = [unit / side.get("scale", 1.0) for side in (two, one)]
        values = [side["value"] * factor for side, factor in zip((two, one), factors, strict=True)]
        said = [str(side["note"]) for side in (one, two) if side.get("note")]
        for side, factor in zip((two, one), factors, strict=True):
            if factor != 1:
                said.append(f"{label}: ours times {factor:g}, as printed" if "scale" not in side else
                            f"{label}: {head['method']} times {factor:g}, to the unit of {head['against']}")
        records.append(comparison.plain_record(
            head, label, replace(info, kind="published"), *values, nfe=two.get("nfe"), nfe_against=one.get("nfe"),
            notes=said,
        ))
    return records


def _values(
    side: _Side, place: tuple[str, str, str], notes: list[str]
) -> dict[str, tuple[dict[str, Any], MetricInfo | None]]:
    """A cell's values by metric: table records of a run, or published rows (which have `scale`)."""
    if isinstance(side.source, _Run):
        infos = side.source.outcome.metrics
        return {
            r["metric"]: ({"value": r["value"], "nfe": r["nfe"]}, infos[r["metric"]])
            for r in side.source.outcome.records
            if tuple(r[key] for key in CELL) == place and r["group"] is None and r["value"] is not None
        }
    found: dict[str, tuple[dict[str, Any], MetricInfo | None]] = {}
    for row in side.source.to_dict("records"):
        if tuple(str(row[key]) for key in CELL) != place:
            continue
        if row["quantity"] != "value":
            notes.append(f"{side.name}: {row['metric']} is a {row['quantity']}, not a value, and is left out")
            continue
        note = row["note"] if isinstance(row["note"], str) and row["note"] else None
        found[row["metric"]] = ({"value": float(row["value"]), "scale": float(row["scale"]), "note": note}, None)
    return found

