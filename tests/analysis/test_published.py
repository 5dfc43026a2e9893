"""Published numbers: their files, the arithmetic that they must obey, the loader and the page."""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from harness import registry
from harness.analysis import published
from harness.analysis.beside import printed_decimals
from harness.analysis.published import Published, Row
from harness.benchmark import resources
from harness.errors import HarnessError

TABLES = {name: published.load(name) for name in published.known()}
DATA = published.rows()
LOWER = {"fid", "fd-dinov2-edm2", "lpips", "seconds", "nfe"}  # better when lower
VOTES = {  # of each win rate: a prompt is one, or what the paper says
    ("noise-selection-winrates", "pick-a-pic"): 100, ("noise-selection-winrates", "drawbench"): 200,
    ("noise-optimisation-winrates", "pick-a-pic"): 100, ("noise-optimisation-winrates", "drawbench"): 200,
    ("noiserefine-table4", "unstated"): 45 * 30, ("noiserefine-table6", "unstated"): 26 * 20,
}
Number = tuple[str, str, str, str, str]  # table, model, method, prompts, metric


def numbers(table: Published) -> Iterator[tuple[Row, str, float]]:
    for row in table.rows:
        for metric, value in row.values.items():
            yield row, metric, value


def key(table: Published, row: Row, metric: str) -> Number:
    return table.name, row.model, row.method, row.prompts, metric


def value(table: str, method: str, metric: str, model: str | None = None, prompts: str | None = None) -> float:
    """The one number of a table with these labels."""
    found = [
        number for row, name, number in numbers(TABLES[table])
        if (row.method, name) == (method, metric) and model in (None, row.model) and prompts in (None, row.prompts)
    ]
    assert len(found) == 1, (table, method, metric, found)
    return found[0]


def size(model: str) -> str:
    """An EDM2 network of ImageNet-512 without the metric that its EMA length and guide were chosen for."""
    return re.sub(r"-((guid|autog)-)?(fid|dino)$", "", model)


def rounding(table: Published, metric: str) -> float:
    """Half a unit of the last printed digit of a column."""
    return 0.5 * 10.0 ** -printed_decimals([number for _, name, number in numbers(table) if name == metric])


# ---------------------------------------------------------------------------- what must agree within a paper


def wrong_averages() -> Iterator[Number]:
    """"Average" is the plain mean of the row's other columns, to within the rounding of all of them."""
    for table in TABLES.values():
        for row in table.rows:
            if "average" in row.values:
                others = [name for name in row.values if name != "average"]
                mean = sum(row.values[name] for name in others) / len(others)
                allowed = rounding(table, "average") + sum(rounding(table, n) for n in others) / len(others)
                if abs(mean - row.values["average"]) > allowed + 1e-9:
                    yield key(table, row, "average")


def wrong_differences() -> Iterator[Number]:
    """A quoted difference is that of the rows of the paper's tables."""
    for table in TABLES.values():
        for row, metric, number in numbers(table) if table.quantity == "difference" else ():
            other = row.against
            assert other
            source = next(
                t for t in TABLES.values() if t.quantity == "value" and t.paper.arxiv == table.paper.arxiv
                and any((r.model, r.method, r.prompts) == (row.model, other, row.prompts) for r in t.rows)
            )
            factor = table.scale.get(metric, 1) / source.scale.get(metric, 1)
            place = {"model": row.model, "prompts": row.prompts}
            difference = value(source.name, row.method, metric, **place) - value(source.name, other, metric, **place)
            allowed = rounding(table, metric) + 2 * factor * rounding(source, metric)
            if abs(factor * difference - number) > allowed + 1e-9:
                yield key(table, row, metric)


def wrong_pairs() -> Iterator[Number]:
    """The two sides of a user study share 100 %."""
    for table in TABLES.values():
        for row, metric, number in numbers(table) if table.quantity == "win_rate" else ():
            others = [r.values[metric] for r in table.rows if r.method == row.against and metric in r.values]
            if others and (len(others) > 1 or abs(number + others[0] - 100) > 1e-9):
                yield key(table, row, metric)


def wrong_votes() -> Iterator[Number]:
    """A win rate is a whole number of votes, rounded as printed."""
    for name in {name for name, _ in VOTES}:
        table = TABLES[name]
        for row, metric, number in numbers(table):
            votes = VOTES[name, row.prompts]
            share = 100 * round(number * votes / 100) / votes
            if abs(share - number) > 0.5 * 10.0 ** -printed_decimals([number]) + 1e-9:
                yield key(table, row, metric)


def wrong_order() -> Iterator[Number]:
    """NoiseRefine's Table 1: refined noise lies between plain noise and guidance, by every metric on all prompts."""
    table = TABLES["noiserefine-table1"]
    order = ["gaussian", "noise-refine", "guided"]
    for prompts in ("drawbench", "hpdv2", "pick-a-pic", "coco"):
        for metric in table.rows[0].values:
            for low, high in itertools.pairwise(order):
                if value(table.name, low, metric, prompts=prompts) >= value(table.name, high, metric, prompts=prompts):
                    yield table.name, "sd21", low, prompts, metric
                    yield table.name, "sd21", high, prompts, metric


def wrong_repetitions() -> Iterator[Number]:
    """What stands in two tables under the same labels is the same number (a win rate: against the same method); EDM2's
    networks by their `size`, as each metric has a network of its own."""
    seen: dict[Any, tuple[float, Number]] = {}
    for table in TABLES.values():
        for row, metric, number in numbers(table):
            opponent = row.against or row.note if table.quantity != "value" else None
            same = (size(row.model), row.method, row.prompts, metric, table.quantity, opponent)
            first, where = seen.setdefault(same, (number, key(table, row, metric)))
            if "any" not in (row.method, row.prompts) and first != number:
                yield where
                yield key(table, row, metric)


CHECKS = [wrong_averages, wrong_differences, wrong_pairs, wrong_votes, wrong_order, wrong_repetitions]


def test_the_misprints_are_exactly_those_that_arithmetic_finds() -> None:
    found = {number: check.__doc__ for check in CHECKS for number in check()}
    flagged = {(table.name, *cell): says for table in TABLES.values() for cell, says in table.said().items()}
    for number, law in found.items():
        print("misprint:", " / ".join(number), "|", law)
    assert set(found) == set(flagged)
    assert len(found) == 8
    assert {check.__name__: len(set(check())) for check in CHECKS} == {
        "wrong_averages": 2, "wrong_differences": 0, "wrong_pairs": 0, "wrong_votes": 4, "wrong_order": 2,
        "wrong_repetitions": 0,
    }


@pytest.mark.parametrize(("check", "name", "row", "metric", "wrong", "found"), [
    (wrong_averages, "noise-selection-table1", 1, "pickscore", 21.6472, "average"),
    (wrong_differences, "noise-optimisation-differences", 1, "hpsv2", 0.755, "hpsv2"),
    (wrong_pairs, "noiserefine-table6", 1, "human-quality", 3.09, "human-quality"),
    (wrong_votes, "noise-selection-winrates", 3, "human", 57.2, "human"),
    (wrong_order, "noiserefine-table1", 0, "aesthetic", 5.529, "aesthetic"),
    (wrong_repetitions, "edm2-presets-cfg", 2, "fid", 2.24, "fid"),
])
def test_a_wrong_digit_is_found(
    monkeypatch: pytest.MonkeyPatch, check: Any, name: str, row: int, metric: str, wrong: float, found: str
) -> None:
    before = set(check())
    changed = TABLES[name].model_copy(deep=True)
    assert changed.rows[row].values[metric] != wrong
    changed.rows[row].values[metric] = wrong
    monkeypatch.setitem(TABLES, name, changed)
    assert key(changed, changed.rows[row], found) in set(check()) - before


# ---------------------------------------------------------------------------------------- what the papers claim


def better(table: str, good: str, bad: str, equal: bool = False) -> None:
    """`good` beats `bad` by every metric that both have, for every model and prompt set."""
    compared = 0
    for model, prompts in {(row.model, row.prompts) for row in TABLES[table].rows}:
        rows = {r.method: r for r in TABLES[table].rows if (r.model, r.prompts) == (model, prompts)}
        if good in rows and bad in rows:
            for metric in rows[good].values.keys() & rows[bad].values.keys():
                sign = -1 if metric in LOWER else 1
                gain = sign * (rows[good].values[metric] - rows[bad].values[metric])
                assert gain > 0 or (equal and gain == 0), (table, model, prompts, metric)
                compared += 1
    assert compared


def test_the_methods_are_better_where_their_papers_say_so() -> None:
    better("noise-optimisation-table2", "optimised", "original")
    better("noise-optimisation-table3", "optimised", "original")
    better("noiserefine-table3", "noise-refine-n10", "noise-refine-n5")
    better("noiserefine-table3", "noise-refine-filtered", "noise-refine-unfiltered")
    better("noiserefine-table5", "noise-refine-lora", "noise-refine-unet-from-scratch")
    better("noiserefine-table7", "noise-refine-lora", "noise-refine-small-mlp")
    better("noiserefine-iclr-quality", "noise-refine", "gaussian")
    better("noiserefine-iclr-loss", "noise-refine-image-space-loss", "noise-refine-noise-space-loss")
    for name in ("noise-diffusion-simple", "noise-diffusion-complex"):
        better(name, "noise-diffusion", "initno")
        better(name, "initno", "baseline")
    better("golden-noise-geneval", "golden-noise", "standard")
    for other in ("no-guidance", "cfg", "adg", "cfg++"):
        better("cfg-zero-star-imagenet", "cfg-zero-star", other)
    better("cfg-zero-star-text-to-image", "cfg-zero-star", "cfg")
    better("cfg-zero-star-t2i-compbench", "cfg-zero-star", "cfg", equal=True)  # SD3's spatial relations are equal
    better("search-drawbench", "search", "one-sample")
    better("search-t2i-compbench", "search", "one-sample")
    for steps in (16, 32, 64):
        better("guidance-interval-steps", f"interval-{steps}-steps", f"cfg-{steps}-steps")


def test_selection_helps_but_for_one_number() -> None:
    name = "noise-selection-table1"
    worse = [
        (prompts, metric) for prompts in ("pick-a-pic", "drawbench") for metric in TABLES[name].rows[0].values
        if value(name, "stable", metric, prompts=prompts) <= value(name, "unstable", metric, prompts=prompts)
    ]
    assert worse == [("drawbench", "pickscore")]


def test_noiserefine_is_faster_than_guidance_and_beats_its_fid() -> None:
    def of(method: str, metric: str) -> float:
        return value("noiserefine-table2", method, metric)

    assert of("guided", "seconds") / of("noise-refine", "seconds") == pytest.approx(1.72, abs=0.005)
    assert of("gaussian", "seconds") < of("noise-refine", "seconds") < of("guided", "seconds")
    assert of("noise-refine", "fid") < of("guided", "fid") < of("gaussian", "fid")
    assert of("gaussian", "inception-score") < of("noise-refine", "inception-score") < of("guided", "inception-score")
    steps = 20  # the claim counts evaluations: one of the refiner, and guidance doubles or trebles a step
    assert round(2 * steps / (1 + steps)) == value("noiserefine-speed", "noise-refine", "speedup")
    assert round(3 * steps / (1 + steps)) == value("noiserefine-speed", "noise-refine", "speedup-over-cfg-pag")


def test_numbers_of_one_experiment_agree_under_different_labels() -> None:
    n5 = value("noiserefine-table3", "noise-refine-n5", "fid")
    assert n5 == value("noiserefine-table5", "noise-refine-lora", "fid")
    assert n5 == value("noiserefine-table7", "noise-refine-lora", "fid")
    for metric in ("fid", "inception-score"):
        first = value("noiserefine-table2", "gaussian", metric)
        assert first == value("noiserefine-iclr-quality", "gaussian", metric, model="sd21")
    for kind, method in (("cfg", "cfg-1.4"), ("interval", "interval-2.1")):
        tuned = value("guidance-interval-table1", method, "fid")
        assert value("guidance-interval-steps", f"{kind}-32-steps", "fid") == tuned
    shared = {"cfg-1.4", "cfg-1.9", "cfg-1.2", "cfg-1.7"}
    mine = {(size(r.model), r.method) for r in TABLES["guidance-interval-table1"].rows if r.method in shared}
    assert mine <= {(size(r.model), r.method) for r in TABLES["edm2-presets-cfg"].rows}  # compared by wrong_repetitions


def best(table: str, model: str, metric: str, kind: str) -> float:
    """The one number of a kind of method (its label begins so), whatever its weight."""
    (found,) = [r.values[metric] for r in TABLES[table].rows
                if size(r.model) == model and r.method.startswith(kind) and metric in r.values]
    return found


def test_an_interval_beats_guidance_everywhere_and_autoguidance_beats_both() -> None:
    for metric in ("fid", "fd-dinov2-edm2"):
        for model in ("edm2-s", "edm2-xxl", "dit-xl-2"):
            assert best("guidance-interval-table1", model, metric, "interval") < best(
                "guidance-interval-table1", model, metric, "cfg")
        for model in ("edm2-s", "edm2-xxl"):
            assert (
                best("autoguidance-presets", model, metric, "autoguidance")
                < best("guidance-interval-table1", model, metric, "interval")
                < best("edm2-presets-cfg", model, metric, "cfg")
                < best("edm2-presets-unguided", model, metric, "no-guidance")
            )
    fids = [v for row, m, v in numbers(TABLES["guidance-interval-table1"]) if m == "fid" and row.model == "edm2-xxl"]
    assert fids == [1.81, 1.40]  # "from 1.81 to 1.40", the abstract
    assert value("autoguidance-presets", "autoguidance-1.70", "fid") < value(
        "edm2-presets-img64", "no-guidance", "fid", model="edm2-img64-s")


def test_larger_networks_are_better() -> None:
    for table, sizes in (("edm2-presets-unguided", 6), ("edm2-presets-cfg", 6), ("edm2-presets-img64", 4)):
        for metric in ("fid", "fd-dinov2-edm2"):
            found = [number for _, name, number in numbers(TABLES[table]) if name == metric]
            assert found == sorted(found, reverse=True)
            assert len(found) == (0 if "64" in table and metric != "fid" else sizes)
            if "64" not in table:
                assert len(set(found)) == sizes


def test_win_rates_are_above_half_and_which_are_significantly() -> None:
    doubtful = []
    for name in ("noise-selection-winrates", "noise-optimisation-winrates"):
        for row, metric, number in numbers(TABLES[name]):
            votes = VOTES[name, row.prompts]
            assert number > 50
            p = binomtest(round(number * votes / 100), votes).pvalue
            if p > 0.05:
                doubtful.append((metric, row.prompts, round(p, 2)))
    assert doubtful == [("human", "pick-a-pic", 0.27), ("human", "drawbench", 0.06)]
    setting = TABLES["noise-selection-winrates"].setting
    assert setting
    assert "p = 0.27 and 0.06" in setting
    for prompts in ("pick-a-pic", "drawbench"):
        for metric in ("hpsv2", "human"):
            assert value("noise-optimisation-winrates", "optimised", metric, prompts=prompts) > value(
                "noise-selection-winrates", "stable", metric, prompts=prompts)


# --------------------------------------------------------------------------------------- grids, intervals, costs


def grid(low: float, high: float, rho: float, steps: int) -> list[float]:
    """EDM's noise levels."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + i / (steps - 1) * (b - a)) ** rho for i in range(steps)]


def interval_of(row: Row) -> tuple[float, float] | None:
    found = re.search(r"σ in \((\d+\.\d+), (\d+\.\d+)\]", row.note or "")
    return (float(found[1]), float(found[2])) if found else None


def test_intervals_lie_on_the_solver_s_grid() -> None:
    """Every printed end is a noise level of 32 steps to two decimals (it was snapped to one); the printed steps are
    those inside; and the NFE is 2·32 - 1 of the network and two of the guide for each step inside."""
    edm, sdxl = grid(0.002, 80, 7, 32), grid(0.03, 14.6146, 3, 32)
    tables = [(edm, row) for row in TABLES["guidance-interval-table1"].rows if row.model.startswith("edm2")]
    tables += [(sdxl, row) for row in TABLES["guidance-interval-sdxl"].rows]
    checked = 0
    for levels, row in tables:
        ends = interval_of(row)
        if ends is None:
            assert row.method.startswith("cfg")
            continue
        low, high = (min(range(32), key=lambda i: abs(levels[i] - end)) for end in ends)
        assert [round(levels[low], 2), round(levels[high], 2)] == list(ends)
        printed = re.search(r"steps (\d+) to (\d+)", row.note or "")
        assert not printed or (int(printed[1]), int(printed[2])) == (high, low - 1)
        costs = [r for r in TABLES["guidance-interval-nfe"].rows if (r.model, r.method) == (row.model, row.method)]
        for cost in costs:
            # The guide is asked twice a step. SD XL's guide is the network itself.
            assert cost.values["nfe"] == 63 + 2 * (low - high)
            assert cost.note == f"steps {high} to {low - 1} guided"
            checked += 1
    assert checked == 3
    assert {row.values["nfe"] for row in TABLES["guidance-interval-nfe"].rows if "cfg" in row.method} == {2 * 63}
    claimed = value("guidance-interval-sdxl", "interval-16", "speedup")
    assert 126 / value("guidance-interval-nfe", "interval-16", "nfe") >= claimed


def test_a_third_of_dit_s_steps_is_guided() -> None:
    """75 of 250 fits the cosine schedule by which EDM's iDDPM sampler takes its steps: sigma = tan of an angle that
    falls evenly, with offset 0.008."""
    for row in TABLES["guidance-interval-table1"].rows:
        ends = interval_of(row)
        if "guided-steps" in row.values:
            assert ends
            low, high = (math.atan(end) / (math.pi / 2) * 1.008 for end in ends)
            assert 250 * (high - low) == pytest.approx(row.values["guided-steps"], abs=0.5)  # a step may end inside


def test_evaluations_follow_from_the_settings() -> None:
    """The formulas of docs/methods.md with the papers' settings."""
    assert value("noise-selection-nfe", "stable", "nfe") == 100 * 4 * (1 + 1)
    assert value("noise-optimisation-nfe", "optimised", "nfe") == 100 * 10 * (2 + 1) + 10 * 2
    assert value("noise-diffusion-nfe", "noise-diffusion", "nfe") == 2 * 50 * (1 + 50)
    assert value("nlg-nfe", "nlg", "nfe") == 2 * 20 + 20
    assert value("nlg-nfe", "cfg-7.5", "nfe") == 2 * 20
    assert value("z-sampling-nfe", "z-sampling", "nfe") == 3 * 2 * 49 + 2
    assert value("search-drawbench", "search", "nfe") % 30 == 0  # whole images of 30 steps


def test_cost_grows_with_the_parameters() -> None:
    s, xxl, dit = (row.values for row in TABLES["guidance-interval-models"].rows)
    ratio = xxl["million-parameters"] / s["million-parameters"]
    assert xxl["gflops"] / s["gflops"] == pytest.approx(ratio, rel=0.01)  # one architecture, wider
    assert dit["gflops"] / dit["million-parameters"] < 1  # another one: its quotient is no EDM2's
    assert value("vqascore-memory", "loaded", "mebibytes", "clip-flant5-xxl") > value(
        "vqascore-memory", "loaded", "mebibytes", "clip-flant5-xl")


# ------------------------------------------------------------------------------------------------- the data as such


def test_every_file_is_a_table_of_its_own() -> None:
    assert len(TABLES) >= 48
    assert all(table.name == name == name.lower() for name, table in TABLES.items())
    assert not DATA.duplicated(["table", "model", "method", "prompts", "metric", "quantity"]).any()
    assert (DATA["source"].str.len() > 5).all()
    assert not DATA["source"].str.contains(r"specs|seeds/|shared|/work|\.md|\.txt").any()
    assert list(DATA.columns) == published.COLUMNS
    assert DATA["value"].dtype == DATA["scale"].dtype == float


def test_metrics_are_ours_or_words_that_the_page_explains() -> None:
    used = set(DATA["metric"])
    assert used <= set(registry.BUILTIN["metric"]) | set(published.WORDS)
    assert set(published.WORDS) <= used, "a word that no table uses"
    assert not set(published.WORDS) & set(registry.names("metric"))


def test_scales_put_every_metric_into_our_range() -> None:
    """Printed / scale of a value lies where docs/metrics.md says that our metric lies."""
    ranges = {"hpsv2": (15, 35), "hpsv2.1": (15, 35), "pickscore": (15, 26), "imagereward": (-2.5, 2.5),
              "aesthetic": (1, 10), "clipscore-b16": (15, 40), "vqascore-clip-flant5-xxl": (0, 1), "ssim": (-1, 1)}
    values = DATA[DATA["quantity"] == "value"]
    for metric, (low, high) in ranges.items():
        ours = values.loc[values["metric"] == metric, "value"] / values.loc[values["metric"] == metric, "scale"]
        assert len(ours)
        assert ours.between(low, high).all(), metric
    rates = DATA[DATA["quantity"] == "win_rate"]
    assert (rates["value"] / rates["scale"]).between(0, 1).all()
    assert (rates["scale"] == 100).all()


def test_rows_of_one_table() -> None:
    one = published.rows("noise-optimisation-table2")
    assert len(one) == 20
    assert one.iloc[0].to_dict() | {"source": ""} == {
        "paper": "Not All Noises Are Created Equally: Diffusion Noise Selection and Optimization (arXiv 2407.14041)",
        "table": "noise-optimisation-table2", "model": "sdxl", "method": "original", "prompts": "pick-a-pic",
        "metric": "hpsv2", "quantity": "value", "against": "", "value": 25.98, "scale": 1.0, "source": "", "note": "",
    }
    assert one.iloc[4]["note"].startswith("misprint: ")
    pd.testing.assert_frame_equal(DATA[DATA["table"] == one["table"][0]].reset_index(drop=True), one)
    assert set(published.rows("noiserefine-table1").query("metric == 'hpsv2'")["scale"]) == {0.01}


def test_what_a_win_rate_or_difference_is_against() -> None:
    found = DATA.drop_duplicates(["table", "quantity", "against"]).set_index("table")
    assert dict(found.loc[found["quantity"] != "value", "against"].groupby(level=0).agg(",".join)) == {
        "noise-selection-winrates": "unstable", "noise-selection-differences": "unstable",
        "noise-optimisation-winrates": "original", "noise-optimisation-differences": "original",
        "noise-diffusion-differences": "initno", "z-sampling-winrates": "",  # "standard sampling" is no label
        "noiserefine-table4": "guided,noise-refine", "noiserefine-table6": "gaussian,noise-refine",
    }
    assert set(DATA.loc[DATA["quantity"] == "value", "against"]) == {""}
    notes = published.rows("noise-selection-winrates")["note"].tolist()
    assert notes[0] == "against unstable"
    assert notes[3] == 'against unstable; the text says "up to 57 %"'
    assert published.rows("noise-diffusion-differences")["note"].tolist() == ["less initno; in points"]


def test_the_page_shows_the_data() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    assert page == published.page(), "python -m harness.analysis.published > docs/published.md"
    for table in TABLES.values():
        for row, metric, number in numbers(table):
            digits = printed_decimals([v for _, name, v in numbers(table) if name == metric])
            assert f" {number:.{digits}f}" in page, (table.name, row.method, metric)


# ------------------------------------------------------------------------------------------------------ the loader

GOOD: dict[str, Any] = {
    "name": "mine", "paper": {"title": "A paper", "arxiv": "2401.00001", "table": 1}, "source": "Table 1",
    "rows": [
        {"model": "m", "method": "a", "prompts": "p", "values": {"fid": 3.5, "average": 2}},
        {"model": "m", "method": "b", "prompts": "p", "values": {"fid": 3.25}, "note": "a note"},
    ],
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def changed(place: str, new: Any) -> dict[str, Any]:
    """GOOD with the value at "rows.1.values.fid" replaced; None takes the key away."""
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    *way, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    inner = content
    for part in way:
        inner = inner[part]
    if new is None:
        del inner[last]
    else:
        inner[last] = new
    return content


@pytest.mark.parametrize(("place", "new", "says"), [
    ("rows/1/values/fid", "3.25", "rows.1.values.fid: Input should be a valid number, got '3.25'"),
    ("rows/1/values/fid", float("nan"), "rows.1.values.fid: Input should be a finite number, got nan"),
    ("rows/1/values/fid", float("inf"), "rows.1.values.fid: Input should be a finite number, got inf"),
    ("rows/1/values/fid", True, "rows.1.values.fid: Input should be a valid number, got True"),
    ("rows/1/values/fid", [1], "rows.1.values.fid: Input should be a valid number, got [1]"),
    ("rows/1/values", {}, "rows.1.values: Dictionary should have at least 1 item"),
    ("rows/1/values", {"fidd": 1},
     "rows.1.values: 'fidd' is no metric of this project and no known word: did you mean 'fid'"),
    ("rows/1/values", None, "rows.1.values: this key is required"),
    ("rows/1/model", None, "rows.1.model: this key is required"),
    ("rows/1/method", True, "rows.1.method: Input should be a valid string, got True"),
    ("rows/1/prompts", " ", "rows.1.prompts: String should have at least 1 character"),
    ("rows/1/metod", "x", "rows.1.metod: unknown key: did you mean 'method' or 'model'?"),
    ("rows/1/method", "a", "rows.1.values.fid: row 0 gives the same number"),
    ("rows", [], "rows: List should have at least 1 item"),
    ("rows", None, "rows: this key is required"),
    ("source", None, "source: this key is required"),
    ("source", "", "source: String should have at least 1 character"),
    ("paper", {"title": "x", "arxive": "1"}, "paper.arxive: unknown key: did you mean 'arxiv'?"),
    ("rows/1/against", "a", "rows.1.against: a value is against nothing"),
    ("quantitty", "value", "quantitty: unknown key: did you mean 'quantity'?"),
    ("quantity", "ratio", "quantity: Input should be 'value', 'win_rate' or 'difference', got 'ratio'"),
    ("scale", {"fid": 0}, "scale.fid: Input should be greater than 0, got 0"),
    ("scale", {"kid": 100}, "scale.kid: no row has this metric"),
    ("name", "other", "name: expected the file's, 'mine', got 'other'"),
    ("misprints", [{"model": "m", "method": "b", "prompts": "p", "metric": "average", "says": "x"}],
     "misprints.0: no row gives m / b / p / average"),
    ("misprints", [{"model": "m", "method": "b", "prompts": "p", "metric": "fid", "says": "x"}] * 2,
     "misprints: the same number stands there twice"),
    ("misprints", [{"model": "m", "method": "b", "prompts": "p", "metric": "fid"}],
     "misprints.0.says: this key is required"),
])
def test_a_mistake_is_named_with_file_row_and_key(tmp_path: Path, place: str, new: Any, says: str) -> None:
    path = written(tmp_path, changed(place, new))
    with pytest.raises(HarnessError) as error:
        published.read(path)
    assert f"{path}: {says}" in str(error.value)


def test_an_empty_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(GOOD).replace("fid: 3.25", "fid:"))
    with pytest.raises(HarnessError, match=r"rows\.1\.values\.fid: Input should be a valid number, got None"):
        published.read(path)


@pytest.mark.parametrize(("text", "says"), [
    ("- 1\n", "expected a mapping with name, paper, source and rows"),
    ("name: [", "not valid YAML"),
    ("name: mine\nname: mine\n", "the key 'name' stands here twice"),
])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(says)):
        published.read(written(tmp_path, text))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(HarnessError, match="unknown published table 'noise-selection-table2': did you mean"):
        published.load("noise-selection-table2")
    with pytest.raises(HarnessError, match="'noise-selection-table1'"):
        published.rows("noise-selection-table2")


finite = st.floats(allow_nan=False, allow_infinity=False)
label = st.text("abcdefgh-.0123456789", min_size=1, max_size=8).filter(lambda text: text.strip())


@given(st.dictionaries(st.tuples(label, label, label), st.dictionaries(
    st.sampled_from(["fid", "hpsv2", "average", "human"]), finite, min_size=1), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_written_table_is_read_back(tmp_path_factory: pytest.TempPathFactory, content: dict[Any, Any]) -> None:
    """Labels that YAML would read as numbers or dates are quoted by the writer; numbers come back to the last bit."""
    rows = [{"model": a, "method": b, "prompts": c, "values": values} for (a, b, c), values in content.items()]
    path = written(tmp_path_factory.mktemp("table"), GOOD | {"rows": rows})
    found = published.read(path)
    assert {(row.model, row.method, row.prompts): row.values for row in found.rows} == content


def test_decimals_are_those_of_the_longest_number() -> None:
    columns = [[1.0, 25.98], [0.25, 13.3097], [800, 3020], [72.5, 69], [0.1]]
    assert [printed_decimals(column) for column in columns] == [2, 4, 0, 1, 1]


def test_the_folder_is_found_in_a_checkout_and_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resources("published") == Path(__file__).parents[2] / "results" / "published"
    (tmp_path / "harness" / "published").mkdir(parents=True)
    monkeypatch.setattr("harness.benchmark.files", lambda _: tmp_path / "harness")
    assert resources("published") == tmp_path / "harness" / "published"
