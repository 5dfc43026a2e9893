"""A method of the user's own, given on the command line: `mine.py:Mine` or `package.module:Name{"strength": 0.5}`."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from harness import benchmark as benchmarks
from harness import registry
from harness.benchmark import Benchmark
from harness.errors import HarnessError

FORM = re.compile(r"(?P<where>[^{}]+):(?P<name>\w+)\s*(?P<parameters>\{.*\})?", re.DOTALL)


def add(benchmark: Benchmark, text: str) -> tuple[Benchmark, str, tuple[str, ...]]:
    """The benchmark with one more method, that method's label (the name of its class), and where its file lies.

    A noise stage is given the guidance and sampler of the baseline of the benchmark's tables (the first, where methods
    have their own) and, where it needs one, the judge of the first method that has one; a guidance that sampler.

    Raises:
        HarnessError: not of the form, no such file or class, neither a noise stage nor a guidance, a label that the
            benchmark has already, or a stage that needs a judge where no method has one.
    """
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise HarnessError(f"--method {text!r}: expected FILE.py:NAME or package.module:NAME, and parameters, if any, "
                           "as {\"strength\": 0.5} behind it")
    module, folders = _module(found["where"])
    label, place = found["name"], f"{module}:{found['name']}"
    if label in benchmark.methods:
        raise HarnessError(f"--method {text}: the benchmark has a method {label!r}; give the class another name")
    registry.look_in(folders)
    kind = _kind(text, registry.load("noise", place), folders)
    base = next((table.baseline for table in benchmark.tables if table.baseline), None)
    base = next(iter(base.values()), None) if isinstance(base, dict) else base
    beside = benchmark.methods[base].model_dump() if base in benchmark.methods else {}
    parameters = _parameters(text, found["parameters"])
    method = {"guidance": beside.get("guidance"), "sampler": beside.get("sampler") or {}, kind: {place: parameters}}
    if kind == "noise" and getattr(registry.build("noise", place, parameters), "needs_judge", False):
        method["judge"] = next((spec.judge for spec in benchmark.methods.values() if spec.judge), None)
        if method["judge"] is None:
            raise HarnessError(f"--method {text}: this noise stage needs a judge, and no method of the benchmark has "
                               f"one: name it in the benchmark file, methods: {{{label}: {{noise: {{'{place}': "
                               f"{parameters}}}, judge: METRIC}}}}")
    content = benchmark.model_dump(exclude_unset=True)
    content["methods"] = {name: spec.model_dump() for name, spec in benchmark.methods.items()} | {label: method}
    return benchmarks.parse(content, "--method"), label, folders


def _module(where: str) -> tuple[str, tuple[str, ...]]:
    """The module's name, and the folder of a file."""
    if not where.endswith(".py"):
        return where, ()
    path = Path(where)
    if not path.is_file():
        raise HarnessError(f"--method: no file {where}")
    if not path.stem.isidentifier():
        raise HarnessError(f"--method: {where} cannot be imported: a module's name has letters, digits and '_' alone")
    return path.stem, (str(path.resolve().parent),)


def _kind(text: str, cls: Any, folders: tuple[str, ...]) -> str:
    """`noise` or `guidance`, by what the class has."""
    source = inspect.getsourcefile(cls) if inspect.isclass(cls) else None
    if source is not None and folders and Path(source).resolve().parent != Path(folders[0]):
        raise HarnessError(f"--method {text}: a module of this name is {source}; give the file another name")
    if not inspect.isclass(cls) or not dataclasses.is_dataclass(cls):
        raise HarnessError(f"--method {text}: expected a dataclass (docs/add-a-method.md)")
    if hasattr(cls, "requests") and hasattr(cls, "combine"):
        return "guidance"
    if "__call__" in dir(cls):
        return "noise"
    raise HarnessError(f"--method {text}: neither a noise stage (`__call__(ctx)`) nor a guidance (`requests` and "
                       f"`combine`); docs/add-a-method.md makes one of each")


def _parameters(text: str, given: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(given or "{}")
    except yaml.YAMLError as error:
        raise HarnessError(f"--method {text}: the parameters are not JSON: {error}") from error
    if not isinstance(found, dict):
        raise HarnessError(f"--method {text}: expected parameters as {{\"name\": value}}")
    return found
