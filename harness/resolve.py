"""A benchmark made definite: weights found and hashed, plug-ins built, prompts read, every problem named at once.

What comes out is what a run is compared by (`definitions`) and what a worker is given (`harness.worker.Job`).
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import prompts as prompt_sets
from harness import registry, weights
from harness.analysis import beside, published
from harness.benchmark import Benchmark, MethodSpec, ModelSpec, named
from harness.diffusion.base import Diffusion, Sampler
from harness.diffusion.sampling import no_timesteps, no_unconditional
from harness.errors import HarnessError, Lacking
from harness.guidance.interval import Interval
from harness.identity import digest
from harness.method import Method, load_method, load_sampler, method_identity, no_gradient
from harness.metrics.base import Metric, PairedMetric, SampleMetric
from harness.metrics.load import metric_identity
from harness.noise.best_of_n import BestOfN
from harness.noise.gaussian import Gaussian
from harness.noise.zero_order_search import ZeroOrderSearch
from harness.orbit_pictures import to_compare
from harness.plan import Cell
from harness.prompts import PromptSet
from harness.seeding import column_number
from harness.weights import sha256_of

# What a paired metric without `against` compares with; in its digest, so it changes with what is done to the picture.
THE_PROMPTS_OWN = "the image that the prompt names, on white, Lanczos to the sample's size where the shapes agree"


@dataclass(frozen=True)
class ResolvedModel:
    """A model block with its weights on this machine."""

    spec: ModelSpec
    folder: Path
    cls: type[Diffusion]
    networks: dict[str, dict[str, Any]]  # as `Diffusion.load` takes them, folders found
    identity: dict[str, Any]
    trained: bool


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with all defaults filled in."""

    spec: MethodSpec
    method: Method
    sampler: dict[str, Any]
    judge: str | None  # the label of its metric
    identity: dict[str, Any]

    def runs_on(self, model: str) -> bool:
        """Whether the benchmark runs it on the model of this label."""
        return self.spec.runs_on(model)

    @property
    def candidates(self) -> int | None:
        """How many noises it samples, where it does nothing else to its noise; None for any other method."""
        match self.method.stage:
            case Gaussian():
                return 1
            case BestOfN(candidates=candidates):
                return candidates
            case ZeroOrderSearch(rounds=rounds, neighbours=neighbours):
                return 1 + rounds * neighbours
        return None


@dataclass(frozen=True)
class ResolvedMetric:
    """A metric, not yet opened. `missing` says what it lacks here, None where it can score.

    `name` is what the YAML calls it; its label everywhere else is the metric's own `name`.
    """

    name: str
    parameters: dict[str, Any]
    metric: Metric
    identity: dict[str, Any]
    missing: str | None

    @property
    def digest(self) -> str:
        """The digest that score rows carry."""
        return digest(self.identity)


@dataclass(frozen=True)
class Resolved:
    """A benchmark ready to be planned."""

    benchmark: Benchmark
    models: dict[str, ResolvedModel]
    methods: dict[str, ResolvedMethod]
    prompts: dict[str, PromptSet]
    metrics: dict[str, ResolvedMetric]
    sys_path: tuple[str, ...]
    # What is not on this machine, by its place in the file (`models.sd`, `models.sd.networks.refiner`,
    # `models.sd.opens.SOURCE`, `prompts.x`, `methods.x` for a judge) and what to do. Empty but for `survey`, whose
    # `models` and `prompts` then lack it too.
    lacking: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Every (model, method, prompt set) to run; a model's cells follow each other, so that it loads once."""
        return [
            Cell(
                model, method, label, digest(resolved.identity), digest(self.methods[method].identity), prompts,
                tuple(self.benchmark.seeds), self.benchmark.seeding, resolved.spec.batch,
            )
            for model, resolved in self.models.items()
            for label, prompts in self.prompts.items()
            for method in self.methods if self.methods[method].runs_on(model)
        ]

    def definitions(self) -> dict[str, dict[str, Any]]:
        """What each label stands for; a label of a run never changes its meaning."""
        return {
            "models": {label: model.identity for label, model in self.models.items()},
            "methods": {label: method.identity for label, method in self.methods.items()},
            "prompts": {label: prompts.definition() for label, prompts in self.prompts.items()},
            "run": {"seeding": {"seeding": self.benchmark.seeding}},
        }


def resolve(
    benchmark: Benchmark, source: Path, folders: Sequence[str] = (), recorded: Collection[str] = ()
) -> Resolved:
    """Finds and checks everything that a benchmark names.

    Users' own plug-ins are looked for in `folders`, beside the benchmark file and in the current folder. `recorded` are
    the names of metrics that a run has already: they are not refused for being defined for stills alone, as what the
    run holds besides can be read.

    Raises:
        HarnessError: all that is wrong or not on this machine, a line each, with file and key.
    """
    return _resolve(benchmark, source, fetch=True, folders=folders, recorded=recorded)


def survey(benchmark: Benchmark, source: Path) -> Resolved:
    """As `resolve`, but nothing is fetched, and what is not on this machine is listed in `lacking`.

    Raises:
        HarnessError: all that is wrong, a line each, with file and key.
    """
    return _resolve(benchmark, source, fetch=False)


def _resolve(
    benchmark: Benchmark, source: Path, fetch: bool, folders: Sequence[str] = (), recorded: Collection[str] = ()
) -> Resolved:
    search = tuple(dict.fromkeys([*folders, str(source.parent.resolve()), str(Path.cwd())]))
    registry.look_in(search)
    problems: list[str] = []
    lacking: dict[str, str] = {}
    models, prompts = {}, {}
    for label, spec in benchmark.models.items():
        try:
            model = _model(f"models.{label}", spec, fetch, lacking)
            if model is not None:
                models[label] = model
        except HarnessError as error:
            problems.append(str(error))
    for label, chosen in benchmark.prompts.items():
        try:
            prompts[label] = prompt_sets.load(chosen, source.parent, fetch)
        except Lacking as error:
            lacking[f"prompts.{label}"] = str(error)
        except HarnessError as error:
            problems.append(f"prompts.{label}: {error}")
    problems += _two_texts(prompts) + _one_noise(benchmark, prompts)
    if any(model.cls.reads_pictures for model in models.values()):
        problems += _two_pictures(prompts)
    problems += [
        f"prompts.{label}: with models.{name}: {text}"
        for name, model in models.items() for label, chosen in prompts.items()
        for text in model.cls.prompt_problems(model.folder, chosen.prompts)
    ]
    metrics = _metrics(benchmark, problems)
    problems += _only_clips(benchmark, models, metrics, recorded)
    methods = {}
    shared = None  # what is wrong with the sampler of all methods: said once, and not again of each of them
    try:
        load_sampler(benchmark.sampler)
    except HarnessError as error:
        shared = str(error)
        problems.append(shared)
    for label, method in benchmark.methods.items():
        problems += [
            f"methods.{label}.models: no model {name!r}: {registry.nearest(name, list(benchmark.models))}"
            for name in method.models or () if name not in benchmark.models
        ]
        try:
            methods[label] = _method(benchmark, method, metrics)
            judge = methods[label].judge
            if judge is not None and metrics[judge].missing is not None:
                lacking[f"methods.{label}"] = f"judge {method.judge!r}: {metrics[judge].missing}"
            problems += [
                f"methods.{label}: {text}" for text in _lacking(methods[label], benchmark.models, models, metrics)
            ]
        except (HarnessError, ValueError) as error:
            if str(error) != shared:
                problems.append(f"methods.{label}: {error}")
    problems += [
        f"models.{label}: no method runs on it: name it in the 'models' of one, or leave it out"
        for label in benchmark.models if not any(method.runs_on(label) for method in benchmark.methods.values())
    ]
    for label in metrics:
        try:
            metrics[label] = _compared(metrics[label], benchmark, models, methods, prompts)
        except HarnessError as error:
            problems.append(f"metrics.{metrics[label].name}: {error}")
    problems += _bad_published(benchmark) or _bad_tables(benchmark, metrics, prompts)
    if benchmark.seeding == "published" and methods:
        stages = [method.method.stage for method in methods.values()]
        if not any(getattr(stage, "published_seeding", False) for stage in stages):
            problems.append("seeding: 'published' is defined by no method of this benchmark (docs/methods.md says "
                            "which define it, with 'variant: published'); take identity or literal")
    if fetch:
        problems += [f"{place}: {text}" for place, text in lacking.items()]
    if problems:
        raise HarnessError("\n".join(f"{source}: {problem}" for problem in problems))
    return Resolved(benchmark, models, methods, prompts, metrics, search, lacking)


def _two_texts(prompts: dict[str, PromptSet]) -> list[str]:
    """Two texts under one id of one set (another file or column) would share their noise and their samples."""
    found = []
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for label, chosen in prompts.items():
        for prompt in chosen.prompts:
            other, text = first.setdefault((chosen.id, prompt.id), (label, prompt.text))
            if text != prompt.text:
                found.append(
                    f"prompts.{label}: prompt {prompt.id!r} of set {chosen.id!r} reads {prompt.text[:80]!r}, in "
                    f"prompts.{other} {text[:80]!r}: give one of the two a set of its own, {{set: NAME, path: FILE}}"
                )
                break
    return found


def _two_pictures(prompts: dict[str, PromptSet]) -> list[str]:
    """Likewise two pictures, for models that are given them. Those that clips are only compared with may differ."""
    found = []
    first: dict[tuple[str, str], tuple[str, Path]] = {}
    for label, chosen in prompts.items():
        for prompt in chosen.prompts:
            if prompt.image is None:
                continue
            mine = Path(prompt.image)
            other, picture = first.setdefault((chosen.id, prompt.id), (label, mine))
            if mine != picture and mine.is_file() and picture.is_file() and sha256_of(mine) != sha256_of(picture):
                found.append(
                    f"prompts.{label}: the picture of prompt {prompt.id!r} of set {chosen.id!r}, {mine}, is not that "
                    f"of prompts.{other}, {picture}: their clips would pass for the same samples. Put one of the two "
                    f"into a benchmark of another name"
                )
                break
    return found


def _one_noise(benchmark: Benchmark, prompts: dict[str, PromptSet]) -> list[str]:
    """Under `column:NAME` each row needs its number. Row n at seed s and row n + 1 at seed s - 1 have one noise; where
    the prompts are alike too, they are one image under two ids, which distances of distributions would count twice."""
    if not benchmark.seeding.startswith("column:"):
        return []
    gaps = {later - seed: (seed, later) for seed, later in itertools.combinations(sorted(benchmark.seeds), 2)}
    found = []
    for label, chosen in prompts.items():
        try:
            rows = {
                (p.text, p.class_label, p.image, column_number(benchmark.seeding, chosen.id, p.id, p.columns)): p.id
                for p in chosen.prompts
            }
        except HarnessError as error:
            found.append(f"prompts.{label}: {error}")
            continue
        twice = next((
            f"prompt {other!r} at seed {seed} and prompt {one!r} at seed {later} would be one image: both have the "
            f"noise of {number + later}, and the same text and class"
            for (text, given, image, number), one in rows.items() for gap, (seed, later) in gaps.items()
            if (other := rows.get((text, given, image, number + gap))) is not None
        ), None)
        if twice is not None:
            found.append(f"prompts.{label}: {twice}. Under 'seeding: {benchmark.seeding}' the rows are the seeds: "
                         f"write 'seeds: [0]', and choose more rows for more images")
    return found


def _model(place: str, spec: ModelSpec, fetch: bool, lacking: dict[str, str]) -> ResolvedModel | None:
    """None where `lacking` has got a line for it or for one of its networks."""
    with _at(place):
        cls: type[Diffusion] = registry.load("model", spec.family)
    folder = _found(place, spec.weights, spec.revision, fetch, lacking)
    further: dict[str, Path] = {}
    for name, network in spec.networks.items():
        at = f"{place}.networks.{name}"
        found = _found(at, network.source, network.revision, fetch, lacking)
        if found is not None:
            further[name] = found
        elif network.made_by:
            lacking[at] = f"{network.source!r} is not on this machine; `{network.made_by}` makes it"
    if folder is None or len(further) < len(spec.networks):
        return None
    with _at(place):
        content = weights.content_digest(folder)
        others = cls.further_weights(folder)
    opened = []
    for source, part in others.items():
        found = _found(f"{place}.opens.{source}", source, None, fetch, lacking)
        if found is not None:
            opened.append(weights.part_of(found, part))
    if len(opened) < len(others):
        return None
    networks, digests, trained = {}, {}, all(weights.is_trained(each) for each in (folder, *opened))
    for name, network in spec.networks.items():
        with _at(f"{place}.networks.{name}"):
            kind = "weights" if network.weights is not None else "lora"
            problems = cls.network_problems(folder, kind, further[name])
            if problems:
                raise HarnessError("; ".join(problems))
            builtin = network.source.startswith("builtin:")
            networks[name] = {kind: network.source if builtin else str(further[name])}
            digests[name] = {kind: weights.content_digest(further[name])}
            trained = trained and weights.is_trained(further[name])
    identity = {
        "family": spec.family, "dtype": spec.dtype, "size": spec.size,
        "weights": content, "networks": digests, "version": getattr(cls, "version", 1),
    }
    if opened:
        identity["opens"] = [weights.content_digest(other) for other in opened]
    return ResolvedModel(spec, folder, cls, networks, identity, trained)


def _found(
    place: str, source: str, revision: str | None, fetch: bool, lacking: dict[str, str]
) -> Path | None:
    """The folder of weights; None where they are not here, which `lacking` then says."""
    with _at(place):
        try:
            return weights.resolve(source, revision, fetch=fetch)
        except Lacking as error:
            lacking[place] = str(error)
    return None


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Says of an error where in the file it is."""
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"{place}: {error}") from error


def _metrics(benchmark: Benchmark, problems: list[str]) -> dict[str, ResolvedMetric]:
    judges = [method.judge for method in benchmark.methods.values() if method.judge]
    wanted = dict(named(entry) for entry in benchmark.metrics)
    wanted |= {judge: {} for judge in judges if judge not in wanted}
    found: dict[str, ResolvedMetric] = {}
    for name, parameters in wanted.items():
        try:
            metric = registry.build("metric", name, parameters)
            if metric.name in found:
                problems.append(f"metrics.{name}: another metric here is called {metric.name!r}")
                continue
            missing = metric.missing()
            identity = metric_identity(name, metric) if missing is None else {"name": name, "missing": missing}
            found[metric.name] = ResolvedMetric(name, parameters, metric, identity, missing)
        except HarnessError as error:
            problems.append(f"metrics.{name}: {error}")
    return found


def _only_clips(
    benchmark: Benchmark, models: dict[str, ResolvedModel], metrics: dict[str, ResolvedMetric],
    recorded: Collection[str],
) -> list[str]:
    """The metrics of stills where every model makes clips, so that hours would be spent on images without a score."""
    frames = {label: model.cls.frames_of(model.folder) for label, model in models.items()}
    if len(frames) < len(benchmark.models) or 1 in frames.values():
        return []
    made = ", ".join(f"models.{label} makes clips of {count} frames" for label, count in frames.items())
    asked = {named(entry)[0] for entry in benchmark.metrics} - set(recorded)
    return [
        f"metrics.{metric.name}: {label} is defined for stills, and {made}: leave it out, or take a metric of clips "
        f"(ssim, lpips)"
        for label, metric in metrics.items() if metric.name in asked and metric.metric.only_stills
    ]


def _compared(
    found: ResolvedMetric, benchmark: Benchmark, models: dict[str, ResolvedModel], methods: dict[str, ResolvedMethod],
    prompts: dict[str, PromptSet],
) -> ResolvedMetric:
    """A paired metric with what it compares with in its identity: other images there make other scores.

    A method enters by what it is and not by its label. The prompts' own images do not enter here: each score's
    detail names the one it belongs to (`harness.run`).
    """
    if not isinstance(found.metric, PairedMetric):
        return found
    against = found.metric.against
    if against and against not in benchmark.methods:
        raise HarnessError(f"against: no method {against!r}: {registry.nearest(against, list(benchmark.methods))}")
    without = _without(benchmark, against, benchmark.methods) if against else None
    if without is not None:
        raise HarnessError(f"against: {without}")
    for label, chosen in ({} if against else prompts).items():
        if all(prompt.image is None for prompt in chosen.prompts):
            raise HarnessError(
                f"needs images to compare with, and no prompt of prompts.{label} names one: add 'against: METHOD' "
                f"(known: {', '.join(benchmark.methods)})"
            )
        for model, resolved in models.items():
            frames = resolved.cls.frames_of(resolved.folder)
            files: list[str] = []
            for prompt in chosen.prompts if frames > 1 else ():  # before hours are spent on clips without a score
                with _at(f"models.{model} on prompts.{label}"):
                    files += to_compare(prompt, frames)
            gone = [file for file in dict.fromkeys(files) if not Path(file).is_file()]
            if gone:
                raise HarnessError(
                    f"prompts.{label}: {len(gone)} of the pictures to compare with are not there; the first: {gone[0]}"
                )
    if found.missing is not None or (against and against not in methods):
        return found
    what = digest(methods[against].identity) if against else THE_PROMPTS_OWN
    parameters = {key: value for key, value in found.identity["parameters"].items() if key != "against"}
    content = found.identity["content"] | {"against": what}
    return replace(found, identity=found.identity | {"parameters": parameters, "content": content})


def _without(benchmark: Benchmark, base: str, compared: Iterable[str]) -> str | None:
    """Says on which models methods run that are to be compared with one that does not run there."""
    others = [benchmark.methods[label] for label in compared if label in benchmark.methods]
    found = [
        model for model in benchmark.models
        if not benchmark.methods[base].runs_on(model) and any(other.runs_on(model) for other in others)
    ]
    if not found:
        return None
    return (f"method {base!r} does not run on {', '.join(found)}, where methods run that are compared with it: add "
            f"{'it' if len(found) == 1 else 'them'} to methods.{base}.models")


def _method(benchmark: Benchmark, spec: MethodSpec, metrics: dict[str, ResolvedMetric]) -> ResolvedMethod:
    sampler = {**benchmark.sampler, **spec.sampler}
    method = load_method(noise=spec.noise, guidance=spec.guidance, sampler=sampler)
    judge = next((metric for metric in metrics.values() if spec.judge in (metric.name, metric.metric.name)), None)
    needs = getattr(method.stage, "needs_judge", False)
    if needs and spec.judge is None:
        raise HarnessError("this noise stage needs a judge: add 'judge: METRIC', a metric that scores each image")
    if spec.judge and not needs:
        raise HarnessError(f"judge {spec.judge!r} would not be used: the noise stage has no use for one")
    if judge is not None:
        if not isinstance(judge.metric, SampleMetric):
            raise HarnessError(f"judge {spec.judge!r} is of the kind {judge.metric.kind!r}: expected a metric that "
                               f"scores each image by itself")
        if getattr(method.stage, "needs_gradient", False) and not judge.metric.has_gradient:
            raise HarnessError(no_gradient(method.stage, judge.metric))
    identity = method_identity(method, judge.digest if judge else None)
    return ResolvedMethod(spec, method, sampler, judge.metric.name if judge else None, identity)


def _lacking(
    method: ResolvedMethod, specs: dict[str, ModelSpec], models: dict[str, ResolvedModel],
    metrics: dict[str, ResolvedMetric],
) -> list[str]:
    """What a method asks that a model of this benchmark cannot do; of one not in `models`, what its family says."""
    found = []
    sampler: Sampler = method.method.sampler
    for label, spec in specs.items():
        if not method.runs_on(label):
            continue
        try:
            cls: type[Diffusion] = registry.load("model", spec.family)
        except HarnessError:
            continue  # said by `_model`
        model = models.get(label)
        wrong = cls.problems(model.folder, spec.size, sampler) if model else []
        if wrong:
            found += [f"with models.{label}: {text}" for text in wrong]
            continue
        if isinstance(method.method.guidance, Interval) and method.method.guidance.sigma is not None:
            levels = cls.step_levels(model.folder if model else None, sampler)
            nowhere = method.method.guidance.guides_nowhere(levels) if levels else None
            found += [f"with models.{label}: guidance: {nowhere}"] if nowhere else []
        frames = cls.frames_of(model.folder) if model else None
        judge = metrics[method.judge].metric if method.judge is not None else None
        if frames is not None and frames > 1 and judge is not None and judge.only_stills:
            found.append(
                f"judge {method.judge!r} is defined for stills, and family {spec.family!r} (models.{label}) "
                f"makes clips of {frames} frames: take a judge that scores clips, or name models with 'models: [...]'"
            )
        if getattr(method.method.guidance, "needs_frames", False) and frames == 1:
            found.append(
                f"{type(method.method.guidance).__name__} weighs the frames of a clip, and family "
                f"{spec.family!r} (models.{label}) makes stills"
            )
        for part in (method.method.stage, method.method.guidance):
            lacking = set(getattr(part, "needs", ())) - cls.requests
            if lacking:
                found.append(
                    f"{type(part).__name__} needs {', '.join(sorted(lacking))} predictions, which family "
                    f"{spec.family!r} (models.{label}) does not give"
                )
                continue
            if getattr(part, "needs_timesteps", False) and not cls.timesteps:
                found.append(f"with models.{label}: {no_timesteps(part, spec.family)}")
            if "uncond" in getattr(part, "needs", ()) and cls.unconditional not in ("main", *spec.networks):
                found.append(f"with models.{label}: {no_unconditional(spec.family, cls.unconditional)}")
            layers = getattr(part, "needs_layers", ())
            if layers and model:
                found += [f"with models.{label}: {text}" for text in cls.layer_problems(model.folder, layers)]
            for name in getattr(part, "needs_networks", ()):
                if name not in ("main", *spec.networks):
                    near = f" ({registry.nearest(name, list(spec.networks))})" if spec.networks else ""
                    forms = " or ".join(f"'networks: {{{name}: {{{kind}: FOLDER}}}}'" for kind in cls.network_kinds)
                    found.append(
                        f"{type(part).__name__} needs a network {name!r}, which models.{label} does not have: add "
                        f"{forms} to that block{near}"
                    )
    return found


def _bad_published(benchmark: Benchmark) -> list[str]:
    labels = {
        "model": list(benchmark.models), "method": list(benchmark.methods),
        "prompts": [*benchmark.prompts, *(name for table in benchmark.tables for name in table.repeats)],
    }
    found = []
    for i, name in enumerate(benchmark.published):
        try:
            wrong = beside.agreement(published.rows(name), labels)
        except HarnessError as error:
            found.append(f"published.{i}: {error}")
            continue
        if wrong is not None:
            found.append(f"published.{i}: {name}: {wrong}")
    return found


def _bad_tables(
    benchmark: Benchmark, metrics: dict[str, ResolvedMetric], prompts: dict[str, PromptSet]
) -> list[str]:
    found = []
    theirs = [metric for name in benchmark.published for metric in dict.fromkeys(published.rows(name)["metric"])]
    columns = list(dict.fromkeys([*metrics, *theirs]))
    known = list(benchmark.methods)
    together: dict[str, tuple[int, dict[str, set[str]]]] = {}
    for i, table in enumerate(benchmark.tables):
        pairs = table.baseline if isinstance(table.baseline, dict) else {"": table.baseline}
        for method, base in pairs.items():
            key = f"tables.{i}.baseline" + (f".{method}" if method else "")
            for name in (method, base):
                if name and name not in known:
                    near = registry.nearest(name, known)
                    found.append(f"{key}: no method {name!r}: {near}")
            if method == base:
                found.append(f"{key}: {method!r} cannot be its own baseline")
            without = _without(benchmark, base, [method] if method else benchmark.methods) if base in known else None
            if without is not None:
                found.append(f"{key}: {without}")
        for baseline in table.baselines or ():
            if baseline not in known:
                near = registry.nearest(baseline, known)
                found.append(f"tables.{i}.baselines: no method {baseline!r}: {near}")
        for column in [] if table.columns == "metrics" else table.columns:
            if column not in columns:
                found.append(f"tables.{i}.columns: no metric {column!r}: {registry.nearest(column, columns)}")
        for name, how in table.repeats.items():
            labels = [label for given in how.values() for label in given]
            found += [f"tables.{i}.repeats.{name}: {text}" for text in _bad_repeats(benchmark, prompts, name, labels)]
            other, before = together.setdefault(name, (i, {key: set(given) for key, given in how.items()}))
            if before != {key: set(given) for key, given in how.items()}:
                found.append(f"tables.{i}.repeats.{name}: is something else in tables.{other}: take another name")
    return found


def _bad_repeats(
    benchmark: Benchmark, prompts: dict[str, PromptSet], name: str, labels: Sequence[str]
) -> list[str]:
    if name in benchmark.prompts:
        return ["is a label of prompts: call what is put together by another name"]
    seen: dict[tuple[str, str], str] = {}
    for label in labels:
        if label not in benchmark.prompts:
            return [f"no label {label!r} of prompts: {registry.nearest(label, list(benchmark.prompts))}"]
        chosen = [(prompts[label].id, prompt.id) for prompt in prompts[label].prompts] if label in prompts else []
        twice = next((key for key in chosen if key in seen), None)
        if twice is not None:
            return [f"{seen[twice]!r} and {label!r} have prompt {twice[1]!r} in common: no separate evaluations"]
        seen |= dict.fromkeys(chosen, label)
    return []
