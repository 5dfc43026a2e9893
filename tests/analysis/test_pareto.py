"""Pareto fronts over cost, and baselines matched by cost: rules against brute force, and their tables."""

import csv
import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.analysis import layout, matching, pareto, tables
from harness.analysis.layout import TableSpec
from harness.analysis.records import scored_rows
from harness.errors import HarnessError
from tests.analysis.world import METRICS, World, world

FEW = st.sampled_from([1.0, 2.0, 3.0, 4.0])  # few values: many ties
NUMBER = st.one_of(FEW, st.none(), st.just(math.nan), st.floats(0.1, 10))


@given(st.lists(st.tuples(NUMBER, NUMBER), max_size=12), st.booleans())
def test_the_front_is_that_of_brute_force(points: list[tuple[float | None, float | None]], higher: bool) -> None:
    found = pareto.dominators([c for c, _ in points], [v for _, v in points], higher)
    known = [
        i for i, (c, v) in enumerate(points)
        if c is not None and v is not None and not math.isnan(c) and not math.isnan(v)
    ]

    def dominates(j: int, i: int) -> bool:
        (cj, vj), (ci, vi) = points[j], points[i]
        assert cj is not None and vj is not None and ci is not None and vi is not None  # noqa: PT018
        no_worse = vj >= vi if higher else vj <= vi
        return cj <= ci and no_worse and (cj, vj) != (ci, vi)

    front = {i for i in known if not any(dominates(j, i) for j in known)}
    assert {i for i, k in enumerate(found) if k == i} == front
    for i, k in enumerate(found):
        if i not in known:
            assert k == pareto.MISSING
        elif i not in front:
            assert k in front
            assert dominates(k, i)
            better = [points[j][1] for j in known if dominates(j, i)]
            assert points[k][1] == (max if higher else min)(better)  # type: ignore[type-var]


def test_equal_points_share_the_front_and_the_cheaper_of_equal_quality_wins() -> None:
    assert pareto.dominators([1, 1, 2, 3], [5, 5, 5, 6]) == [0, 1, 0, 3]
    assert pareto.dominators([1, 2, 3], [5, 4, 3], higher_is_better=False) == [0, 1, 2]
    assert pareto.dominators([1, 2, None, 3], [math.nan, 4, 9, 3]) == [-1, 1, -1, 1]


@pytest.fixture(scope="module")
def w() -> World:
    """cfg-3 without its gain and twice as dear as no-guidance: it is dominated."""
    made = world(prompts=9)
    worse = made.scores["sample_id"].str.startswith("cfg-3") & (made.scores["metric"] == "clipscore-shapes")
    made.scores.loc[worse, "value"] -= 0.5
    return made


def test_points_and_their_table(w: World) -> None:
    found = pareto.points(w.records, "clipscore-shapes", "flops")
    assert [(r["method"], r["front"], r["dominated_by"]) for r in found] == [
        ("no-guidance", True, None), ("cfg-3", False, "no-guidance"), ("best_of_6", True, None),
    ]
    (table,) = tables.fronts(w, "flops", ["clipscore-shapes"])
    cells = {key[-1]: [cell.text for cell in row] for key, row in table.rows}
    assert cells["cfg-3"][0] == "40.0 G"
    assert cells["cfg-3"][3] == "no-guidance"
    assert cells["cfg-3"][4].startswith("-0.100")  # 0.7 - 0.3 - 0.5, exactly paired
    assert cells["no-guidance"][3:] == ["", "", ""]
    assert [row[1].rank for _, row in table.rows] == [1, 0, 1]
    assert table.notes == ["best_of_6 chooses by clipscore-shapes itself: no independent evidence there"]
    lower = pareto.points(w.records, "fd-shapes-clip", "nfe")  # 5, 2.5, 0.42: each dearer one is better
    assert [r["front"] for r in lower] == [True, True, True]
    nothing = pareto.points(w.records, "pickscore", "nfe")
    assert {(r["front"], r["dominated_by"]) for r in nothing} == {(None, None)}


@pytest.mark.parametrize("form", ["markdown", "latex", "html", "csv", "json"])
def test_fronts_in_every_form(w: World, form: str) -> None:
    text = tables.render_fronts(w, "nfe", ["clipscore-shapes", "pickscore"], form)
    if form == "csv":
        rows = list(csv.DictReader(StringIO(text)))
        assert [(r["method"], r["metric"], r["front"], r["dominated_by"]) for r in rows][1:4] == [
            ("cfg-3", "clipscore-shapes", "False", "no-guidance"), ("best_of_6", "clipscore-shapes", "True", ""),
            ("no-guidance", "pickscore", "", ""),
        ]
        assert float(rows[1]["nfe"]) == 40
    elif form == "json":
        assert [r["dominated_by"] for r in json.loads(text)] == [None, "no-guidance", None, None, None, None]
    else:
        assert text.count("no-guidance") >= 3
        assert "harness fetch pickscore" in text


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("nothing", "no images; `harness run BENCHMARK` makes them"),
        ("images", "27 images, but names no metrics to score them with; `harness score RUN --metric NAME`"),
        ("metrics", "27 images, but no scores; `harness score RUN` makes them"),
    ],
)
@pytest.mark.parametrize("wanted", [[], ["clipscore-shapes"]])
def test_a_run_without_values_says_what_to_do(w: World, left: str, said: str, wanted: list[str], tmp_path) -> None:
    rows = w.rows[:0] if left == "nothing" else w.rows[:27]
    metrics = {} if left == "images" else w.metrics
    bare = replace(w, rows=rows, scores=w.scores[:0], distribution=[], metrics=metrics)
    if left == "metrics" and wanted:  # the table has its reasons
        assert "–" in tables.render_fronts(bare, "nfe", wanted, "markdown")
        return
    wanted = wanted if metrics else []
    for ask in (
        lambda: tables.fronts(bare, "nfe", wanted), lambda: tables.render_fronts(bare, "nfe", wanted, "csv"),
        lambda: tables.draw_fronts(bare, "nfe", wanted, tmp_path / "front.png"),
    ):
        with pytest.raises(HarnessError, match=f"no values yet: this run has {said}"):
            ask()
    assert not list(tmp_path.iterdir())


def test_an_unknown_metric_and_a_figure_of_another_kind_are_refused(w: World, tmp_path) -> None:
    with pytest.raises(HarnessError, match="--metric fid: this run has no such metric; it has geneval-shapes"):
        tables.fronts(w, "nfe", ["fid"])
    with pytest.raises(HarnessError, match="expected a file that ends in"):
        tables.draw_fronts(w, "nfe", [], tmp_path / "front.pdf")
    tables.draw_fronts(w, "seconds", ["clipscore-shapes"], tmp_path / "new" / "front.png")
    with Image.open(tmp_path / "new" / "front.png") as image:
        assert 800 < image.width < 1100  # one panel


# ------------------------------------------------------------------------------------------------------ matching


@given(st.floats(0.5, 500), st.dictionaries(st.sampled_from("abcdef"), st.floats(0.5, 500)))
def test_the_nearest_baseline_is_that_of_brute_force(cost: float, baselines: dict[str, float]) -> None:
    found = matching.nearest(cost, baselines)
    if not baselines:
        assert found is None
        return
    assert found is not None
    preferred = [c for c in baselines.values() if 0.9 <= c / cost <= 1.5]
    off = abs(math.log(baselines[found] / cost))
    assert off == pytest.approx(min(abs(math.log(c / cost)) for c in preferred or baselines.values()), abs=1e-12)
    assert not preferred or baselines[found] in preferred


def test_enough_compute_is_preferred_to_nearer_and_the_first_of_equals_wins() -> None:
    assert matching.nearest(100, {"a": 88, "b": 130}) == "b"
    assert matching.nearest(100, {"a": 88, "b": 160}) == "a"
    assert matching.nearest(100, {"a": 91, "b": 130}) == "a"
    assert matching.nearest(100, {"a": 50, "b": 200}) == "a"
    assert matching.nearest(100, {"a": 120, "b": 120}) == "a"


def test_each_method_meets_what_its_cost_buys(w: World) -> None:
    rows = scored_rows(w.rows, w.scores, w.metrics)
    rows.loc[rows["method"] == "cfg-3", "flops"] = 230e9  # dearer than its evaluations say
    one = {"clipscore-shapes": METRICS["clipscore-shapes"]}
    by_nfe, = matching.matched(rows, ["no-guidance", "best_of_6"], one, "nfe")
    assert (by_nfe["method"], by_nfe["baseline"], by_nfe["baseline_nfe"]) == ("cfg-3", "no-guidance", 20)
    assert by_nfe["value"] == pytest.approx(0.7 - 0.3 - 0.5)
    by_flops, = matching.matched(rows, ["no-guidance", "best_of_6"], one, "flops")
    assert (by_flops["baseline"], by_flops["flops"], by_flops["baseline_flops"]) == ("best_of_6", 230e9, 240e9)
    rows.loc[rows["method"] == "cfg-3", "flops"] = math.nan
    assert matching.matched(rows, ["no-guidance"], one, "flops")[0]["method"] == "best_of_6"


def test_a_misfit_says_which_candidates_would_match() -> None:
    record = {"method": "mine", "baseline": "base", "nfe": 120, "baseline_nfe": 40}
    text = "no baseline within 1.5 times the cost of mine"
    assert matching.misfit(record, "nfe", {"base": 1}) == (
        f"{text}: best_of_n with candidates: 3, sampled as base is, would match"
    )
    assert "candidates: 27" in str(matching.misfit(record, "nfe", {"base": 9}))
    assert matching.misfit(record, "nfe", {}) == text
    cheap = record | {"nfe": 15}
    assert "one image of base already costs more" in str(matching.misfit(cheap, "nfe", {"base": 1}))
    assert matching.misfit(record | {"nfe": 60}, "nfe", {"base": 1}) is None


def test_the_table_of_a_match(w: World) -> None:
    spec = TableSpec(columns=["clipscore-shapes"], match="nfe", baselines=["no-guidance"])
    _, table = tables.laid_out(w, spec)
    assert table.title == "Paired differences at equal NFE"
    assert [column.key for column in table.columns] == ["against", "clipscore-shapes", "p", "pairs", "NFE ×"]
    cells = {key[-1]: row for key, row in table.rows}
    assert [cells["best_of_6"][0].text, cells["best_of_6"][-1].text] == ["no-guidance", "12.00"]
    assert "candidates: 12" in table.notes[cells["best_of_6"][0].marks[0]]
    assert cells["cfg-3"][0].marks
    assert table.notes[cells["best_of_6"][1].marks[0]].startswith("best_of_6 chooses by clipscore-shapes itself")
    (only,) = tables.laid_out(w, TableSpec(match="flops"))  # all methods here only sample: none is compared
    assert only.title == ""
    own = replace(w, candidates={"no-guidance": 1})
    assert len(tables.laid_out(own, TableSpec(columns=["clipscore-shapes"], match="flops"))[1].rows) == 2
    assert "at equal NFE" in tables.render(w, spec, "latex")


def test_costs_are_written_short() -> None:
    said = [layout.operations(x) for x in (None, 0, 950, 1.2456e9, 12.46e9, 124.6e9, 9.996e12, 83.2e15)]
    assert said == ["–", "0.00", "950", "1.25 G", "12.5 G", "125 G", "10.00 T", "83.2 P"]
