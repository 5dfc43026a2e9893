"""Several evaluations as one number: the best and the mean of three, by hand and in every form."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from harness import benchmark
from harness.analysis import beside, figures, layout, render, tables
from harness.analysis.records import MetricInfo, Record
from harness.analysis.repeats import combined
from harness.analysis.tables import TableSpec
from harness.errors import HarnessError
from tests.analysis.test_published_tables import on_terminal, published
from tests.analysis.test_sweep import outcome, record

METRICS = {"fid": MetricInfo("fid", "f", kind="distribution", higher_is_better=False)}
THREE = ["a", "b", "c"]
REPEATS = {"imagenet": {"best": THREE}, "mean-of-three": {"mean": THREE}}


def three(*values: float | None, **more: Any) -> list[Record]:
    return [record("m", "fid", v, prompts=p) | more for p, v in zip(THREE, values, strict=True)]


def test_the_best_and_the_mean_by_hand() -> None:
    found = three(1.5, 1.2, 1.8)
    found[2] |= {"n": 40, "failed": 10, "reason": "out of memory", "seconds": 3.0}
    found[0] |= {"low": 1.2, "high": 1.6}  # the others 0.1 away on both sides
    best, mean = combined(found, REPEATS)
    assert (best["prompts"], best["value"], best["low"], best["high"]) == ("imagenet", 1.2, None, None)
    assert (best["n"], best["failed"], best["reason"]) == (40, 10, "c: out of memory")
    assert (best["seconds"], best["nfe"], best["flops"]) == (2.0, 20, None)
    assert (best["quantity"], best["repeats"]) == ("best", {"a": 1.5, "b": 1.2, "c": 1.8})
    assert (mean["prompts"], mean["value"], mean["quantity"]) == ("mean-of-three", pytest.approx(1.5), "mean")
    assert mean["low"] == pytest.approx(1.5 - (0.3**2 + 0.1**2 + 0.1**2) ** 0.5 / 3)
    assert mean["high"] == pytest.approx(1.5 + (3 * 0.1**2) ** 0.5 / 3)
    assert combined(three(1.5, 1.2, 1.8, higher_is_better=True), REPEATS)[0]["value"] == 1.8


def test_it_takes_all_three_and_leaves_others_alone() -> None:
    found = [*three(1.5, None, 1.8), record("m", "fid", 7.0, prompts="other"), *three(1, 1, 1, group="cats")]
    best, mean, other = combined(found, REPEATS)
    for one in (best, mean):
        assert (one["value"], one["low"], one["reason"]) == (None, None, "b: no weights")
    assert other == found[3]
    for made in (found[:1], found[2:3]):  # an unfinished run has no records of images that it has not begun
        best, _ = combined(made, REPEATS)
        lacking = [p for p in THREE if p != made[0]["prompts"]]
        assert (best["value"], best["n"], best["failed"], best["nfe"]) == (None, 0, 0, 20)
        assert best["reason"] == "; ".join(f"{p}: no images yet" for p in lacking)
    no_ends = three(1.5, 1.2, 1.8)
    no_ends[1] |= {"low": None, "high": None}
    assert combined(no_ends, REPEATS)[1]["low"] is None


def test_a_table_beside_published_rows_of_our_models_and_of_others() -> None:
    theirs = published(("m", "fid", 1.25), ("m", "fid", 2.4))
    theirs["model"], theirs["prompts"] = ["s", "dit"], "imagenet"
    made = outcome()
    made.given, made.metrics, made.published = three(1.5, 1.2, 1.8), METRICS, theirs
    spec = TableSpec(rows=["model", "method"], repeats={"imagenet": REPEATS["imagenet"]})
    (table,) = tables.laid_out(made, spec, ci=True)
    texts = {tuple(labels): [cell.text for cell in cells[:4]] for labels, cells in table.rows}
    assert texts == {("s", "m"): ["1.25", "1.200 [–]", "-0.050", "50"], ("dit", "m"): ["2.40", "–", "–", "–"]}
    assert table.notes == ["imagenet: the best of 3 evaluations (a, b, c), n images in each; the best has no interval"]
    assert table.title == "imagenet: best of 3"
    assert "imagenet: best of 3 · method m" in "".join(on_terminal(100, table))
    assert tables.laid_out(made, replace(spec, rows=["prompts", "method"]))[0].title == ""  # a column says it
    assert "**imagenet: best of 3**\n" in tables.render(made, spec, "markdown")
    for form, text in (("markdown", "| dit | m | 2.40 |"), ("latex", "dit & m & 2.40"), ("html", "<th>dit</th>")):
        assert text in tables.render(made, spec, form)
    rows = list(csv.DictReader(io.StringIO(tables.render(made, spec, "csv"))))
    assert [(r["model"], r["fid"], r["fid:published"]) for r in rows] == [("s", "1.2", "1.25"), ("dit", "", "2.4")]
    told = [r for r in json.loads(tables.as_json(made, [spec])) if r.get("quantity") == "best"]
    assert [(r["prompts"], r["value"], r["n"]) for r in told] == [("imagenet", 1.2, 50)]
    without = TableSpec(rows=["method"], repeats={"imagenet": REPEATS["imagenet"]})  # then no row tells a model
    (table,) = tables.laid_out(made, without)
    assert [labels for labels, _ in table.rows] == [["m"]]
    assert "paper-table1: numbers of other models or prompt sets are left out (1)" in table.notes
    mean = TableSpec(rows=["model", "method"], repeats={"other-name": {"mean": THREE}})
    (table,) = tables.laid_out(made, mean, ci=True)
    assert [cells[0].text for _, cells in table.rows] == ["1.500 [1.442, 1.558]"]


def test_a_sweep_says_what_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = outcome()
    values = {"cfg-1": (1.5, 1.2, 1.8), "cfg-2": (2.0, 2.5, 1.0)}
    made.given = [record(m, "fid", v, prompts=p) for m, vs in values.items() for p, v in zip(THREE, vs, strict=True)]
    made.specs = [TableSpec(repeats=REPEATS)]
    (table,) = tables.sweeps(made, "scale", ["fid"])
    assert table.notes == [
        "imagenet: the best of 3 evaluations (a, b, c), n images in each; the best has no interval",
        "mean-of-three: the mean of 3 evaluations (a, b, c), n images in each",
    ]
    rows = list(csv.DictReader(io.StringIO(tables.render_sweeps(made, "scale", [], "csv"))))
    assert [(r["prompts"], r["at"], r["value"], r["quantity"], json.loads(r["repeats"])) for r in rows[:2]] == [
        ("imagenet", "1.0", "1.2", "best", {"a": 1.5, "b": 1.2, "c": 1.8}),
        ("imagenet", "2.0", "1.0", "best", {"a": 2.0, "b": 2.5, "c": 1.0}),
    ]
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_written", lambda figure, path: drawn.append(figure))
    tables.draw_sweeps(made, "scale", [], tmp_path / "a.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == [
        "fid, best of 3 (lower is better)", "fid, mean of 3 (lower is better)",
    ]
    made.specs = []
    assert tables.sweeps(made, "scale", ["fid"])[0].notes == []
    tables.draw_sweeps(made, "scale", [], tmp_path / "a.png")
    assert drawn[1].axes[0].get_ylabel() == "fid (lower is better)"


def test_numbers_of_other_models_are_asked_for() -> None:
    theirs = published(("m", "fid", 1.25))
    assert not beside.numbers(theirs, "value", [record("m", "fid", 1.0, prompts="p")]).found
    found = beside.numbers(theirs, "value", [record("m", "fid", 1.0, prompts="p")], other_models=True)
    assert list(found.found) == [(("sd", "m", "p"), "fid")]
    assert render.markdown(layout.lay_out([record("m", "fid", 1.0)], TableSpec(rows=["model"]), METRICS, numbers=found))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"repeats": {"x": {"least": ["a", "b"]}}}, "tables.0.repeats.x.least"),
        ({"repeats": {"x": {"best": ["a"]}}}, "tables.0.repeats.x.best"),
        ({"repeats": {"x": {"best": ["a", "a"]}}}, "repeats.x: a label of prompts stands there twice"),
        ({"repeats": {"x": {"best": ["a", "b"], "mean": ["a", "b"]}}}, "repeats.x: give 'best' or 'mean', one"),
        ({"repeats": {"x/y": {"best": ["a", "b"]}}}, "cannot name a folder"),
        ({"repeats": {"x": {"best": ["a", "b"]}}, "baseline": "m"}, "'baseline' compares or divides them"),
        ({"repeats": {"x": {"best": ["a", "b"]}}, "groups": True}, "'groups' compares or divides them"),
        ({"repeats": {"x": {"best": ["a", "b"]}}, "match": "nfe"}, "'match' compares or divides them"),
    ],
)
def test_wrong_repeats_are_refused(table: dict[str, Any], said: str) -> None:
    content = {
        "name": "t", "models": {"s": {"family": "edm2", "weights": "w"}}, "methods": {"m": {}},
        "prompts": {"a": {"set": "shapes"}, "b": {"set": "shapes"}}, "tables": [table],
    }
    with pytest.raises(HarnessError, match=said.replace("(", r"\(")):
        benchmark.parse(content, "t.yaml")
