"""A metric against a parameter in which methods differ: which methods make a line, and the best of each line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from harness.analysis.records import Record
from harness.errors import HarnessError

Settings = Mapping[str, Any]  # a method's parameters by name: numbers, words, None
Label = TypeVar("Label", str, tuple[str, str])  # of a method; or of a model and a method
ENDS = ("sigma", "steps", "fraction")  # of a guidance: the forms in which an interval is given, one at most
MODEL = "model"  # where a line is of one model, among the settings that its methods share


def settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What `harness.method.method_identity` holds, flat: `guidance`, `guidance.scale`, `sampler.steps`, ...

    Numbers are floats, so that 2 and 2.0 are one value. The ends of an interval are `guidance.sigma_lo` and
    `guidance.sigma_hi`; without an upper end that is infinity. A guidance that takes an interval and has none is guided
    in (0, infinity], everywhere.
    """
    found: dict[str, Any] = {"judge": identity.get("judge")}
    for part in ("noise", "guidance"):
        found[part] = identity[part]["name"]
        parameters = dict(identity[part]["parameters"])
        if part == "guidance" and set(ENDS) <= set(parameters):
            given = {key: parameters.pop(key) for key in ENDS}
            given = {key: ends for key, ends in given.items() if ends is not None} or {"sigma": (0.0, None)}
            for key, (low, high) in given.items():
                parameters |= {f"{key}_lo": low, f"{key}_hi": math.inf if high is None else high}
        found |= _flat(part, parameters)
    return found | _flat("sampler", identity["sampler"])


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: inner for part, given in value.items() for key, inner in _flat(f"{name}.{part}", given).items()}
    if isinstance(value, list | tuple):
        return {name: json.dumps([_number(part) for part in value])}
    return {name: _number(value)}


def _number(value: Any) -> Any:
    return float(value) if _is_number(value) else value


def chosen(methods: Mapping[str, Settings], wanted: str) -> str:
    """The full name of the parameter that `wanted` stands for: itself, or its last part where only one has that.

    Raises:
        HarnessError: no method has it, it is no number, or it has one value alone.
    """
    names = dict.fromkeys(name for given in methods.values() for name in given)
    found = [name for name in names if wanted in (name, name.rpartition(".")[2])]
    several = [name for name in names if len(_values(methods, name)) > 1]
    if len(found) > 1:
        found = [name for name in found if name in several] or found
    if len(found) > 1:
        raise HarnessError(f"--sweep {wanted}: which one: {', '.join(found)}?")
    if not found or found[0] not in several:
        why = "has one value alone in this run" if found else "is no parameter of a method of this run"
        known = ", ".join(several) or "none"
        raise HarnessError(f"--sweep {wanted}: {why}; numbers in which methods differ: {known}")
    return found[0]


def _values(methods: Mapping[str, Settings], name: str) -> set[float]:
    return {float(given[name]) for given in methods.values() if _is_number(given.get(name))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def placed(
    methods: Mapping[str, Settings], name: str, ran: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, float]]:
    """`lines` within each model, of the methods that ran on it: by model and method, the pairs of `ran`.

    Raises:
        HarnessError: as `lines` does.
    """
    return lines({place: {**methods[place[1]], MODEL: place[0]} for place in ran if place[1] in methods}, name)


def lines(methods: Mapping[Label, Settings], name: str) -> dict[Label, tuple[str, float]]:
    """By method its line and its value of the parameter. The methods of a line differ in that parameter alone; those
    that differ in it from no other are left out. A line is called by what tells it from the others ("" where there
    is one): `σ in (0.28, 2.9]`, `steps 16`, `everywhere`.

    Raises:
        HarnessError: no two methods differ in it alone.
    """
    having = {label: given for label, given in methods.items() if _is_number(given.get(name))}
    rest = {label: {key: v for key, v in given.items() if key != name} for label, given in having.items()}
    together: dict[str, dict[float, Label]] = {}
    for label, given in rest.items():
        line = together.setdefault(json.dumps(given, sort_keys=True, default=str), {})
        line.setdefault(float(having[label][name]), label)
    kept = [list(line.values()) for line in together.values() if len(line) > 1]
    if not kept:
        raise HarnessError(f"--sweep {name}: no two methods differ in it alone and have images of one model, so that "
                           f"there is no line to draw")
    told = _told(rest, [line[0] for line in kept])
    return {label: (told[line[0]], float(having[label][name])) for line in kept for label in line}


def _told(rest: Mapping[Label, Settings], first: Sequence[Label]) -> dict[Label, str]:
    """By the first method of each line what tells it from the others, but for its model."""
    keys = dict.fromkeys(key for label in first for key in rest[label] if key != MODEL)
    differing = [key for key in keys if len({json.dumps(rest[label].get(key), default=str) for label in first}) > 1]
    short = {key: key.rpartition(".")[2] for key in differing}
    words = {key: short[key] if list(short.values()).count(short[key]) == 1 else key for key in differing}
    return {label: ", ".join(_parts(rest[label], words)) for label in first}


def _parts(given: Settings, words: Mapping[str, str]) -> list[str]:
    """The settings that tell a line, an interval of noise levels as one."""
    parts = []
    for key, word in words.items():
        kind, _, end = key.rpartition("_")
        if end in ("lo", "hi") and f"{kind}_lo" in given and f"{kind}_hi" in given:
            text = _interval(kind.rpartition(".")[2], given[f"{kind}_lo"], given[f"{kind}_hi"])
        else:
            text = f"{word} {value_text(given.get(key))}" if key in given else ""
        parts += [text] if text and text not in parts else []
    return parts


def _interval(kind: str, low: Any, high: Any) -> str:
    if kind != "sigma":
        return f"{kind} {value_text(low)} to {value_text(high)}"
    return "everywhere" if (low, high) == (0, math.inf) else f"σ in ({value_text(low)}, {value_text(high)}]"


def value_text(value: Any) -> str:
    """A parameter's value as people write it: `2`, `0.28`, `∞`, `ddim`."""
    if not _is_number(value):
        return "none" if value is None else str(value)
    return "∞" if value == math.inf else f"{value:g}"


def points(records: Sequence[Record], methods: Mapping[str, Settings], metric: str, name: str) -> list[Record]:
    """The overall records of a metric on the lines of a parameter, in its order within each (model, prompts, line).

    Each has `parameter`, its value `at`, its `line`, and `best`, whether its value is the best of the line (None
    without a value, False where the line has no other).

    Raises:
        HarnessError: as `lines` does.
    """
    overall = [record for record in records if record["group"] is None]
    where = placed(methods, name, dict.fromkeys(_place(record) for record in overall))
    mine = [
        record | {"parameter": name, "at": where[_place(record)][1], "line": where[_place(record)][0]}
        for record in overall if record["metric"] == metric and _place(record) in where
    ]
    found: list[Record] = []
    for key in dict.fromkeys(_line(r) for r in mine):
        line = sorted((r for r in mine if _line(r) == key), key=lambda r: r["at"])
        values = [r["value"] for r in line if r["value"] is not None]
        best = (max if line[0].get("higher_is_better", True) else min)(values, default=None)
        found += [
            r | {"best": None if r["value"] is None else len(values) > 1 and r["value"] == best} for r in line
        ]
    return found


def _place(record: Record) -> tuple[str, str]:
    return record["model"], record["method"]


def _line(record: Record) -> tuple[str, str, str]:
    return record["model"], record["prompts"], record["line"]
