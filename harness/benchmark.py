"""The benchmark file as typed models. Every error names the file, the key and what was expected."""

import itertools
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import HarnessError
from harness.prompt_formats import SUFFIXES
from harness.registry import nearest
from harness.weights import HUB_ID

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
NETWORK = re.compile(r"[A-Za-z0-9_-]{1,100}")
ROLES = ("id", "text", "category", "class_label", "image", "truth")  # what a column of a prompt set can be
HUB = "hub:"  # before the id of a data set on the Hugging Face Hub


def _label(value: str) -> str:
    if not LABEL.fullmatch(value) or len(value) > 100:
        raise ValueError(
            f"{value!r} cannot name a folder: use letters, digits, '.', '_', '+' and '-', starting with a letter "
            f"or a digit, at most 100 of them"
        )
    return value


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or PurePath(name).suffix.lower() in SUFFIXES


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=False)


class NetworkSpec(Strict):
    """A further network of a model: one with weights of its own, or the model's own with a LoRA switched on."""

    weights: str | None = None
    lora: str | None = None
    revision: str | None = None
    made_by: str | None = None  # the command that makes it, for one that nobody publishes

    @property
    def source(self) -> str:
        """Where it comes from, `weights` or `lora`."""
        return self.weights or str(self.lora)

    @model_validator(mode="after")
    def _one_source(self) -> "NetworkSpec":
        if (self.weights is None) == (self.lora is None):
            raise ValueError("give 'weights' (a folder with a unet/) or 'lora', one of the two")
        return self


class ModelSpec(Strict):
    """A model block. What is decided here is the same for every method: dtype, size, micro-batch, threads."""

    family: str
    weights: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    size: int | None = Field(None, ge=1)
    batch: int = Field(8, ge=1)
    device: str = "auto"  # "auto": a GPU where the worker has one, else the CPU
    threads: int = Field(1, ge=1)  # a worker's CPU threads; fixed here because they can change the last bits
    gpus: float = Field(1, gt=0)  # GPUs (or a fraction of one) a worker takes, where there are any
    networks: dict[str, NetworkSpec] = {}

    @field_validator("networks")
    @classmethod
    def _network_names(cls, value: dict[str, NetworkSpec]) -> dict[str, NetworkSpec]:
        for name in value:
            if name == "main" or not NETWORK.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a network: use letters, digits, '_' and '-'; 'main' is the "
                                 f"model's own")
        return value


class PromptSpec(Strict):
    """Which prompts of which set. Without a selection: all of them.

    `set` is a known set, a name of one's own for the file `path`, or `hub:ORGANISATION/NAME`. `{set: a/list.csv}` is
    short for `{set: list, path: a/list.csv}`, and a plain `list.csv` (or `drawbench`) for that.
    """

    set: str
    path: str | None = None  # the set's file, or the folder of its files, where it is not where the manifest says
    columns: dict[str, str] = {}  # which column is id, text, category, class_label, image, truth
    accept: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = []  # SHA-256 of files that are taken as they are
    config: str | None = None  # of a data set on the Hub, as are:
    split: str | None = None
    revision: str | None = None
    nsfw: bool = False  # marks a list of one's own; those that are known to need it are marked already
    first: int | None = Field(None, ge=1)
    sample: int | None = Field(None, ge=1)
    category: str | list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        block = {"set": value} if isinstance(value, str) else value
        if not isinstance(block, dict):
            return block
        if isinstance(block.get("accept"), str):
            block = block | {"accept": [block["accept"]]}
        name = block.get("set")
        if isinstance(name, str) and not name.startswith(HUB) and _is_path(name):
            if block.get("path") is not None:
                raise ValueError(f"the file stands here twice: as set {name!r} and as path {block['path']!r}")
            block = block | {"set": PurePath(name).stem, "path": name}
        return block

    @field_validator("set")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if value.startswith(HUB):
            if not re.fullmatch(HUB_ID, value.removeprefix(HUB)):
                raise ValueError(f"expected hub:ORGANISATION/NAME, got {value!r}")
        elif not LABEL.fullmatch(value) or len(value) > 100:
            raise ValueError(
                f"{value!r} cannot name a prompt set: use letters, digits, '.', '_', '+' and '-'; for a file of "
                f"another name write {{set: NAME, path: FILE}}"
            )
        return value

    @model_validator(mode="after")
    def _what_goes_together(self) -> "PromptSpec":
        if self.first is not None and self.sample is not None:
            raise ValueError("give 'first' or 'sample', not both")
        for role in self.columns:
            if role not in ROLES:
                raise ValueError(f"columns: no role {role!r}: {nearest(role, list(ROLES))}")
        if self.columns and "text" not in self.columns:
            raise ValueError("columns: say which column is the text, as in {text: caption}")
        hub = self.set.startswith(HUB)
        for key in ("path", "accept") if hub else ("config", "split", "revision"):
            if getattr(self, key):
                raise ValueError(f"{key!r} has no meaning for a {'data set on the Hub' if hub else 'file here'}")
        return self


class MethodSpec(Strict):
    """A noise stage with a guidance, and where the method needs them its own sampler and judge."""

    noise: Any = None  # a name, or {name: parameters}; None is plain Gaussian noise
    guidance: Any = None  # likewise; None is no guidance
    sampler: dict[str, Any] = {}
    judge: str | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None  # the models it runs on; None: all
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = None

    def runs_on(self, model: str) -> bool:
        """Whether it runs on the model of this label."""
        return self.models is None or model in self.models


class TableSpec(Strict):
    """One table of the run (docs/tables.md)."""

    rows: list[Literal["model", "method", "prompts"]] = ["prompts", "method"]
    columns: Literal["metrics"] | list[str] = "metrics"
    baseline: str | dict[str, str] | None = None  # of all other methods, or by method its own
    groups: bool = False
    average: bool = False  # a last column: the plain mean of the metrics, as papers print it
    show: Literal["value", "win_rate"] = "value"
    match: Literal["nfe", "flops"] | None = None  # compares each method with what the same cost buys otherwise
    baselines: list[str] | None = None  # for `match`; without: all methods of plain noise, best of N, zero-order search
    # Several selections of prompts as one, by the label that it gets: {imagenet: {best: [seeds-0, seeds-1, seeds-2]}}.
    repeats: dict[str, dict[Literal["best", "mean"], Annotated[list[str], Field(min_length=2)]]] = {}

    @model_validator(mode="after")
    def _wins_against_something(self) -> "TableSpec":
        if self.show == "win_rate" and not self.baseline:
            raise ValueError("'show: win_rate' needs a 'baseline', the method that the others are to beat")
        return self

    @model_validator(mode="after")
    def _baselines_are_used(self) -> "TableSpec":
        if self.baselines is not None and self.match is None:
            raise ValueError("'baselines' belongs to 'match: nfe' or 'match: flops'; 'baseline' alone needs no match")
        return self

    @model_validator(mode="after")
    def _repeats_stand_alone(self) -> "TableSpec":
        for name, how in self.repeats.items():
            _label(name)
            if len(how) != 1:
                raise ValueError(f"repeats.{name}: give 'best' or 'mean', one of the two")
            (labels,) = how.values()
            if len(set(labels)) < len(labels):
                raise ValueError(f"repeats.{name}: a label of prompts stands there twice")
        for key in ("baseline", "groups", "match") if self.repeats else ():
            if getattr(self, key):
                raise ValueError(f"'repeats' shows values, and {key!r} compares or divides them: give it a table of "
                                 f"its own")
        return self


class Paper(Strict):
    """The paper that a benchmark reproduces."""

    title: str
    arxiv: str | None = None
    table: int | str | None = None


class Benchmark(Strict):
    """One benchmark file, its sweeps expanded to one method a value."""

    name: str
    paper: Paper | None = None
    models: dict[str, ModelSpec] = Field(min_length=1)
    prompts: dict[str, PromptSpec] = Field(min_length=1)
    # At most what a row of the results holds; torch's generators take as much.
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**63 - 1)]], Field(min_length=1)] = [0]
    seeding: str = "identity"
    sampler: dict[str, Any] = {}
    methods: dict[str, MethodSpec] = Field(min_length=1)
    metrics: list[str | dict[str, dict[str, Any]]] = []
    tables: list[TableSpec] = [TableSpec()]
    published: list[str] = []  # tables of results/published, whose numbers stand beside ours

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return _label(value)

    @field_validator("models", "prompts")  # a method's label is checked once its sweep is expanded
    @classmethod
    def _labels(cls, value: dict[str, Any]) -> dict[str, Any]:
        for label in value:
            _label(label)
        return value

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: list[int]) -> list[int]:
        for seed, group in itertools.groupby(sorted(value)):
            if len(list(group)) > 1:
                raise ValueError(f"seed {seed} is listed twice")
        return value

    @field_validator("seeding")
    @classmethod
    def _known_seeding(cls, value: str) -> str:
        if value not in ("identity", "literal", "published") and not re.fullmatch(r"column:.+", value):
            raise ValueError(f"expected identity, literal, published or 'column:NAME', got {value!r}")
        return value

    @field_validator("metrics")
    @classmethod
    def _single_metrics(cls, value: list[Any]) -> list[Any]:
        seen = set()
        for entry in value:
            if isinstance(entry, dict) and len(entry) != 1:
                raise ValueError(f"a metric is a name or one {{name: parameters}}, got {entry!r}")
            name, _ = named(entry)
            if name in seen:
                raise ValueError(f"metric {name!r} is listed twice")
            seen.add(name)
        return value

    def limited(self, limit: int | None) -> "Benchmark":
        """The same benchmark with at most `limit` prompts of each set and the first seed."""
        if limit is None:
            return self
        prompts = {
            label: spec.model_copy(update={"sample": min(limit, spec.sample)})
            if spec.sample
            else spec.model_copy(update={"first": min(limit, spec.first or limit)})
            for label, spec in self.prompts.items()
        }
        return self.model_copy(update={"prompts": prompts, "seeds": self.seeds[:1]})


def named(entry: Any) -> tuple[str, dict[str, Any]]:
    """`"cfg"` or `{"cfg": {"scale": 5}}` as name and parameters.

    Raises:
        ValueError: neither of these forms.
    """
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, parameters = next(iter(entry.items()))
        if parameters is None:
            parameters = {}
        if isinstance(name, str) and isinstance(parameters, dict):
            return name, parameters
    raise ValueError(f"expected a name or one {{name: {{parameter: value}}}}, got {entry!r}")


class _UniqueKeys(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; a benchmark must not lose a method that way."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def resources(kind: str) -> Path:
    """The folder `benchmarks`, `datasets`, `published` or `leaderboard`: inside an installed package, or in a checkout
    beside it; the last two under results/."""
    package = Path(str(files("harness")))
    places = [root / name for root in (package, package.parent) for name in (kind, f"results/{kind}")]
    return next((place for place in places if place.is_dir()), package.parent / kind)


def known() -> dict[str, Path]:
    """Benchmarks by name: those that ship, and those under ./benchmarks, which win.

    A name is the file's, with its folder only where a file further up has the same (`studies/shapes-noise`).
    """
    found: dict[str, Path] = {}
    for folder in (resources("benchmarks"), Path("benchmarks")):
        here: dict[str, Path] = {}
        for path in sorted(folder.glob("**/*.yaml"), key=lambda path: (len(path.parts), path)):
            name = path.stem if path.stem not in here else path.relative_to(folder).with_suffix("").as_posix()
            here[name] = path
        found |= here
    return found


def find(name: str) -> Path:
    """The file of a benchmark given as a path or a known name."""
    paths = known()
    if name in paths:
        return paths[name]
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise HarnessError(f"benchmark file {name}: no such file")
        return path
    raise HarnessError(f"unknown benchmark {name!r}: {nearest(name, sorted(paths))} (or give a path to a .yaml)")


def load(path: Path) -> Benchmark:
    """Reads a benchmark file.

    Raises:
        HarnessError: not YAML, an unknown or repeated key, a value of the wrong type.
    """
    return parse(read_mapping(path, "name, models, prompts and methods"), str(path))


def read_mapping(path: Path, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file; `keys` is what an error says that it should hold.

    Raises:
        HarnessError: not readable, not YAML, a key that stands there twice, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise HarnessError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise HarnessError(f"{path}: expected a mapping with {keys}")
    return content


def parse(content: dict[str, Any], source: str) -> Benchmark:
    """A benchmark from plain data; `source` is what error messages call it."""
    try:
        benchmark = Benchmark.model_validate(content)
    except ValidationError as error:
        raise HarnessError(explain(source, error, _keys_at)) from error
    return benchmark.model_copy(update={"methods": _expand(benchmark.methods, source)})


def explain(source: str, error: ValidationError, keys_at: Callable[[tuple[Any, ...]], list[str]]) -> str:
    """What a validation found, a line a problem; `keys_at` gives the keys that are known at a place."""
    return "\n".join(_explain(source, problem, keys_at) for problem in error.errors())


def _explain(source: str, problem: Any, keys_at: Callable[[tuple[Any, ...]], list[str]]) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part != "str" and not str(part).startswith("dict["))
    where = f"{source}: {place}: " if place else f"{source}: "
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key: {nearest(str(problem['loc'][-1]), keys_at(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{where}this key is required"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{where}{message}{given}"


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    blocks: dict[str, type[BaseModel]] = {
        "models": ModelSpec, "prompts": PromptSpec, "methods": MethodSpec, "tables": TableSpec, "paper": Paper,
    }
    block = blocks.get(str(place[0]), Benchmark) if place else Benchmark
    if "networks" in place[2:]:
        block = NetworkSpec
    return sorted(block.model_fields)


def _expand(methods: dict[str, MethodSpec], source: str) -> dict[str, MethodSpec]:
    """A sweep (`"cfg-{w}": {grid: {w: [1, 3]}, ...}`) as one method a value."""
    expanded: dict[str, MethodSpec] = {}
    for label, spec in methods.items():
        variants: list[dict[str, Any]] = [{}]
        if spec.grid:
            variants = [
                dict(zip(spec.grid, values, strict=True)) for values in itertools.product(*spec.grid.values())
            ]
        for variant in variants:
            try:
                name = _label(label.format(**variant) if spec.grid else label)
                filled = MethodSpec(
                    noise=_fill(spec.noise, variant), guidance=_fill(spec.guidance, variant),
                    sampler=_fill(spec.sampler, variant), judge=spec.judge, models=spec.models,
                )
            except (KeyError, IndexError, ValueError) as error:
                raise HarnessError(f"{source}: methods.{label}: {_grid_fault(error)}") from error
            if name in expanded:
                raise HarnessError(f"{source}: methods.{label}: two methods are called {name!r}")
            expanded[name] = filled
    return expanded


def _grid_fault(error: Exception) -> str:
    if isinstance(error, KeyError | IndexError):
        return f"the label names {error}, which its grid does not give"
    return str(error)


def _fill(value: Any, variant: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(inner, variant) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, variant) for inner in value]
    if isinstance(value, str):
        for name, given in variant.items():
            if value == "{" + name + "}":
                return given
    return value
