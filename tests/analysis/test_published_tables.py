"""Published numbers beside ours, averages and win rates, on tables small enough to be worked out by hand."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.analysis import beside, layout, render, tables
from harness.analysis.records import MetricInfo, baselines, differences, scored_rows, win_rates
from harness.analysis.tables import TableSpec
from tests.analysis.world import World
from tests.command import harness
from tests.metrics import tiny_openclip
from tests.tiny import tiny_stable_diffusion

METRICS = {
    "hps": MetricInfo("hps", "h"),
    "fid_x": MetricInfo("fid_x", "f", kind="distribution", higher_is_better=False),
}
PAPER = "On 50 % & more_noise (arXiv 2407.00000)"
COLUMNS = [
    "paper", "table", "model", "method", "prompts", "metric", "quantity", "value", "scale", "source", "note", "against",
]


def published(*lines, quantity="value", table="paper-table1", scale=None, against=""):
    """Lines (method, metric, value[, note]) as `harness.analysis.published.rows` gives them."""
    frame = [
        [PAPER, table, "sd", method, "p", metric, quantity, value, (scale or {}).get(metric, 1.0), "Table 1",
         *(note or [None])]
        for method, metric, value, *note in lines
    ]
    return pd.DataFrame([[*line, against] for line in frame], columns=COLUMNS)


def record(method, metric, value, **more):
    found = {
        "model": "sd", "method": method, "prompts": "p", "group": None, "metric": metric, "metric_digest": "d",
        "value": value, "low": None, "high": None, "n": 4, "nfe": 20.0, "flops": None, "seconds": 1.5, "trained": True,
        "kind": METRICS[metric].kind if metric in METRICS else "sample", "higher_is_better": True, "failed": 0,
        "reason": None if value is not None else "no weights",
    }
    return found | more


OURS = [
    record("plain", "hps", 0.26, low=0.25, high=0.27), record("plain", "fid_x", 10.0),
    record("tuned", "hps", 0.27, low=0.26, high=0.28), record("tuned", "fid_x", 8.5),
    record("own_1", "hps", 0.25, low=0.24, high=0.26), record("own_1", "fid_x", 9.0),
]
THEIRS = published(
    ("plain", "hps", 26.5), ("initno", "hps", 26.25), ("tuned", "hps", 26.75, "misprint: says 27 & 5 %"),
    scale={"hps": 100.0},
)


def table(ours=OURS, theirs=THEIRS, metrics=METRICS, *, ci=False, judges=None, **spec):
    chosen = TableSpec(**spec)
    shown = beside.numbers(theirs, chosen.show, ours)
    return layout.lay_out(ours, chosen, metrics, judges, ci=ci, numbers=shown)


def texts(found):
    """By method the cells' texts under `key part`."""
    heads = [f"{c.key} {c.part}".strip() for c in found.columns]
    return {labels[-1]: dict(zip(heads, [c.text for c in cells], strict=True)) for labels, cells in found.rows}


# ---- golden texts ----


def test_markdown():
    assert render.markdown(table()) == f"""\
| prompts | method | hps ×100 ↑ published | hps ×100 ↑ ours | hps ×100 ↑ difference | fid_x ↓ | n | NFE | s/image |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| p | plain | 26.50 | 26.00 | -0.50 | 10.00 | 4 | 20 | 1.50 |
| p | initno | 26.25 | – | – | – | – | – | – |
| p | tuned | 26.75ᵃ | **27.00** | +0.25 | **8.50** | 4 | 20 | 1.50 |
| p | own_1 | – | 25.00 | – | 9.00 | 4 | 20 | 1.50 |

n = 4 images a row; NFE: denoiser evaluations an image; s/image: seconds to generate one. \
Published: paper-table1 of {PAPER}. Difference: ours less published, which is no paired test.

ᵃ published: misprint: says 27 & 5 %
"""


def test_latex():
    assert render.latex(table()) == r"""\begin{table}
\centering
\caption{n = 4 images a row; NFE: denoiser evaluations an image; s/image: seconds to generate one. Published: paper-table1 of On 50 \% \& more\_noise (arXiv 2407.00000). Difference: ours less published, which is no paired test.}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{llrrrrrrr}
\toprule
 &  & \multicolumn{3}{c}{hps $\times$100 $\uparrow$} &  &  &  &  \\
\cmidrule(lr){3-5}
prompts & method & published & ours & difference & fid\_x $\downarrow$ & n & NFE & s/image \\
\midrule
p & plain & 26.50 & \underline{26.00} & $-$0.50 & 10.00 & 4 & 20 & 1.50 \\
p & initno & 26.25 & -- & -- & -- & -- & -- & -- \\
p & tuned & 26.75\textsuperscript{a} & \textbf{27.00} & +0.25 & \textbf{8.50} & 4 & 20 & 1.50 \\
p & own\_1 & -- & 25.00 & -- & \underline{9.00} & 4 & 20 & 1.50 \\
\bottomrule
\end{tabular}}
\par\smallskip\footnotesize \textsuperscript{a} published: misprint: says 27 \& 5 \%
\end{table}
"""  # noqa: E501


def test_csv():
    assert render.csv_text(table()) == """\
prompts,method,hps x100,hps x100:low,hps x100:high,hps x100:n,hps x100:published,hps x100:difference,\
fid_x,fid_x:low,fid_x:high,fid_x:n,n,NFE,s/image
p,plain,26.0,25.0,27.0,4,26.5,-0.5,10.0,,,4,4,20.0,1.5
p,initno,,,,0,26.25,,,,,0,,,
p,tuned,27.0,26.0,28.000000000000004,4,26.75,0.25,8.5,,,4,4,20.0,1.5
p,own_1,25.0,24.0,26.0,4,,,9.0,,,4,4,20.0,1.5
"""


def test_html():
    assert render.html(table()) == """\
<table>
<caption>n = 4 images a row; NFE: denoiser evaluations an image; s/image: seconds to generate one. Published: \
paper-table1 of On 50 % &amp; more_noise (arXiv 2407.00000). Difference: ours less published, which is no paired \
test.</caption>
<thead><tr><th rowspan="2">prompts</th><th rowspan="2">method</th><th colspan="3">hps ×100 ↑</th>\
<th rowspan="2">fid_x ↓</th><th rowspan="2">n</th><th rowspan="2">NFE</th><th rowspan="2">s/image</th></tr>
<tr><th>published</th><th>ours</th><th>difference</th></tr></thead>
<tbody>
<tr><th>p</th><th>plain</th><td>26.50</td><td><u>26.00</u></td><td>-0.50</td><td>10.00</td><td>4</td><td>20</td>\
<td>1.50</td></tr>
<tr><th>p</th><th>initno</th><td>26.25</td><td>–</td><td>–</td><td>–</td><td>–</td><td>–</td><td>–</td></tr>
<tr><th>p</th><th>tuned</th><td>26.75<sup>a</sup></td><td><strong>27.00</strong></td><td>+0.25</td>\
<td><strong>8.50</strong></td><td>4</td><td>20</td><td>1.50</td></tr>
<tr><th>p</th><th>own_1</th><td>–</td><td>25.00</td><td>–</td><td><u>9.00</u></td><td>4</td><td>20</td><td>1.50</td></tr>
</tbody>
</table>
<p><sup>a</sup> published: misprint: says 27 &amp; 5 %</p>
"""


def on_terminal(width, found):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(render.terminal(found, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_terminal_sets_the_parts_side_by_side_where_they_fit():
    assert on_terminal(79, table())[:9] == [
        "prompts p",
        "",
        "         hps ×100 ↑",
        " method   published   ours  difference  fid_x ↓  n  NFE  s/image",
        " ───────────────────────────────────────────────────────────────",
        " plain        26.50  26.00       -0.50    10.00  4   20     1.50",
        " initno       26.25      –           –        –  –    –        –",
        " tuned       26.75ᵃ  27.00       +0.25     8.50  4   20     1.50",
        " own_1            –  25.00           –     9.00  4   20     1.50",
    ]


def test_terminal_keeps_the_parts_together_or_stacks_them():
    lines = on_terminal(45, table())
    assert next(line.split() for line in lines if "published" in line) == ["method", "published", "ours", "difference"]
    assert [line.split() for line in lines if line.startswith(" tuned")] == [
        ["tuned", "26.75ᵃ", "27.00", "+0.25"], ["tuned", "8.50", "4", "20", "1.50"],
    ]
    lines = on_terminal(36, table())
    assert max(map(len, lines)) <= 36
    assert [line.split() for line in lines if "hps" in line][6:9] == [
        ["hps", "×100", "↑", "published", "26.75ᵃ"], ["hps", "×100", "↑", "ours", "27.00"],
        ["hps", "×100", "↑", "difference", "+0.25"],
    ]


def test_json_is_one_list_of_ours_and_theirs():
    w = small_world()
    w.published = THEIRS
    found = json.loads(tables.render(w, TableSpec(), "json"))
    ours = json.loads(json.dumps(w.records))
    assert found[: len(ours)] == ours
    assert found[len(ours)] == {
        "model": "sd", "method": "plain", "prompts": "p", "group": None, "metric": "hps", "metric_digest": None,
        "value": None, "low": None, "high": None, "n": 0, "nfe": None, "flops": None, "seconds": None, "trained": None,
        "quantity": "value", "published": 26.5, "scale": 100.0, "table": "paper-table1", "source": "Table 1",
        "note": None,
    }
    assert [r["published"] for r in found[len(ours):]] == [26.5, 26.25, 26.75]
    assert found[-1]["note"] == "misprint: says 27 & 5 %"


# ---- what is shown ----


def test_without_published_numbers_nothing_changes():
    plain = layout.lay_out(OURS, TableSpec(), METRICS)
    assert table(theirs=None) == plain
    assert render.latex(plain).count(r"\\") == 4
    assert "resizebox" not in render.latex(plain)


def test_a_difference_is_ours_in_the_published_unit_less_published():
    found = texts(table())
    assert [found[m]["hps difference"] for m in ("plain", "initno", "tuned", "own_1")] == ["-0.50", "–", "+0.25", "–"]
    assert texts(table(ci=True))["plain"]["hps ours"] == "26.00 [25.00, 27.00]"


VALUES = st.floats(-1e4, 1e4, allow_nan=False).map(lambda x: round(x, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, st.none() | VALUES), min_size=1, max_size=5), st.sampled_from([0.01, 1.0, 100.0]))
def test_the_difference_column_is_ours_less_published_for_any_numbers(pairs, scale):
    ours = [record(f"m{i}", "hps", value) for i, (value, _) in enumerate(pairs)]
    lines = [(f"m{i}", "hps", printed) for i, (_, printed) in enumerate(pairs) if printed is not None]
    found = table(ours, published(*lines, scale={"hps": scale}), columns=["hps"])
    read = {row["method"]: row for row in csv.DictReader(io.StringIO(render.csv_text(found)))}
    key = "hps" if scale == 1 or not lines else f"hps x{scale:g}"
    for i, (value, printed) in enumerate(pairs):
        row = read[f"m{i}"]
        assert float(row[key]) == value * (scale if lines else 1)
        if printed is not None:
            assert float(row[f"{key}:published"]) == printed
            assert float(row[f"{key}:difference"]) == pytest.approx(value * scale - printed, rel=1e-12, abs=1e-9)
        elif lines:
            assert row[f"{key}:published"] == row[f"{key}:difference"] == ""


def test_best_and_second_are_of_ours_alone():
    ranks = {labels[-1]: [cell.rank for cell in cells] for labels, cells in table().rows}
    assert ranks == {"plain": [0, 2, 0, 0, 0, 0, 0], "initno": [0] * 7, "tuned": [0, 1, 0, 1, 0, 0, 0],
                     "own_1": [0, 0, 0, 2, 0, 0, 0]}


def test_a_metric_that_is_missing_here_is_a_dash_beside_the_published_number():
    ours = [r if r["metric"] != "hps" else record(r["method"], "hps", None, n=0) for r in OURS]
    found = table(ours)
    assert texts(found)["plain"] | {"fid_x": ""} == {
        "hps published": "26.50", "hps ours": "–", "hps difference": "–", "fid_x": "", "n": "4", "NFE": "20",
        "s/image": "1.50",
    }
    assert "hps: no weights" in found.notes
    assert found.notes[found.rows[0][1][1].marks[0]] == "hps: no weights"


def test_random_weights_and_judges_keep_their_footnotes():
    ours = [r | {"trained": r["method"] != "tuned"} for r in OURS]
    found = table(ours, judges={"plain": "hps"})
    notes = {labels[-1]: [found.notes[i] for i in cells[1].marks] for labels, cells in found.rows}
    assert notes["tuned"] == ["random weights: this number says nothing about a trained model"]
    assert notes["plain"] == ["plain chooses by hps itself: no independent evidence there"]
    assert [cells[2].marks for _, cells in found.rows] == [[], [], [], []]


def test_a_published_word_that_is_no_metric_here_is_a_column_of_its_own():
    theirs = pd.concat([THEIRS, published(("tuned", "human", 56.0))])
    assert texts(table(theirs=theirs))["tuned"]["human published"] == "56"
    assert "human published" not in texts(table(theirs=theirs, columns=["hps"]))["tuned"]
    found = texts(table(theirs=theirs, columns=["human", "hps"]))
    assert list(found["tuned"])[:2] == ["human published", "hps published"]
    assert "human:published" in render.csv_text(table(theirs=theirs)).splitlines()[0].split(",")


def test_published_cost_stands_beside_ours_and_any_is_every_label():
    theirs = published(("any", "nfe", 21.0), ("plain", "seconds", 0.5)).assign(model="any", prompts="any")
    found = texts(table(theirs=theirs))
    assert [found[m]["NFE difference"] for m in found] == ["-1", "-1", "-1"]
    assert found["plain"]["s/image published"] == "0.5"
    assert found["tuned"]["s/image difference"] == "–"
    wide = on_terminal(79, table(theirs=theirs))
    assert any(line.split()[-6:] == ["published", "ours", "difference"] * 2 for line in wide)


def test_numbers_of_other_models_or_prompt_sets_are_left_out_and_counted():
    theirs = pd.concat([THEIRS, THEIRS.assign(model="sdxl"), THEIRS[:1].assign(prompts="coco")])
    found = table(theirs=theirs)
    assert len(found.rows) == 4
    assert "paper-table1: numbers of other models or prompt sets are left out (4)" in found.notes


def test_rows_of_a_paper_keep_its_order_within_each_prompt_set():
    ours = [*OURS, *(r | {"prompts": "q"} for r in OURS)]
    theirs = pd.concat([THEIRS, THEIRS[::-1].assign(prompts="q")])
    assert [labels for labels, _ in table(ours, theirs).rows] == [
        ["p", "plain"], ["p", "initno"], ["p", "tuned"], ["p", "own_1"],
        ["q", "tuned"], ["q", "initno"], ["q", "plain"], ["q", "own_1"],
    ]


def test_two_papers_in_different_units_are_brought_to_the_first_one_s():
    other = published(("plain", "hps", 0.264), ("tuned", "hps", 0.2675), ("late", "hps", 0.28), table="other")
    found = table(theirs=pd.concat([THEIRS, other]))
    assert texts(found)["plain"]["hps published"] == "26.50"
    assert texts(found)["late"]["hps published"] == "28.00"
    assert "published: other prints 26.4" in found.notes
    assert not any("26.75" in note for note in found.notes)  # the same number in another unit
    assert "other of" in found.caption


# ---- average ----


def test_the_average_is_the_plain_mean_in_the_published_unit():
    theirs = pd.concat([THEIRS, published(("plain", "fid_x", 10.0), ("plain", "average", 18.25))])
    found = table(theirs=theirs, average=True)
    row = texts(found)["plain"]
    assert [row[f"average {part}"] for part in ("published", "ours", "difference")] == ["18.25", "18.00", "-0.25"]
    assert texts(found)["tuned"]["average ours"] == "17.75"
    head = next(c for c in found.columns if c.key == "average")
    assert [found.notes[i] for i in head.marks] == ["average: plain mean of hps ×100, fid_x; it mixes their scales"]
    assert head.direction == 0  # one metric up, one down
    assert "average published" not in [f"{c.key} {c.part}" for c in table(theirs=THEIRS, average=True).columns]
    assert texts(table(theirs=theirs))["plain"]["average published"] == "18.25"  # not asked for, but published


def test_an_average_of_other_columns_is_not_compared_with_ours():
    theirs = pd.concat([THEIRS, published(("plain", "average", 18.25), ("plain", "seconds", 2.0))])
    found = table(theirs=theirs, average=True)
    assert texts(found)["plain"]["average"] == "18.00"
    assert "average: the published one is not shown, a mean of other columns (hps)" in found.notes
    assert texts(table(theirs=theirs, average=True, columns=["hps"]))["plain"]["average difference"] == "+7.75"


def test_the_average_of_metrics_of_one_direction_is_ranked():
    metrics = METRICS | {"aes": MetricInfo("aes", "a")}
    ours = [*OURS, *(record(m, "aes", v) for m, v in (("plain", 5.0), ("tuned", 5.5), ("own_1", 6.0)))]
    found = table(ours, None, metrics, average=True, columns=["hps", "aes"])
    assert [cells[2].text for _, cells in found.rows] == ["2.630", "2.885", "3.125"]
    assert [cells[2].rank for _, cells in found.rows] == [0, 2, 1]


def test_the_average_is_a_dash_where_a_metric_is_missing():
    ours = [record("plain", "hps", 0.26), record("plain", "fid_x", None), *OURS[2:]]
    found = table(ours, None, average=True)
    assert texts(found)["plain"]["average"] == "–"
    assert "average: no value of fid_x" in found.notes
    assert texts(found)["tuned"]["average"] == "4.385"


# ---- win rates ----


def small_world(values=None, higher=True):
    """Methods plain, tuned and own_1 on prompts a and b with seeds 0 and 1; `values` by (method, prompt, seed)."""
    values = values or {
        ("plain", "a", 0): 0.20, ("plain", "a", 1): 0.30, ("plain", "b", 0): 0.25, ("plain", "b", 1): 0.25,
        ("tuned", "a", 0): 0.31, ("tuned", "a", 1): 0.20, ("tuned", "b", 0): 0.20, ("tuned", "b", 1): 0.30,
        ("own_1", "a", 0): 0.10, ("own_1", "a", 1): 0.10, ("own_1", "b", 0): 0.26, ("own_1", "b", 1): 0.26,
    }
    rows, scores = [], []
    for method, prompt, seed in values:
        sample = f"{method}/{prompt}/{seed}"
        rows.append({
            "sample_id": sample, "model": "sd", "method": method, "prompts": "p", "prompt_id": prompt, "category": None,
            "seed": seed, "nfe": 20, "flops": 1e9, "seconds": 1.5, "error": None,
        })
        scores.append({
            "sample_id": sample, "model": "sd", "method": method, "prompts": "p", "metric": "hps", "metric_digest": "h",
            "value": values[method, prompt, seed], "error": None,
        })
    distribution = [
        {"model": "sd", "method": method, "prompts": "p", "metric": "fid_x", "metric_digest": "f", "value": 9.0,
         "low": None, "high": None, "n": 4, "error": None}
        for method in dict.fromkeys(key[0] for key in values)
    ]
    metrics = METRICS | {"hps": MetricInfo("hps", "h", higher_is_better=higher)}
    return World(pd.DataFrame(rows), pd.DataFrame(scores), distribution, metrics, {})


def test_win_rates_count_prompts_and_ties_half():
    # tuned less plain, mean of the seeds: a +0.005, b 0.0 (a tie): 3/4. own_1: a -0.15, b +0.01: 1/2.
    w = small_world()
    w.published = published(("tuned", "hps", 65.0, "against plain"), ("tuned", "human", 60.0), quantity="win_rate",
                            scale={"hps": 100.0, "human": 100.0})
    main, paired = tables.laid_out(w, TableSpec(show="win_rate", baseline="plain"))
    assert main.title == "Win rates against plain"
    assert [c.direction for c in main.columns if c.key == "fid_x"] == [1]  # its own direction is the other
    assert main.caption.startswith("n = 2 prompts a row; values: the share of prompts")
    assert texts(main) == {
        "tuned": {"hps published": "65", "hps ours": "75.00", "hps difference": "+10.00", "fid_x": "–",
                  "human published": "60", "n": "2", "NFE": "20", "s/image": "1.50"},
        "own_1": {"hps published": "–", "hps ours": "50.00", "hps difference": "–", "fid_x": "–",
                  "human published": "–", "n": "2", "NFE": "20", "s/image": "1.50"},
    }
    assert "fid_x: a value of all images together, so that no prompt is won" in main.notes
    assert paired.title == "Paired differences against plain"
    assert texts(paired)["tuned"]["hps"].startswith("+0.002")  # in the metric's own unit: no difference is published


def test_the_win_rate_s_interval_is_wilson_s():
    # own_1 wins 1 of 2 prompts, no tie
    main = tables.laid_out(small_world(), TableSpec(show="win_rate", baseline="plain"), ci=True)[0]
    z2, n = 1.959963984540054**2, 2
    half = z2**0.5 * (0.25 / n + z2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    assert texts(main)["own_1"]["hps"] == f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"
    assert "Wilson" in main.caption


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=6), st.booleans())
def test_win_rates_are_those_of_a_count(prompts, higher):
    values = {}
    for i, (a, b, c, d) in enumerate(prompts):
        values |= {("plain", f"{i}", 0): a, ("plain", f"{i}", 1): b, ("tuned", f"{i}", 0): c, ("tuned", f"{i}", 1): d}
    w = small_world(values, higher)
    paired = differences(scored_rows(w.rows, w.scores, w.metrics), "plain", w.metrics)
    rate, = (r for r in win_rates(w.records, paired, "plain") if r["metric"] == "hps")
    won = 0.0
    for a, b, c, d in prompts:
        first, second = (c + d, a + b) if higher else (a + b, c + d)
        won += 1.0 if first > second else 0.5 if first == second else 0.0
    assert rate["value"] == pytest.approx(won / len(prompts))
    assert (rate["n"], rate["baseline"], rate["quantity"]) == (len(prompts), "plain", "win_rate")


def test_each_method_can_have_a_baseline_of_its_own():
    own = {"tuned": "plain", "own_1": "tuned"}
    assert baselines("plain", ["plain", "tuned", "own_1"]) == {"tuned": "plain", "own_1": "plain"}
    assert baselines(own, ["own_1", "tuned"]) == {"own_1": "tuned", "tuned": "plain"}
    assert baselines(None, ["a"]) == {}
    w = small_world()
    main, paired = tables.laid_out(w, TableSpec(show="win_rate", baseline=own))
    assert main.title == "Win rates: tuned against plain, own_1 against tuned"
    # own_1 less tuned: a -0.155, b +0.01: 1/2
    assert {m: row["hps"] for m, row in texts(main).items()} == {"tuned": "0.750", "own_1": "0.500"}
    assert [cell.rank for _, cells in main.rows for cell in cells] == [0] * 10  # they compete with different methods
    assert paired.title == "Paired differences: tuned against plain, own_1 against tuned"
    found = differences(scored_rows(w.rows, w.scores, w.metrics), own, w.metrics)
    assert {d["method"]: (d["baseline"], pytest.approx(d["value"])) for d in found} == {
        "tuned": ("plain", 0.0025), "own_1": ("tuned", -0.0725),
    }


def test_without_a_common_prompt_there_is_no_win_rate():
    w = small_world()
    w.scores = w.scores[~w.scores.sample_id.str.startswith("plain/")]
    main, = tables.laid_out(w, TableSpec(show="win_rate", baseline="plain"))
    assert texts(main)["tuned"]["hps"] == "–"
    assert "hps: no prompt and seed with a score of it for plain as well" in main.notes


def test_win_rates_in_json_say_what_they_are():
    w = small_world()
    found = json.loads(tables.as_json(w, [TableSpec(), TableSpec(show="win_rate", baseline="plain")]))
    rates = [r for r in found if r.get("quantity") == "win_rate" and r["metric"] == "hps"]
    assert [(r["method"], r["value"], r["n"]) for r in rates] == [("tuned", 0.75, 2), ("own_1", 0.5, 2)]
    assert sum("quantity" not in r for r in found) == len(w.records)
    assert "hps,hps:low" in tables.render(w, TableSpec(show="win_rate", baseline="plain"), "csv")


def test_published_differences_stand_beside_the_paired_ones():
    w = small_world()
    w.published = published(("tuned", "hps", 0.2, "less plain"), quantity="difference", scale={"hps": 100.0})
    main, paired = tables.laid_out(w, TableSpec(baseline="plain"))
    assert not any(column.part for column in main.columns)
    row = texts(paired)["tuned"]
    assert row["hps published"] == "0.2"
    assert row["hps ours"].startswith("+0.250 [")
    assert paired.caption.endswith(f"Published: paper-table1 of {PAPER}.")


@pytest.mark.parametrize("quantity", ["win_rate", "difference"])
def test_numbers_against_another_baseline_are_left_out(quantity):
    w = small_world()
    spec = {"show": "win_rate"} if quantity == "win_rate" else {}
    w.published = published(("tuned", "hps", 65.0), ("own_1", "hps", 64.0), quantity=quantity, against="plain")

    def shown(baseline):
        found = tables.laid_out(w, TableSpec(baseline=baseline, **spec))[0 if spec else 1]
        return {method: row.get("hps published") for method, row in texts(found).items()}, found.notes

    said = "paper-table1: numbers against another baseline are left out"
    rows, notes = shown("plain")
    assert (rows, [note for note in notes if "left out" in note]) == ({"tuned": "65", "own_1": "64"}, [])
    rows, notes = shown({"tuned": "plain", "own_1": "tuned"})
    assert rows == {"tuned": "65", "own_1": "–"}
    assert f"{said} (1)" in notes
    rows, _ = shown("own_1")
    assert set(rows.values()) == {None}  # no number, no column
    w.published["against"] = ""  # not stated: the row's note says what is known
    assert shown("own_1")[0]["tuned"] == "65"


def test_the_json_of_a_published_win_rate_names_its_baseline():
    theirs = published(("tuned", "hps", 65.0), quantity="win_rate", against="plain")
    assert [r["baseline"] for r in beside.objects(theirs)] == ["plain"]
    assert "baseline" not in beside.objects(THEIRS)[0]


# ---- formats hold together ----


def latex_rows(text):
    """The table's lines as lists of cells with the columns that they span; fails where LaTeX would."""
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[#_^~]", text)
    assert re.findall(r"(?<!\\)%.*", text) in ([], ["%"] * text.count(r"\resizebox"))
    begun = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert what == "begin" or begun.pop() == name
        begun += [name] if what == "begin" else []
    assert not begun
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    for low, high in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body):
        assert 1 <= int(low) <= int(high) <= columns
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    for line in lines:
        spans = [re.match(r"\s*\\multicolumn\{(\d+)\}", cell) for cell in re.split(r"(?<!\\)&", line)]
        assert sum(int(span[1]) if span else 1 for span in spans) == columns
    return lines


WORDS = st.text("abz_%&#$^~{}\\<>×–-|", min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_latex_stays_whole_whatever_labels_and_notes_hold(method, metric, note):
    metrics = {metric: MetricInfo(metric, "d")}
    ours = [record(method, metric, -0.5), record("z" + method, metric, 0.25)]
    theirs = published((method, metric, 1.5, note), ("y" + method, "human", 3.0))
    text = render.latex(table(ours, theirs, metrics, average=True, ci=True))
    assert len(latex_rows(text)) == 5
    assert "$-$0.5" in text


def test_html_is_well_formed_and_its_head_as_wide_as_its_rows():
    text = render.html(table(theirs=pd.concat([THEIRS, published(("tuned", "human", 56.0))]), average=True))
    open_tags: list[str] = []
    widths: list[int] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)
            if tag == "tr":
                widths.append(0)
            if tag in ("th", "td"):
                widths[-1] += int(dict(attrs).get("colspan", 1))

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(text)
    assert not open_tags
    first, second, *rows = widths
    assert set(rows) == {first}
    assert second == 4  # three parts of hps, one of human


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_terminal_fits_its_width_and_loses_nothing(width):
    rng = np.random.default_rng(0)
    ours = [
        record(method, "hps", rng.random(), low=0.1, high=0.9, model=model, prompts=prompts)
        for model in ("sdxl-turbo", "sdxl") for prompts in ("pick-a-pic", "drawbench") for method in ("a", "b")
    ]
    theirs = pd.concat([
        THEIRS.assign(model=model, prompts=prompts) for model in ("sdxl-turbo", "sdxl")
        for prompts in ("pick-a-pic", "drawbench")
    ])
    lines = on_terminal(width, table(ours, theirs, {"hps": METRICS["hps"]}, average=True, ci=True))
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    assert text.count("26.25") == 4  # initno, of two models and two prompt sets
    assert "[10.00, 90.00]" in text


def test_a_published_table_agrees_where_one_row_has_three_labels_of_the_benchmark():
    labels = {"model": ["sd"], "method": ["plain", "own_1"], "prompts": ["p", "q"]}
    assert beside.agreement(THEIRS, labels) is None
    assert beside.agreement(THEIRS.assign(prompts="any"), labels) is None
    assert "there plain, initno, tuned" in beside.agreement(THEIRS, labels | {"method": ["own_1"]})
    assert "here r, there p" in beside.agreement(THEIRS, labels | {"prompts": ["r"]})
    # Each label is one of the benchmark's somewhere, but no row has all three.
    apart = pd.concat([THEIRS[:1].assign(model="xl"), THEIRS[1:]])
    assert beside.agreement(apart, labels) is not None


# ---- from the benchmark file to the table ----

FILE = """
name: selection
models:
  sdxl-turbo: {{family: stable_diffusion, weights: {sd}, batch: 2}}
prompts:
  pick-a-pic: {{set: shapes, first: 2}}
sampler: {{name: ddim, steps: 1}}
methods:
  unstable: {{guidance: none}}
  stable: {{guidance: {{cfg: {{scale: 3}}}}}}
metrics: [{{hpsv2: {{weights: {hpsv2}}}}}, pickscore]
tables:
  - {{columns: [hpsv2, pickscore], average: true}}
  - {{columns: [hpsv2, human], show: win_rate, baseline: {{stable: unstable}}}}
published: [noise-selection-table1, noise-selection-winrates, noise-selection-nfe]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A benchmark file with the labels of a published table, and tiny random weights."""
    folder = tmp_path_factory.mktemp("selection")
    sd, hpsv2 = tiny_stable_diffusion(folder / "sd"), tiny_openclip.write_hpsv2(folder)
    (folder / "selection.yaml").write_text(FILE.format(sd=sd, hpsv2=hpsv2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_WEIGHTS", str(folder / "none"))
        yield folder / "selection.yaml"


def test_a_run_is_printed_beside_its_paper(file, tmp_path, capsys):
    results = ("--results", str(tmp_path))
    code, said, errors = harness(capsys, "run", str(file), "--workers", "0", "--json", *results)
    assert code == 0, errors
    ours = {(r["method"], r["metric"]): r for r in json.loads(said) if "quantity" not in r}
    code, said, _ = harness(capsys, "table", "selection", "--format", "csv", *results)
    assert code == 0
    first, second = (list(csv.DictReader(io.StringIO(part))) for part in said.strip().split("\n\n"))
    printed = {"unstable": (27.2688, 21.6227), "stable": (27.4934, 21.6372)}
    for row in first:
        assert tuple(float(row[f"{key}:published"]) for key in ("hpsv2", "pickscore")) == printed[row["method"]]
        value = ours[row["method"], "hpsv2"]["value"]
        assert float(row["hpsv2"]) == value
        assert float(row["hpsv2:difference"]) == value - printed[row["method"]][0]
        assert row["pickscore"] == row["pickscore:difference"] == row["average"] == ""
    assert {row["method"]: row["NFE:published"] for row in first} == {"unstable": "", "stable": "800.0"}
    (won,) = second
    assert (won["method"], won["n"], won["human x100:published"]) == ("stable", "2", "56.0")
    assert float(won["hpsv2 x100:difference"]) == float(won["hpsv2 x100"]) - 65
    assert float(won["hpsv2 x100"]) in (0, 25, 50, 75, 100)
    for form in ("markdown", "latex", "html"):
        code, said, _ = harness(capsys, "table", "selection", "--format", form, *results)
        assert code == 0
        assert "random weights" in said
        assert "harness fetch pickscore" in said
        assert "27.2688" in said
        assert "against unstable" in said
    latex = harness(capsys, "table", "selection", "--format", "latex", *results)[1]
    for part in latex.split(r"\end{table}")[:-1]:
        assert latex_rows(part + r"\end{table}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"published": ["noise-selection-tabel1"]},
         ["published.0: unknown published table 'noise-selection-tabel1'", "did you mean 'noise-selection-table1'"]),
        ({"published": ["noise-optimisation-table2"]},
         ["published.0: noise-optimisation-table2: no row of it", "model: here sdxl-turbo, there sdxl;",
          "method: here unstable, stable, there original, optimised;", "prompts: here pick-a-pic, there pick-a-pic,"]),
        ({"tables": [{"show": "win_rate"}]}, ["tables.0: 'show: win_rate' needs a 'baseline'"]),
        ({"tables": [{"show": "winrate"}]}, ["tables.0.show:", "'value' or 'win_rate'"]),
        ({"tables": [{"baseline": {"stable": "unstabel"}}]},
         ["tables.0.baseline.stable: no method 'unstabel': did you mean 'unstable'"]),
        ({"tables": [{"baseline": {"stabel": "unstable"}}]}, ["tables.0.baseline.stabel: no method 'stabel'"]),
        ({"tables": [{"baseline": {"stable": "stable"}}]}, ["'stable' cannot be its own baseline"]),
        ({"tables": [{"baseline": 5}]}, ["tables.0.baseline: "]),
        ({"tables": [{"columns": ["humans"]}]}, ["tables.0.columns: no metric 'humans': did you mean 'human'"]),
    ],
)
def test_what_a_table_cannot_be_is_said_before_anything_runs(change, said, file, tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change, sort_keys=False))
    code, _, errors = harness(capsys, "run", str(path), "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 2
    assert str(path) in errors
    for part in said:
        assert part in errors, errors
    assert not (tmp_path / "runs").exists()
