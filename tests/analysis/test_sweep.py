"""Sweeps: which methods make a line, its points and its best, in every form and as a figure."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.analysis import sweep, tables
from harness.analysis.beside import Numbers
from harness.analysis.records import MetricInfo, Record
from harness.errors import HarnessError
from tests.analysis.world import World

INF = math.inf
METRICS = {"fid": MetricInfo("fid", "f", kind="distribution", higher_is_better=False), "hps": MetricInfo("hps", "h")}


def identity(scale: float, sampler: dict[str, Any] | None = None, **interval: Any) -> dict[str, Any]:
    parameters = {"sigma": None, "steps": None, "fraction": None, "scale": scale} | interval
    return {
        "noise": {"name": "gaussian", "parameters": {}}, "guidance": {"name": "cfg", "parameters": parameters},
        "sampler": {"name": "heun", "steps": 32} | (sampler or {}), "judge": None,
    }


IDENTITIES = {
    "cfg-1": identity(1.0), "cfg-2": identity(2.0), "cfg-3": identity(3.0),
    "in-1": identity(1.0, sigma=[0.28, 2.9]), "in-2": identity(2.0, sigma=(0.28, 2.9)),
    "in-4": identity(4.0, sigma=[0.28, 2.9]), "lone": identity(2.0, sigma=[1.0, 2.0]),
    "up": identity(2.0, sigma=[0.28, None]), "by-step": identity(2.0, steps=[3, 5]),
}
METHODS = {label: sweep.settings(given) for label, given in IDENTITIES.items()}


def record(method: str, metric: str, value: float | None, **more: Any) -> Record:
    found = {
        "model": "s", "method": method, "prompts": "p", "group": None, "metric": metric, "metric_digest": "d",
        "value": value, "low": None if value is None else value - 0.1, "high": None if value is None else value + 0.1,
        "n": 0 if value is None else 50, "nfe": 20.0, "flops": None, "seconds": 1.5, "trained": True, "failed": 0,
        "kind": METRICS[metric].kind, "higher_is_better": METRICS[metric].higher_is_better,
        "reason": "no weights" if value is None else None,
    }
    return found | more


FOUND = [record(m, "fid", v) for m, v in zip(METHODS, (3.0, 2.0, 2.5, 3.0, 1.75, 1.5, 9, 4, 8), strict=True)]


class Outcome(World):
    """A world whose records are given."""

    given: list[Record] = FOUND

    @property
    def records(self) -> list[Record]:
        return self.given


def outcome(**change: Any) -> Outcome:
    empty = pd.DataFrame({"sample_id": []})
    return replace(Outcome(empty, empty, [], METRICS, {}), parameters=METHODS, **change)


def test_settings_are_flat_and_know_the_ends_of_an_interval() -> None:
    assert METHODS["in-2"] == {
        "noise": "gaussian", "guidance": "cfg", "judge": None, "guidance.scale": 2.0, "guidance.sigma_lo": 0.28,
        "guidance.sigma_hi": 2.9, "sampler.name": "heun", "sampler.steps": 32,
    }
    assert [METHODS[m]["guidance.sigma_hi"] for m in ("cfg-2", "up")] == [INF, INF]
    assert METHODS["cfg-2"]["guidance.sigma_lo"] == 0
    assert (METHODS["by-step"]["guidance.steps_lo"], METHODS["by-step"]["guidance.steps_hi"]) == (3, 5)
    assert "guidance.sigma_lo" not in METHODS["by-step"]


def test_methods_of_a_line_differ_in_the_parameter_alone() -> None:
    inside = "σ in (0.28, 2.9]"
    assert sweep.lines(METHODS, "guidance.scale") == {
        "cfg-1": ("everywhere", 1), "cfg-2": ("everywhere", 2), "cfg-3": ("everywhere", 3),
        "in-1": (inside, 1), "in-2": (inside, 2), "in-4": (inside, 4),
    }
    assert sweep.lines(METHODS, "guidance.sigma_hi") == {"in-2": ("", 2.9), "up": ("", INF)}
    steps = {f"{m}-{t}": sweep.settings(identity(m, {"steps": t})) for m in (1.0, 2.0) for t in (8, 16)}
    assert sweep.lines(steps, "sampler.steps") == {
        "1.0-8": ("scale 1", 8), "1.0-16": ("scale 1", 16), "2.0-8": ("scale 2", 8), "2.0-16": ("scale 2", 16),
    }


def test_whole_numbers_are_the_same_as_fractions() -> None:
    given = {"open": identity(2.0), "lo-0": identity(2.0, sigma=[0, 5.42]), "two": identity(2, sigma=[0.28, 5.42])}
    methods = {label: sweep.settings(one) for label, one in given.items()}
    assert sweep.lines(methods, "guidance.sigma_hi") == {"open": ("", INF), "lo-0": ("", 5.42)}
    assert sweep.lines(methods, "guidance.sigma_lo") == {"lo-0": ("", 0), "two": ("", 0.28)}


def test_a_pair_that_is_no_interval_stays_a_pair() -> None:
    given = identity(2.0) | {"guidance": {"name": "pag", "parameters": {"scale": 3, "layers": [3, 4]}}}
    assert sweep.settings(given)["guidance.layers"] == "[3.0, 4.0]"
    assert "guidance.layers_lo" not in sweep.settings(given)


def test_lines_are_of_the_methods_that_ran_on_a_model() -> None:
    methods = {label: METHODS["cfg-2"] | {"guidance.scale": float(label[-1])} for label in ("a1", "a2", "b1", "b3")}
    methods |= {"b2": methods["a2"], "x2": METHODS["in-2"]}  # one method a model, under names of its own
    found = [record(m, "fid", v, model=m[0]) for m, v in zip(methods, (3.0, 2.0, 1.0, 5.0, 4.0, 1.0), strict=True)]
    points = sweep.points(found, methods, "fid", "guidance.scale")
    assert [(r["model"], r["method"], r["line"], r["best"]) for r in points] == [
        ("a", "a1", "", False), ("a", "a2", "", True), ("b", "b1", "", True), ("b", "b2", "", False),
        ("b", "b3", "", False),
    ]
    with pytest.raises(HarnessError, match="no two methods differ in it alone and have images of one model"):
        sweep.points([found[0], found[3]], methods, "fid", "guidance.scale")
    with_interval = [*found, record("in-1", "fid", 1.0, model="b"), record("in-2", "fid", 1.0, model="b")]
    lines = {r["line"] for r in sweep.points(with_interval, METHODS | methods, "fid", "guidance.scale")}
    assert lines == {"everywhere", "σ in (0.28, 2.9]"}  # one name for one line on all models


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), unique=True, min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_lines_are_those_of_brute_force(places: list[tuple[int, int, int]]) -> None:
    methods = {str(place): dict(zip(("a.x", "a.y", "b.x"), place, strict=True)) for place in places}
    expected = {
        str(p): p[0] for p in places if any(q[1:] == p[1:] and q[0] != p[0] for q in places)
    }
    if not expected:
        with pytest.raises(HarnessError, match="no two methods differ in it alone"):
            sweep.lines(methods, "a.x")
        return
    found = sweep.lines(methods, "a.x")
    assert {label: at for label, (_, at) in found.items()} == expected
    for p in expected:  # one name a line
        same = {q for q in expected if all(methods[q][key] == methods[p][key] for key in ("a.y", "b.x"))}
        assert {q for q in expected if found[q][0] == found[p][0]} == same


def test_points_are_in_order_and_know_the_best_of_their_line() -> None:
    found = sweep.points(FOUND[::-1], METHODS, "fid", "guidance.scale")
    assert [(r["line"], r["at"], r["best"]) for r in found if r["line"] != "everywhere"] == [
        ("σ in (0.28, 2.9]", 1, False), ("σ in (0.28, 2.9]", 2, False), ("σ in (0.28, 2.9]", 4, True),
    ]
    assert [r["method"] for r in found if r["best"]] == ["in-4", "cfg-2"]
    better = [r | {"higher_is_better": True} for r in FOUND]
    highest = sweep.points(better, METHODS, "fid", "guidance.scale")
    assert [r["method"] for r in highest if r["best"]] == ["cfg-1", "in-1"]
    none = [record("cfg-1", "fid", None), record("cfg-2", "fid", 2.0)]
    assert [r["best"] for r in sweep.points(none, METHODS, "fid", "guidance.scale")] == [None, False]  # of one value


def test_a_parameter_is_named_by_its_last_part() -> None:
    assert sweep.chosen(METHODS, "scale") == sweep.chosen(METHODS, "guidance.scale") == "guidance.scale"
    two = {"a": {"noise.steps": 1, "sampler.steps": 5}, "b": {"noise.steps": 2, "sampler.steps": 5}}
    assert sweep.chosen(two, "steps") == "noise.steps"
    two["c"] = {"noise.steps": 2, "sampler.steps": 6}
    for wanted, said in (("steps", "which one: noise.steps, sampler.steps"), ("foo", "is no parameter of a method")):
        with pytest.raises(HarnessError, match=said):
            sweep.chosen(two, wanted)
    with pytest.raises(HarnessError, match=r"steps: has one value alone in this run; .*differ: guidance\.scale, "):
        sweep.chosen(METHODS, "steps")
    with pytest.raises(HarnessError, match="guidance: has one value alone"):  # a word is no number
        sweep.chosen(METHODS, "guidance")


def test_the_table_has_a_row_a_value_and_a_column_a_line() -> None:
    (table,) = tables.sweeps(outcome(), "scale", ["fid"])
    assert ([c.key for c in table.columns], table.labels) == (["everywhere", "σ in (0.28, 2.9]"], ["scale"])
    assert [(labels, [c.text for c in cells]) for labels, cells in table.rows] == [
        (["1"], ["3.000 [2.900, 3.100]"] * 2), (["2"], ["2.000 [1.900, 2.100]", "1.750 [1.650, 1.850]"]),
        (["3"], ["2.500 [2.400, 2.600]", "–"]), (["4"], ["–", "1.500 [1.400, 1.600]"]),
    ]
    assert [[c.rank for c in cells] for _, cells in table.rows] == [[0, 0], [1, 0], [0, 0], [0, 1]]
    assert "n = 50 images a value" in table.caption
    for form, text in (("markdown", "| 2 | **2.000 ["), ("latex", r"$\sigma$ in"), ("html", "<th>4</th>")):
        assert text in tables.render_sweeps(outcome(), "scale", [], form)


def test_all_points_as_csv_and_json() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.render_sweeps(outcome(), "sigma_hi", [], "csv"))))
    assert [(r["method"], r["at"], r["value"], r["best"]) for r in rows] == [
        ("in-2", "2.9", "1.75", "True"), ("up", "", "4.0", "False"),
    ]
    found = json.loads(tables.render_sweeps(outcome(), "sigma_hi", [], "json"))
    assert [(r["at"], r["parameter"]) for r in found] == [(2.9, "guidance.sigma_hi"), (None, "guidance.sigma_hi")]


def test_published_numbers_stand_in_our_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.analysis.beside import Number

    theirs = Numbers({(("s", "cfg-2", "p"), "fid"): Number(181.0, "t", "p")}, {"fid": 100.0})
    monkeypatch.setattr(tables, "numbers", lambda *_: theirs)
    found = json.loads(tables.render_sweeps(outcome(), "scale", [], "json"))
    assert {r["method"]: r["published"] for r in found if r["published"] is not None} == {"cfg-2": 1.81}


@pytest.mark.parametrize("parameter", ["scale", "sigma_hi"])
def test_the_figure(parameter: str, tmp_path: Path) -> None:
    tables.draw_sweeps(outcome(), parameter, [], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert 900 < image.width < 1100  # one panel
        assert image.convert("L").getextrema() == (0, 255)
    with pytest.raises(HarnessError, match=r"expected a file that ends in \.png"):
        tables.draw_sweeps(outcome(), parameter, [], tmp_path / "a.pdf")
