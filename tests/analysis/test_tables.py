"""Records, layouts and every format, on a small run made by hand."""

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.analysis import layout, render, tables
from harness.analysis.records import CELL, MetricInfo, differences, records, scored_rows
from harness.analysis.tables import TableSpec
from tests.analysis.world import METRICS, World, world

KEYS = {
    "model", "method", "prompts", "group", "metric", "metric_digest", "value", "low", "high", "n", "nfe", "flops",
    "seconds", "trained",
}


def _one(found, method, metric, group=None):
    match = [r for r in found if (r["method"], r["metric"], r["group"]) == (method, metric, group)]
    assert len(match) == 1
    return match[0]


# ---- records ----


def test_records_have_the_agreed_keys_and_are_json():
    found = world().records
    assert all(set(r) >= KEYS for r in found)
    json.dumps(found, allow_nan=False)
    assert len(found) == 3 * (len(METRICS) + 2)


def test_the_overall_value_is_the_mean_of_the_categories_means():
    found = world().records
    parts = [_one(found, "cfg-3", "geneval-shapes", group) for group in ("position", "colors")]
    assert [p["n"] for p in parts] == [8, 16]
    overall = _one(found, "cfg-3", "geneval-shapes")
    assert overall["value"] == pytest.approx(np.mean([p["value"] for p in parts]))
    assert overall["low"] < overall["value"] < overall["high"]
    assert overall["n"] == 24
    clip = _one(found, "cfg-3", "clipscore-shapes")
    w = world()
    of_method = w.scores[w.scores.sample_id.str.startswith("cfg-3/") & (w.scores.metric == "clipscore-shapes")]
    assert clip["value"] == pytest.approx(of_method.value.mean())
    assert (clip["nfe"], clip["seconds"], clip["flops"]) == pytest.approx((40, 0.4, 4e10))


def test_failed_rows_are_counted_and_not_scored_ones_too():
    w = world()
    w.rows.loc[w.rows.sample_id == "cfg-3/4/1", "error"] = "out of memory"
    w.scores.loc[w.scores.sample_id == "best_of_6/0/0", ["value", "error"]] = [np.nan, "no image"]
    w.scores = w.scores[w.scores.sample_id != "no-guidance/1/1"]
    found = w.records
    for method, reason in (("cfg-3", "out of memory"), ("best_of_6", "no image"), ("no-guidance", "not scored")):
        record = _one(found, method, "clipscore-shapes")
        assert (record["n"], record["failed"], record["reason"]) == (23, 1, reason)
    missing = _one(found, "cfg-3", "pickscore")
    assert missing["value"] is None
    assert "harness fetch" in missing["reason"]


def test_scores_of_another_digest_do_not_count():
    w = world()
    w.scores.loc[w.scores.metric == "clipscore-shapes", "metric_digest"] = "old"
    record = _one(w.records, "cfg-3", "clipscore-shapes")
    assert (record["value"], record["n"], record["reason"]) == (None, 0, "not scored")


def test_an_infinite_score_is_no_value():
    w = world()
    w.scores.loc[w.scores.sample_id == "cfg-3/0/0", "value"] = np.inf
    record = _one(w.records, "cfg-3", "clipscore-shapes")
    assert (record["n"], record["failed"]) == (23, 1)
    assert np.isfinite(record["value"])


def test_frames_of_a_clip_are_one_sample_and_random_weights_are_marked():
    w = world()
    doubled = pd.concat([w.rows, w.rows])
    found = records(doubled, w.scores, w.distribution, w.metrics, {"sd": False})
    assert _one(found, "cfg-3", "clipscore-shapes")["n"] == 24
    assert not any(r["trained"] for r in found)
    table = layout.lay_out(found, TableSpec(), METRICS)
    assert any("random weights" in note for note in table.notes)


def test_cells_that_share_samples_have_each_their_own_values():
    one = world()
    again = one.rows[one.rows["method"] == "cfg-3"].assign(method="three")
    inner = again[again["prompt_id"].isin(["p0", "p1"])].assign(method="cfg-3", prompts="first-2")
    scores = one.scores[one.scores["method"] == "cfg-3"]
    # As of a label of the set with other pictures to compare with: the same samples, other scores.
    others = scores.assign(prompts="first-2", value=scores["value"] + 1)
    alone, same = World(inner, others, []), World(inner, scores.assign(prompts="first-2"), [])
    both = World(
        pd.concat([one.rows, inner, again], ignore_index=True),
        pd.concat([one.scores, scores.assign(method="three"), others], ignore_index=True), one.distribution,
    )

    def values(of: World, **place: str) -> list[tuple]:
        return [
            (r["metric"], r["group"], r["value"], r["low"], r["high"], r["n"]) for r in of.records
            if r["kind"] == "sample" and all(r[key] == value for key, value in place.items())
        ]

    assert values(both, prompts="shapes", method="three") == values(one, method="cfg-3") != []
    assert values(both, prompts="first-2") == values(alone) != values(same)
    assert values(both, prompts="shapes", method="cfg-3") == values(one, method="cfg-3")
    assert len(both.scored) == len(one.scored) + 2 * (len(inner) + len(again))  # two metrics of samples


def test_the_mean_of_the_lowest_says_how_many_they_are():
    w = world()
    w.metrics["clipscore-shapes"] = MetricInfo("clipscore-shapes", "c1", aggregation="mean_of_lowest", lowest=5)
    of_method = w.scores[w.scores.sample_id.str.startswith("cfg-3/") & (w.scores.metric == "clipscore-shapes")]
    record = _one(w.records, "cfg-3", "clipscore-shapes")
    assert record["value"] == pytest.approx(np.sort(of_method.value)[:5].mean())
    assert record["low"] < record["value"] < record["high"]
    assert (record["lowest"], record["n"]) == (5, 24)
    assert "mean of the 5 lowest values" in tables.render(w, TableSpec(), "markdown")
    assert {d["metric"] for d in differences(scored_rows(w.rows, w.scores, w.metrics), "cfg-3", w.metrics)} == {
        "geneval-shapes"
    }
    w.metrics["clipscore-shapes"] = MetricInfo("clipscore-shapes", "c1", aggregation="mean_of_lowest", lowest=1000)
    record = _one(w.records, "cfg-3", "clipscore-shapes")
    assert record["value"] == pytest.approx(of_method.value.mean())
    assert record["lowest"] == 24


def test_what_the_others_are_compared_with_has_no_value_of_its_own():
    w = world()
    w.metrics["clipscore-shapes"] = MetricInfo("clipscore-shapes", "c1", "paired", False, against="cfg-3")
    record = _one(w.records, "cfg-3", "clipscore-shapes")
    assert (record["value"], record["n"], record["failed"]) == (None, 0, 0)
    assert _one(w.records, "best_of_6", "clipscore-shapes")["n"] == 24
    assert set(scored_rows(w.rows, w.scores, w.metrics)["metric"]) == {"geneval-shapes", "clipscore-shapes"}
    assert "the others are compared with these images" in tables.render(w, TableSpec(), "markdown")


def test_nothing_at_all_is_an_empty_table():
    w = world()
    found = records(w.rows[:0], w.scores[:0], [], METRICS)
    assert found == []
    assert "n = 0" in render.markdown(layout.lay_out(found, TableSpec(), METRICS))


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_records_do_not_depend_on_the_order_of_scores(random):
    w = world(prompts=4, seeds=1)
    order = list(range(len(w.scores)))
    random.shuffle(order)
    assert records(w.rows, w.scores.iloc[order], w.distribution, w.metrics) == w.records


# ---- differences ----


def test_differences_are_paired_and_holm_adjusted():
    w = world()
    rows = scored_rows(w.rows, w.scores, METRICS)
    assert set(rows["metric"]) == {"geneval-shapes", "clipscore-shapes"}
    found = differences(rows, "cfg-3", METRICS, groups=True)
    clip = _one(found, "best_of_6", "clipscore-shapes")
    assert clip["value"] == pytest.approx(0.05)
    assert (clip["n"], clip["clusters"], clip["nfe"], clip["baseline_nfe"]) == (24, 12, 240, 40)
    assert clip["p_holm"] >= clip["p"]
    overall = _one(found, "best_of_6", "geneval-shapes")
    by_group = [_one(found, "best_of_6", "geneval-shapes", g)["value"] for g in ("position", "colors")]
    assert overall["value"] == pytest.approx(np.mean(by_group))
    assert not [r for r in found if r["method"] == "cfg-3"]


def test_differences_say_how_often_and_how_clearly_a_method_is_better():
    w = world()
    rows = scored_rows(w.rows, w.scores, METRICS)
    mine = _one(differences(rows, "cfg-3", METRICS), "no-guidance", "geneval-shapes")
    wide = rows[rows["metric"] == "geneval-shapes"].pivot(
        index=["prompt_id", "seed"], columns="method", values="value")
    prompts = (wide["no-guidance"] - wide["cfg-3"]).groupby("prompt_id").mean()
    assert prompts.lt(0).any()
    assert prompts.eq(0).any()
    assert mine["win_rate"] == pytest.approx((prompts.gt(0) + prompts.eq(0) / 2).mean())
    assert mine["win_low"] < mine["win_rate"] < mine["win_high"]
    assert mine["effect_size"] == pytest.approx(prompts.mean() / prompts.std(ddof=1))
    lower = {"geneval-shapes": replace(METRICS["geneval-shapes"], higher_is_better=False)}
    turned = _one(differences(rows, "cfg-3", lower), "no-guidance", "geneval-shapes")
    assert turned["win_rate"] == pytest.approx(1 - mine["win_rate"])
    assert turned["effect_size"] == mine["effect_size"]
    json.dumps(differences(rows, "cfg-3", METRICS, groups=True), allow_nan=False)


def test_only_common_pairs_count():
    w = world()
    rows = scored_rows(w.rows, w.scores, METRICS)
    rows = rows[~((rows["method"] == "cfg-3") & (rows["prompt_id"] == "p0"))]
    assert _one(differences(rows, "cfg-3", METRICS), "best_of_6", "clipscore-shapes")["n"] == 22
    assert differences(rows, "no such method", METRICS) == []


# ---- layout ----


def _table(w=None, **arguments):
    w = w or world()
    spec = arguments.pop("spec", TableSpec())
    return layout.lay_out(w.records, spec, w.metrics, w.judges, **arguments)


def test_best_second_judge_missing_and_cost():
    table = _table()
    assert table.labels == ["prompts", "method"]
    assert [c.key for c in table.columns] == [*METRICS, "n", "NFE", "s/image"]
    by_method = {labels[1]: cells for labels, cells in table.rows}
    assert [by_method[m][2].rank for m in ("no-guidance", "cfg-3", "best_of_6")] == [0, 2, 1]  # lower is better
    assert by_method["best_of_6"][1].rank == 1
    assert "itself" in table.notes[by_method["best_of_6"][1].marks[0]]
    assert not by_method["cfg-3"][1].marks
    assert by_method["cfg-3"][3].text == "–"
    assert "harness fetch pickscore" in table.notes[by_method["cfg-3"][3].marks[0]]
    assert [cell.text for cell in by_method["best_of_6"][-3:]] == ["24", "240", "2.40"]


def test_ties_share_a_rank_and_a_lone_row_has_none():
    w = world()
    w.distribution = [d | {"value": 1.0} for d in w.distribution]
    assert [cells[2].rank for _, cells in _table(w).rows] == [1, 1, 1]
    w.rows = w.rows[w.rows.method == "cfg-3"]
    assert [cell.rank for cell in _table(w).rows[0][1]] == [0] * 7


def test_unlike_n_is_shown_and_warned_of():
    w = world()
    w.rows.loc[w.rows.sample_id == "cfg-3/4/1", "error"] = "out of memory"
    w.distribution[1]["n"] = 23
    w.scores = w.scores[~((w.scores.sample_id == "best_of_6/0/0") & (w.scores.metric == "geneval-shapes"))]
    table = _table(w)
    by_method = {labels[1]: cells for labels, cells in table.rows}
    assert by_method["cfg-3"][-3].text == "23"
    assert "1 further image without a value: out of memory" in table.notes
    assert by_method["best_of_6"][0].text.endswith("(n=23)")
    assert "fd-shapes-clip depends on n: rows of different n must not be compared" in table.notes
    assert table.caption.startswith("n = 23 to 24")


def test_columns_of_a_spec_and_labels_that_tell_cells_apart():
    w = world()
    other = w.rows.assign(model="other", sample_id="other/" + w.rows["sample_id"])
    w.rows = pd.concat([w.rows, other])
    spec = TableSpec(rows=["method"], columns=["clipscore-shapes"])
    table = _table(w, spec=spec)
    assert table.labels == ["model", "method"]
    assert len(table.rows) == 6
    assert [c.key for c in table.columns][:-3] == ["clipscore-shapes"]


def test_intervals_and_numbers():
    texts = [cells[2].text for _, cells in _table(ci=True).rows]
    assert texts[0] == "5.000 [4.500, 5.500]"
    assert layout.fixed(-0.00001, 3) == "0.000"
    assert layout.fixed(0.04, 2, sign=True) == "+0.04"
    assert layout.interval({"low": None, "high": None}, 2) == " [–]"
    assert [layout.decimals(v) for v in ([812.0, 3], [30.1], [3.5], [0.02], [None])] == [1, 2, 3, 4, 4]
    assert [layout.p_value(p) for p in (0.0004, 0.0123, 0.5, None)] == ["<0.001", "0.012", "0.50", "–"]


# ---- formats ----


def test_markdown():
    lines = render.markdown(_table()).splitlines()
    assert lines[0].startswith("| prompts | method | geneval-shapes ↑ | clipscore-shapes ↑ | fd-shapes-clip ↓ |")
    assert lines[1] == "| --- | --- |" + " ---: |" * 7
    assert "| shapes | best_of_6 | **0.781** | **0.799**ᵃ | **0.417** | –ᵇ | 24 | 240 | 2.40 |" in _relettered(lines)
    assert any(line.startswith("n = 24 images a row") for line in lines)


def _relettered(lines):
    """The judge's footnote is found second, after the missing metric's."""
    return [line.replace("ᵃ", "?").replace("ᵇ", "ᵃ").replace("?", "ᵇ") for line in lines]


def test_latex():
    text = render.latex(_table())
    assert r"\toprule" in text
    assert r"shapes & best\_of\_6 & \textbf{0.781} & \textbf{0.799}\textsuperscript{b} & \textbf{0.417} &" in text
    assert r"\underline{2.500}" in text
    assert r"geneval-shapes $\uparrow$" in text
    assert r"fd-shapes-clip $\downarrow$" in text
    assert r"\caption{n = 24 images" in text
    assert text.count("&") == 4 * 8  # none unescaped


def test_latex_escapes_what_it_must():
    assert render._tex("a_b & 50 % {x} \\ #1 ~^ $") == (
        r"a\_b \& 50 \% \{x\} \textbackslash{} \#1 \textasciitilde{}\textasciicircum{} \$")


def test_csv_has_full_precision():
    w = world()
    read = list(csv.DictReader(io.StringIO(tables.render(w, TableSpec(), "csv", groups=True))))
    assert [row["method"] for row in read] == ["no-guidance", "cfg-3", "best_of_6"]
    for row in read:
        assert float(row["geneval-shapes"]) == _one(w.records, row["method"], "geneval-shapes")["value"]
        assert float(row["geneval-shapes:high"]) == _one(w.records, row["method"], "geneval-shapes")["high"]
        group = _one(w.records, row["method"], "geneval-shapes", "position")
        assert float(row["geneval-shapes:position"]) == group["value"]
        assert row["pickscore"] == ""
        assert int(row["n"]) == int(row["clipscore-shapes:n"]) == 24


def test_html_is_well_formed_and_escaped():
    w = world()
    w.rows["method"] = w.rows["method"].replace("best_of_6", "<b>&")
    text = tables.render(w, TableSpec(), "html")
    assert "&lt;b&gt;&amp;" in text
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(text)
    assert not open_tags


def test_json_is_the_records():
    w = world()
    assert json.loads(tables.render(w, TableSpec(), "json")) == json.loads(json.dumps(w.records))


@pytest.mark.parametrize("width", [30, 60, 80, 100, 160])
def test_terminal_fits_its_width_and_loses_nothing(width):
    w = world()
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    tables.show(w, TableSpec(baseline="cfg-3"), ci=True, groups=True, console=console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    text = " ".join(text.split())
    if width >= 60:
        for expected in ("best_of_6", "0.781 [", "0.417 [0.375, 0.458]", "harness fetch", "240", "Paired differences"):
            assert expected in text


def test_what_is_no_terminal_gets_whole_lines():
    console = Console(width=20, file=io.StringIO())
    tables.show(world(), TableSpec(), console=console)
    line = next(line for line in console.file.getvalue().splitlines() if line.lstrip().startswith("best_of_6"))
    assert line.split()[0:2] == ["best_of_6", "0.781"]


def test_groups_and_baseline_make_further_tables():
    w = world()
    found = tables.laid_out(w, TableSpec(baseline="cfg-3", groups=True))
    assert [t.title for t in found] == ["", "geneval-shapes by category", "Paired differences against cfg-3"]
    assert [c.key for c in found[1].columns] == ["position", "colors", "n", "NFE", "s/image"]
    assert [labels[-1] for labels, _ in found[2].rows] == ["no-guidance", "best_of_6"]
    for form in ("markdown", "latex", "html"):
        assert "Paired differences against cfg-3" in tables.render(w, TableSpec(baseline="cfg-3"), form)


def test_a_metric_without_categories_in_its_prompts_is_a_plain_mean():
    w = world()
    w.rows["category"] = None
    record = _one(w.records, "cfg-3", "geneval-shapes")
    of_method = w.scores[w.scores.sample_id.str.startswith("cfg-3/") & (w.scores.metric == "geneval-shapes")]
    assert record["value"] == pytest.approx(of_method.value.mean())
    assert CELL == ["model", "method", "prompts"]
    assert MetricInfo("x", "d").grouped is False
