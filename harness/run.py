"""The order of things: plan, generate, score, tabulate. Everything that a run does passes through here."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import yaml

import harness
from harness import benchmark as benchmarks
from harness import own_method, registry
from harness import prompts as prompt_sets
from harness.analysis import published, sweep, tables
from harness.analysis.records import CELL
from harness.benchmark import Benchmark, TableSpec, named
from harness.display import Display
from harness.distribution import distribution_values
from harness.engine import Engine, open_engine
from harness.errors import HarnessError
from harness.identity import digest, unequal
from harness.job import Job, MethodJob, MetricJob, ModelJob, Slot
from harness.metrics.base import DistributionMetric, PairedMetric
from harness.plan import Cell, shards, total
from harness.resolve import Resolved, ResolvedMetric, resolve
from harness.scoring import score_units
from harness.store import Store
from harness.units import PICTURE, GenerateUnit, Report, ScoreUnit
from harness.weights import sha256_of

ROWS = [
    "sample_id", "frame", "model", "method", "prompts", "prompt_id", "category", "seed",
    "nfe", "flops", "seconds", "error",
]
SCORES = ["sample_id", "metric", "metric_digest", "value", "error"]  # beside their places
_Planned = Mapping[tuple[str, str, str], Collection[str]]  # by model, method, prompts: the ids of samples


@dataclass
class Outcome:
    """What a command leaves: table records to print, and what failed."""

    records: list[dict[str, Any]]
    specs: list[TableSpec]
    rows: pd.DataFrame
    scores: pd.DataFrame
    metrics: dict[str, tables.MetricInfo]
    judges: dict[str, str]
    failures: list[str] = field(default_factory=list)
    published: pd.DataFrame | None = None  # rows of harness.analysis.published
    candidates: dict[str, int] = field(default_factory=dict)  # by method that only samples: how many noises
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method: harness.analysis.sweep.settings
    root: Path = Path()  # the run folder
    resolved: Resolved | None = None  # what was asked for; the run folder may hold more
    paired: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # what harness.analysis.tables has computed

    @cached_property
    def scored(self) -> pd.DataFrame:
        """`scored_rows` of all metrics: each finite score beside its sample."""
        return tables.scored_rows(self.rows, self.scores, self.metrics)

    def print_tables(self, ci: bool = False, groups: bool = False) -> None:
        """Prints every table of the benchmark on the terminal."""
        if not self.metrics:
            print(f"{len(self.rows):,} images; the benchmark names no metrics to score them with")
        for spec in self.specs if self.metrics else []:
            tables.show(self, spec, ci=ci, groups=groups)

    def render(self, form: str, ci: bool = False, groups: bool = False) -> str:
        """The tables as markdown, latex, csv, html or json."""
        if form == "json":
            return tables.as_json(self, self.specs)
        return "\n".join(tables.render(self, spec, form, ci=ci, groups=groups) for spec in self.specs)


def run(
    name: str, *, results: Path, display: Display, limit: int | None = None, workers: int | None = None,
    address: str | None = None, as_name: str | None = None, replace: tuple[str, ...] = (),
    accept: tuple[str, ...] = (), method: str | None = None,
) -> Outcome:
    """Runs a benchmark, or what is left of it; with `method` (`harness.own_method`) that one alone, in its place.

    `accept` names labels of prompts whose files are taken as they are.

    Raises:
        HarnessError: the request is wrong, or the run folder holds something else under one of its labels.
    """
    path = benchmarks.find(name)
    benchmark = benchmarks.load(path).limited(limit)
    if as_name is not None:
        benchmark = benchmarks.parse(benchmark.model_dump(exclude_unset=True) | {"name": as_name}, "--as")
    benchmark = _accepting(benchmark, accept, path, display)
    label: str | None = None
    folders: tuple[str, ...] = ()
    if method is not None:
        benchmark, label, folders = own_method.add(benchmark, method)
    resolved = resolve(benchmark, path, folders)
    store = Store(results / benchmark.name)
    store.sweep()
    _quarantine(store, display)
    _agree(store, resolved, replace)
    cells = [cell for cell in resolved.cells() if label in (None, cell.method)]
    store.write_benchmark(_grown(store.read_benchmark(), resolved, path, folders))
    store.write_environment(_environment())
    store.log("run", benchmark=benchmark.name, samples=total(cells), limit=limit)
    with _Work(store, resolved, display, address, workers) as work:
        _generate(work, cells)
        _score(work, cells)
    return _kept(store, tabulate(store, resolved, cells, work.failures))


def _accepting(benchmark: Benchmark, accept: tuple[str, ...], path: Path, display: Display) -> Benchmark:
    """The benchmark with the hashes of the files that are to be taken as they are; says what to write for that."""
    prompts = dict(benchmark.prompts)
    for label in accept:
        if label not in prompts:
            raise HarnessError(f"--accept {label}: no such label of prompts: {registry.nearest(label, list(prompts))}")
        try:
            hashes = prompt_sets.to_accept(prompts[label], path.parent)
        except HarnessError as error:
            raise HarnessError(f"--accept {label}: {error}") from error
        prompts[label] = prompts[label].model_copy(update={"accept": hashes})
        line = f"accept: {hashes[0] if len(hashes) == 1 else '[' + ', '.join(hashes) + ']'}"
        display.say(f"prompts.{label}: taken as it is. In {path} this line says the same:\n  {line}" if hashes else
                    f"prompts.{label}: is the file that its set names; there is nothing to accept")
    return benchmark.model_copy(update={"prompts": prompts})


def score(
    run_name: str, *, results: Path, display: Display, metrics: tuple[str, ...] = (), workers: int | None = None,
    address: str | None = None,
) -> Outcome:
    """Scores what a run has generated, with `metrics` beside its own."""
    store, resolved = opened(run_name, results, metrics)
    _quarantine(store, display)
    _same_pictures(store, resolved)
    kept = store.read_benchmark()
    assert kept is not None
    store.write_benchmark(_grown(kept, resolved, Path(kept["source"])))
    with _Work(store, resolved, display, address, workers) as work:
        _score(work, resolved.cells())
    return _kept(store, tabulate(store, resolved, resolved.cells(), work.failures))


def table(run_name: str, *, results: Path) -> Outcome:
    """The tables of a run as it stands; nothing is generated or scored."""
    store, resolved = opened(run_name, results)
    return _kept(store, tabulate(store, resolved, resolved.cells(), []))


def opened(run_name: str, results: Path, metrics: tuple[str, ...] = ()) -> tuple[Store, Resolved]:
    """The folder of a run, and its benchmark as it resolves now, with `metrics` beside its own.

    Raises:
        HarnessError: there is no such run, or what its benchmark names is no longer here.
    """
    root = Path(run_name) if (Path(run_name) / "benchmark.yaml").is_file() else results / run_name
    store = Store(root)
    kept = store.read_benchmark()
    if kept is None:
        here = sorted(p.parent.name for p in results.glob("*/benchmark.yaml"))
        raise HarnessError(f"no run {run_name!r} under {results}: {registry.nearest(run_name, here)}")
    source = Path(kept.pop("source"))
    folders = kept.pop("folders", [])
    kept.pop("definitions")
    entries = _by_name(kept.get("metrics", []))
    recorded = list(entries)
    for name, entry in _by_name(_entry(text) for text in metrics).items():
        entries[name] = entries.get(name, entry) if isinstance(entry, str) else entry
    kept["metrics"] = list(entries.values())
    return store, resolve(benchmarks.parse(kept, str(root / "benchmark.yaml")), source, folders, recorded)


def _entry(text: str) -> Any:
    """A metric of the command line as the benchmark would say it: `ssim`, or `ssim: {against: cfg-3}`."""
    try:
        entry = yaml.safe_load(text)
        named(entry)
    except (yaml.YAMLError, ValueError) as error:
        raise HarnessError(f"--metric {text!r}: expected NAME or 'NAME: {{PARAMETER: VALUE}}'") from error
    return entry


def _by_name(entries: Iterable[Any]) -> dict[str, Any]:
    """A benchmark's metrics by the name that it calls them."""
    return {named(entry)[0]: entry for entry in entries}


# ---- what a run folder already is ----


def _agree(store: Store, resolved: Resolved, replace: tuple[str, ...]) -> None:
    """Refuses a label that means something else in the run folder; `replace` throws its old rows away."""
    kept = store.read_benchmark()
    if kept is None:
        return
    wanted = resolved.definitions()
    for label in replace:
        kinds = [kind for kind in ("models", "methods", "prompts") if label in wanted[kind]]
        if not kinds:
            known = [name for kind in ("models", "methods", "prompts") for name in wanted[kind]]
            raise HarnessError(f"--replace {label}: no such label here: {registry.nearest(label, known)}")
        for kind in kinds:
            store.drop(**{kind.removesuffix("s") if kind != "prompts" else kind: label})
            kept["definitions"][kind].pop(label, None)
    refused = []
    for kind, definitions in wanted.items():
        for label, definition in definitions.items():
            old = kept["definitions"].get(kind, {}).get(label, definition)
            if digest(_meaning(kind, old)) != digest(_meaning(kind, definition)):
                refused.append(f"{kind}.{label} has changed since this run began:\n" + _difference(old, definition))
    if refused:
        raise HarnessError(
            "\n".join(refused) + f"\nIn {store.root} these labels keep their meaning. Give the label another name, "
            f"run under another name with --as NEW-NAME, or throw the old rows away with --replace LABEL"
        )
    _same_texts(store, resolved)
    _same_pictures(store, resolved)
    store.write_benchmark(kept)


def _meaning(kind: str, definition: Any) -> Any:
    """What may not change under a label. A file of prompts may grow: `_same_texts` looks at what was made of it."""
    return definition["set"] if kind == "prompts" else definition


def _same_texts(store: Store, resolved: Resolved) -> None:
    """A prompt id whose text has changed would put two different prompts under one sample."""
    for label, prompts in resolved.prompts.items():
        texts = {prompt.id: prompt.text for prompt in prompts.prompts}
        rows = store.read("images", columns=["prompt_id", "prompt"], prompts=label)
        rows = rows.drop_duplicates("prompt_id")
        for prompt_id, text in zip(rows["prompt_id"], rows["prompt"], strict=True):
            if texts.get(prompt_id, text) != text:
                raise HarnessError(
                    f"prompts.{label}: prompt {prompt_id!r} reads {texts[prompt_id]!r} now, but {text!r} in "
                    f"{store.root}. Give the new prompt another id, run with --as NEW-NAME or --replace {label}"
                )


def _same_pictures(store: Store, resolved: Resolved) -> None:
    """A picture that has changed would leave the clips of the old one under the sample's id."""
    readers = [label for label, model in resolved.models.items() if model.cls.reads_pictures]
    if not readers:
        return
    for label, prompts in resolved.prompts.items():
        images = {prompt.id: Path(prompt.image) for prompt in prompts.prompts if prompt.image is not None}
        now = {prompt_id: sha256_of(path) if path.is_file() else None for prompt_id, path in images.items()}
        for model in readers:
            rows = store.read("images", columns=["prompt_id", "record"], model=model, prompts=label)
            for prompt_id, record in dict.fromkeys(zip(rows["prompt_id"], rows["record"], strict=True)):
                before = json.loads(record).get(PICTURE) if isinstance(record, str) else None
                if before is not None and now.get(prompt_id, before) != before:
                    raise HarnessError(
                        f"prompts.{label}: the picture of prompt {prompt_id!r}, {images[prompt_id]}, is not the one "
                        f"that models.{model} in {store.root} was given (its SHA-256 was {before[:12]}...). Put that "
                        f"one back, run with --as NEW-NAME or --replace {label}"
                    )


def _difference(old: Any, new: Any) -> str:
    """The leaves in which two definitions differ, a line each."""
    return "\n".join(f"  {place}: was {_said(before)}, now {_said(now)}" for place, before, now in unequal(old, new))


def _said(value: Any) -> str:
    return "left out" if value is None else repr(value)


def _grown(
    kept: dict[str, Any] | None, resolved: Resolved, source: Path, folders: Sequence[str] = ()
) -> dict[str, Any]:
    """The benchmark that the run folder holds from now on: all that it held, and all that is asked for."""
    asked = resolved.benchmark.model_dump(mode="json", exclude_unset=True)
    asked |= {"source": str(source.resolve()), "definitions": resolved.definitions()}
    for label, prompts in resolved.prompts.items():
        if prompts.revision is not None:  # so that the run finds again what it was made from
            asked["prompts"][label]["revision"] = prompts.revision
    known = {*folders, *(kept or {}).get("folders", [])}
    asked |= {"folders": sorted(known)} if known else {}
    if kept is None:
        return asked
    grown = kept | asked
    for key in ("models", "methods"):
        grown[key] = kept[key] | asked[key]
    grown["prompts"] = {**kept["prompts"], **asked["prompts"]}
    for label in set(kept["prompts"]) & set(asked["prompts"]):
        grown["prompts"][label] = _wider(kept["prompts"][label], asked["prompts"][label])
    grown["seeds"] = sorted({*kept.get("seeds", [0]), *asked.get("seeds", [0])})
    entries = _by_name(asked.get("metrics", []))
    for name, entry in _by_name(kept.get("metrics", [])).items():
        entries.setdefault(name, entry)
    grown["metrics"] = list(entries.values())
    grown["definitions"] = {
        kind: {**kept["definitions"].get(kind, {}), **labels} for kind, labels in asked["definitions"].items()
    }
    return grown


def _wider(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The newer block with, of two selections from one set, the one that contains the other; its own where neither
    does."""
    keys = ("first", "sample", "category")
    sizes = [next((spec[key] for key in keys[:2] if spec.get(key)), None) for spec in (old, new)]
    same_kind = all((old.get(k) is None) == (new.get(k) is None) for k in keys)
    everything = sizes[0] is None and old.get("category") is None
    larger = same_kind and None not in sizes and old.get("category") == new.get("category") and sizes[0] > sizes[1]  # type: ignore[operator]
    if everything or larger:
        return {k: v for k, v in new.items() if k not in keys} | {k: v for k, v in old.items() if k in keys}
    return new


def _quarantine(store: Store, display: Display) -> None:
    """Moves damaged part files aside, so that their samples are made again and no others are harmed."""
    for path in store.corrupt_parts():
        aside = store.quarantine(path)
        display.say(f"warning: {path} cannot be read; it is kept as {aside.name} and its samples are made again")
        store.log("corrupt", path=str(path))


def _environment() -> dict[str, Any]:
    packages = ("torch", "diffusers", "transformers", "peft", "ray", "pyarrow", "numpy")
    return {
        "harness": harness.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _commit() -> str | None:
    """The commit of this project, where it runs from a checkout."""
    folder = Path(harness.__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _job(store: Store, resolved: Resolved) -> Job:
    return Job(
        root=str(store.root.resolve()),
        models={
            label: ModelJob(
                family=model.spec.family,
                # A local path or a Hub id; a relative one is made absolute for workers that start elsewhere.
                weights=model.spec.weights if model.spec.weights.startswith("builtin:") else str(model.folder),
                dtype=model.spec.dtype,
                size=model.spec.size,
                networks=model.networks,
                slot=Slot(model.spec.device, model.spec.threads, model.spec.gpus),
            )
            for label, model in resolved.models.items()
        },
        methods={
            label: MethodJob(method.spec.noise, method.spec.guidance, method.sampler, method.judge)
            for label, method in resolved.methods.items()
        },
        metrics={
            label: MetricJob(metric.name, metric.parameters, metric.digest)
            for label, metric in resolved.metrics.items()
        },
        scoring=next(
            Slot(model.spec.device, model.spec.threads, model.spec.gpus) for model in resolved.models.values()
        ),
        sys_path=resolved.sys_path,
    )


# ---- the stages ----


class _Work:
    """Units handed to an engine that starts when there is something to do, and their reports."""

    def __init__(
        self, store: Store, resolved: Resolved, display: Display, address: str | None, workers: int | None
    ) -> None:
        self.store, self.resolved, self.display = store, resolved, display
        self.job = _job(store, resolved)
        self.failures: list[str] = []
        self._open = lambda: open_engine(address=address, workers=workers)
        self._engine: Engine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "_Work":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.finish()
        self._stack.__exit__(kind, error, trace)
        if kind is KeyboardInterrupt:
            self.display.say("Interrupted. Finished shards are kept: the same command goes on from there.")

    def do(self, stage: str, units: Sequence[GenerateUnit | ScoreUnit], samples: int, finished_before: int) -> None:
        """Has all units done; what failed is logged and kept in `failures`."""
        self.display.start(stage, samples, finished_before)
        if units and self._engine is None:
            self._engine = self._stack.enter_context(self._open())
            self.store.log("engine", where=self._engine.describe())
        if units and self._engine is not None:
            self._engine.run(units, self.job, on_report=self._take)
        self.display.finish()

    def _take(self, report: Report) -> None:
        self.display.advance(report.rows, len(report.failed))
        place = "/".join((report.part.model, report.part.method, report.part.prompts, report.part.name))
        for failed in report.failed:
            self.store.log("failed", stage=report.stage, part=place, **failed)
            kinds = {"metric": "metric", "prompt_id": "prompt", "sample_id": "sample"}
            about = ", ".join(f"{word} {failed[key]}" for key, word in kinds.items() if failed.get(key) is not None)
            self.failures.append(f"{report.stage} {place}: {about + ': ' if about else ''}{failed['error']}")


def _generate(work: _Work, cells: list[Cell]) -> None:
    units: list[GenerateUnit] = []
    for cell in cells:
        place: dict[str, Any] = {"model": cell.model, "method": cell.method, "prompts": cell.prompts}
        done = work.store.sample_ids("images", with_failed=False, **place)
        taken = {part.name for part in work.store.parts("images", **place)}
        units += shards(cell, done, taken)
    todo = sum(len(unit.rows) for unit in units)
    work.do("generate", units, todo, total(cells) - todo)


def _score(work: _Work, cells: list[Cell]) -> None:
    wanted = {label: metric for label, metric in work.resolved.metrics.items() if metric.missing is None}
    units = list(score_units(work.store, cells, wanted, work.resolved.cells()))
    work.do("score", [unit for unit, _ in units], sum(samples for _, samples in units), 0)


# ---- tables ----


def tabulate(store: Store, resolved: Resolved, cells: list[Cell], failures: list[str]) -> Outcome:
    """Joins the planned samples with their scores, for tables; rows of an earlier, wider plan stay out."""
    planned = {(cell.model, cell.method, cell.prompts): set(cell.sample_ids()) for cell in cells}
    rows = store.read("images", columns=ROWS)
    rows = rows[_among(rows, planned) & (rows["frame"] == 0)]
    place = {key: number for number, key in enumerate(planned)}
    order = [place[key] for key in zip(rows["model"], rows["method"], rows["prompts"], strict=True)]
    rows = rows.assign(order=order).sort_values("order", kind="stable", ignore_index=True).drop(columns="order")
    asked = {named(entry)[0] for entry in resolved.benchmark.metrics}
    metrics = {label: metric for label, metric in resolved.metrics.items() if metric.name in asked}
    scores = [
        _current(store, label, metric.digest, planned)
        for label, metric in metrics.items()
        if metric.metric.kind != "distribution" and metric.missing is None
    ]
    distribution = distribution_values(
        store, cells,
        {
            label: (metric.metric, metric.digest)
            for label, metric in metrics.items()
            if isinstance(metric.metric, DistributionMetric) and metric.missing is None
        },
        list(dict.fromkeys(
            base for spec in resolved.benchmark.tables
            for base in tables.baselines(spec.baseline, resolved.benchmark.methods).values()
        )),
    )
    infos = {label: _info(metric) for label, metric in metrics.items()}
    kept = pd.concat(scores, ignore_index=True) if scores else pd.DataFrame(columns=[*CELL, *SCORES])
    trained = {label: model.trained for label, model in resolved.models.items()}
    records = tables.records(rows, kept, distribution, infos, trained)
    judges = {label: method.judge for label, method in resolved.methods.items() if method.judge}
    theirs = [published.rows(name) for name in dict.fromkeys(resolved.benchmark.published)]
    candidates = {label: m.candidates for label, m in resolved.methods.items() if m.candidates is not None}
    parameters = {label: sweep.settings(method.identity) for label, method in resolved.methods.items()}
    return Outcome(
        records, resolved.benchmark.tables, rows, kept, infos, judges, failures,
        pd.concat(theirs, ignore_index=True) if theirs else None, candidates, parameters, store.root,
        resolved=resolved,
    )


def _kept(store: Store, outcome: Outcome) -> Outcome:
    """The same, its records and tables written into the run folder."""
    store.write_table("records.json", json.dumps(outcome.records, indent=1))
    for number, spec in enumerate(outcome.specs):
        store.write_table(f"table-{number}.md", tables.render(outcome, spec, "markdown", ci=True))
    return outcome


def _info(metric: ResolvedMetric) -> tables.MetricInfo:
    kind = metric.metric
    return tables.MetricInfo(
        metric.name, metric.digest, kind.kind, kind.higher_is_better, kind.aggregation, kind.trained, metric.missing,
        lowest=getattr(kind, "lowest", 0) if kind.aggregation == "mean_of_lowest" else 0,
        against=kind.against if isinstance(kind, PairedMetric) else "",
    )


def _current(store: Store, label: str, digest: str, planned: _Planned) -> pd.DataFrame:
    """The planned samples' scores by a metric as it is now."""
    rows = store.read("scores", label, columns=SCORES)
    return rows[_among(rows, planned) & (rows["metric_digest"] == digest)]


def _among(rows: pd.DataFrame, planned: _Planned) -> np.ndarray:
    """Which rows are of planned samples: by cell, as what one label has no more another of the same set may have.
    (Series.isin makes a list of a set anew each time, at 50 times the cost.)"""
    places = zip(rows["model"], rows["method"], rows["prompts"], strict=True)
    inside = (sample in planned.get(place, ()) for sample, place in zip(rows["sample_id"], places, strict=True))
    return np.fromiter(inside, bool, len(rows))
