"""What this installation knows by name, for `harness list`."""

import dataclasses
from typing import Any

from harness import benchmark, manifest, registry


def entries(kind: str, parameters: bool = True) -> list[dict[str, Any]]:
    """Objects with at least `name` and `about`, sorted by name; methods are noise stages and guidances.

    Without `parameters` no plug-in is imported, which takes seconds.
    """
    if kind == "benchmarks":
        return [_benchmark(name) for name in sorted(benchmark.known())]
    if kind == "prompts":
        return [_prompt_set(name) for name in sorted(manifest.known())]
    if kind == "methods":
        nouns = ("noise", "guidance")
        return [_plug_in(noun, name, parameters) | {"kind": noun} for noun in nouns for name in registry.names(noun)]
    noun = kind.removesuffix("s")
    return [_plug_in(noun, name, parameters) for name in registry.names(noun)]


def _plug_in(kind: str, name: str, parameters: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "about": registry.about(kind, name)}
    if not parameters:
        return entry
    cls = registry.load(kind, name)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return entry | {
        # Those that a guidance has in common with others (its interval) come after its own.
        "parameters": {f.name: _default(f) for f in sorted(fields, key=lambda f: bool(f.kw_only)) if f.init},
    }


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _benchmark(name: str) -> dict[str, Any]:
    path = benchmark.known()[name]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return {"name": name, "about": first.removeprefix("#").strip() if first.startswith("#") else "", "path": str(path)}


def _prompt_set(name: str) -> dict[str, Any]:
    found = manifest.load(name)
    here = all((found.folder / file.path).is_file() for file in found.files)
    return {
        "name": name, "about": found.title, "rows": found.rows, "licence": found.licence, "source": found.source,
        "here": here,
    }
