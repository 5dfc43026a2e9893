"""`harness compare`: what may be compared, on which pairs, and the numbers against others' arithmetic."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from harness.analysis import comparison, published
from harness.analysis.layout import decimals, fixed
from harness.compare import compare
from harness.errors import HarnessError
from tests.command import harness
from tests.small import small_folder, small_run

FEW = {"things": {"set": "things", "path": "prompts.txt", "first": 2}}
ONE = {"cfg": {"guidance": {"cfg": {"scale": 3}}}}
# A run that differs from `base` in one thing: what changes, and what the refusal must say of it.
OTHERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fewer": ({"prompts": FEW, "seeds": [0, 1]}, ["prompts things: 4 only in base: 2, 3, 4, 5"]),
    "texts": (
        {"prompts": {"things": {"set": "things", "path": "changed.txt"}}, "seeds": [0, 1]},
        ["1 of the same id have another text: 1 reads 'thing 1' in base, 'other thing 1' in texts"],
    ),
    "class": (
        {"prompts": {"things": {"set": "things", "path": "classes.jsonl"}}, "seeds": [0, 1]},
        ["1 of the same id have another class_label: 1 has None in base, 7 in class"],
    ),
    "set": (
        {"prompts": {"things": {"set": "stuff", "path": "prompts.txt"}}, "seeds": [0, 1]},
        ["prompts things: the set things in base, stuff in set"],
    ),
    "seeds": ({"seeds": [1]}, ["seeds: 0, 1 in base, 1 in seeds"]),
    "seeding": ({"seeding": "literal", "seeds": [0, 1]}, ["seeding: identity in base, literal in seeding"]),
    "size": (
        {"models": {"sd": {"family": "stable_diffusion", "weights": "sd", "batch": 8, "size": 32}}, "seeds": [0, 1]},
        ["resolution: 64 x 64 in base, 32 x 32 in size", "model sd is another: size 64 in base, 32 in size"],
    ),
    "model": (
        {"models": {"sd": {"family": "stable_diffusion", "weights": "other", "batch": 8, "size": 64}},
         "seeds": [0, 1]},
        ["model sd is another: weights "],
    ),
    "metric": (
        {"metrics": [{"small_plugins:Brightness": {"offset": 1.0}}, "small_plugins:Shift"], "seeds": [0, 1]},
        ["metric brightness is another: parameters.offset 0.0 in base, 1.0 in metric"],
    ),
    "reference": (
        {"metrics": ["small_plugins:Brightness", {"small_plugins:Shift": {"grey": 50.0}}], "seeds": [0, 1]},
        ["metric shift is another: content.reference 'grey 100.0' in base, 'grey 50.0' in reference"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`base`, and `again`, which has another model under another label and other steps under the same."""
    before = list(sys.path)
    made = small_folder(tmp_path_factory.mktemp("compare"))
    small_run(made, "base")
    other = {"other": {"family": "stable_diffusion", "weights": str(made / "other"), "batch": 8, "size": 64}}
    small_run(made, "again", models=other, methods=ONE, sampler={"name": "ddim", "steps": 3})
    yield made
    sys.path[:] = before
    sys.modules.pop("small_plugins", None)


def compared(folder: Path, *names: str, anyway: bool = False) -> comparison.Comparison:
    return compare(names, results=folder / "results", anyway=anyway)


def scores(folder: Path, name: str, method: str) -> pd.DataFrame:
    """Brightness by (prompt, seed), read from the part files without this project's reader."""
    root = folder / "results" / name
    images = pd.concat(map(pd.read_parquet, sorted(root.glob(f"images/*/{method}/things/*.parquet"))))
    values = pd.concat(map(pd.read_parquet, sorted(root.glob(f"scores/brightness/*/{method}/things/*.parquet"))))
    rows = images[["sample_id", "prompt_id", "seed"]].merge(values[["sample_id", "value"]])
    return rows.set_index(["prompt_id", "seed"]).sort_index()


def test_two_methods_of_a_run_by_hand(folder: Path) -> None:
    found = compared(folder, "base/plain", "base/cfg")
    assert [(r["metric"], r["method"], r["against"], r["n"], r["clusters"]) for r in found.records] == [
        ("brightness", "cfg", "plain", 12, 6), ("shift", "cfg", "plain", 12, 6),
    ]
    record = found.records[0]
    first, other = scores(folder, "base", "plain")["value"], scores(folder, "base", "cfg")["value"]
    means = (other - first).groupby("prompt_id").mean()
    assert record["mean"] == pytest.approx(other.mean())
    assert record["mean_against"] == pytest.approx(first.mean())
    assert record["value"] == pytest.approx(means.mean())
    assert (record["wins"], record["losses"]) == ((means > 0).sum(), (means < 0).sum())
    assert record["win_rate"] == pytest.approx((means > 0).mean())
    interval = scipy.stats.binomtest(int((means > 0).sum()), 6).proportion_ci(method="wilson")
    assert (record["win_low"], record["win_high"]) == pytest.approx((interval.low, interval.high))
    assert record["effect_size"] == pytest.approx(means.mean() / means.std(ddof=1))
    # 6 prompts: all 64 sign flips are tried, by both
    exact = scipy.stats.permutation_test((means.to_numpy(),), np.mean, permutation_type="samples", n_resamples=64)
    assert record["p"] == record["p_holm"] == pytest.approx(exact.pvalue)
    assert record["nfe"] / record["nfe_against"] == 2


def test_a_metric_of_whole_cells_is_the_difference_of_its_values(folder: Path) -> None:
    from harness.run import table

    values = {r["method"]: r["value"] for r in table("base", results=folder / "results").records
              if r["metric"] == "shift"}
    record = compared(folder, "base/plain", "base/cfg").records[1]
    assert (record["mean_against"], record["mean"]) == pytest.approx((values["plain"], values["cfg"]))
    assert record["value"] == pytest.approx(values["cfg"] - values["plain"])
    assert record["low"] < record["value"] < record["high"]
    assert record["p"] is None
    assert record["win_rate"] is None


def test_the_other_way_round_is_the_other_sign(folder: Path) -> None:
    ahead, back = (compared(folder, *names).records for names in (("base/plain", "base/cfg"), ("base/cfg", "base")))
    for one, other in zip(ahead, back, strict=True):
        assert one["value"] == pytest.approx(-other["value"])
        assert one["p"] == other["p"]
    assert ahead[0]["win_rate"] == pytest.approx(1 - back[0]["win_rate"])


def test_other_models_and_other_steps_are_told_and_compared(folder: Path) -> None:
    found = compared(folder, "base", "again")
    assert [(r["method"], r["against"], r["model"]) for r in found.records] == [("again/cfg", "base/cfg", "other")] * 2
    said = "\n".join(found.notes)
    assert "model: sd in base, other in again" in said
    assert "method cfg: sampler.steps 2 in base, 3 in again" in said


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_refused_and_compared_anyway(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    change, expected = OTHERS[name]
    small_run(folder, name, methods=ONE, **change)
    with pytest.raises(HarnessError) as refused:
        compared(folder, "base", name)
    for text in expected:
        assert text in str(refused.value)
    reasons = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert len(reasons) == len(expected)  # and nothing else
    assert "--anyway" in str(refused.value)

    found = compared(folder, "base", name, anyway=True)
    assert "common pairs only" in found.notes[0]
    assert all(text in found.notes[0] for text in expected)
    pairs = {"fewer": 4, "texts": 10, "class": 10, "seeds": 6}.get(name, 12)
    by_metric = {r["metric"]: r["n"] for r in found.records}
    assert by_metric["brightness"] == pairs
    assert by_metric.get("shift") == (None if name == "reference" else pairs)
    assert "common pairs only" in found.render("markdown")
    if name == "metric":
        assert found.records[0]["value"] == pytest.approx(1)


def test_every_reason_stands_in_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    small_run(folder, "several", methods=ONE, **OTHERS["metric"][0] | {"seeds": [1], "prompts": FEW})
    with pytest.raises(HarnessError, match=r"seeds: (.|\n)*metric brightness is another") as refused:
        compared(folder, "base", "several")
    assert "4 only in base" in str(refused.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["base"], "two or more"),
        (["base", "base"], "compared with itself"),
        (["base/cfg", "base/cfg"], "compared with itself"),
        (["base/plan", "base/cfg"], "did you mean 'plain'"),
        (["bas", "base"], "did you mean 'base'"),
        (["again", "base/plain"], "no method of the same label"),
        (["base", "published:nothing-like-it"], "unknown published table"),
    ],
)
def test_what_is_no_comparison_is_refused(folder: Path, names: list[str], expected: str) -> None:
    if names == ["again", "base/plain"]:
        small_run(folder, "third", methods={"a": {}, "b": {}}, prompts=FEW, seeds=[0], metrics=[], tables=[])
        names = ["third", "base"]
    with pytest.raises(HarnessError, match=expected):
        compared(folder, *names)


def test_a_run_whose_definition_has_changed_since_is_refused(folder: Path) -> None:
    small_run(folder, "kept", methods=ONE, prompts=FEW, seeds=[0])
    path = folder / "results" / "kept" / "benchmark.yaml"
    content = yaml.safe_load(path.read_text())
    content["definitions"]["methods"]["cfg"]["guidance"]["parameters"]["scale"] = 4.0
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(HarnessError, match=r"methods\.cfg is not any more .*scale 4\.0 in then, 3\.0 in now"):
        compared(folder, "kept", "base")


def test_published_numbers_give_a_difference_without_a_test(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"paper": "A paper", "table": "t", "model": "sd", "prompts": "things", "quantity": "value",
            "scale": 100.0, "source": "page 3", "note": "misprint: so"}
    rows = pd.DataFrame([line | {"method": "cfg", "metric": "brightness", "value": 9000.0},
                         line | {"method": "cfg", "metric": "human", "value": 1.0, "scale": 1.0}])
    monkeypatch.setattr(published, "rows", lambda name: rows)
    found = compared(folder, "published:t", "base")
    (record,) = found.records
    mine = scores(folder, "base", "cfg")["value"].mean()
    assert record["value"] == pytest.approx(100 * mine - 9000)
    assert (record["mean"], record["mean_against"]) == pytest.approx((100 * mine, 9000))
    assert {record[key] for key in ("low", "high", "p", "p_holm", "n", "win_rate")} == {None}
    assert record["notes"] == ["misprint: so", "brightness: ours times 100, as printed"]
    assert "without interval or test" in "\n".join(found.notes)
    (back,) = compared(folder, "base/plain", "published:t/cfg").records
    assert back["against"] == "plain"
    assert back["value"] == pytest.approx(9000 - 100 * scores(folder, "base", "plain")["value"].mean())


@pytest.mark.parametrize(("first", "other", "expected", "notes"), [
    (0.01, 0.01, [25.0, 23.0], []), (100.0, 1.0, [25.0, 2300.0], ["brightness: published:u times 100, to the unit of "
                                                                  "published:t"]),
    (0.01, 100.0, [25.0, 0.0023], ["brightness: published:u times 0.0001, to the unit of published:t"]),
])
def test_two_published_sides_are_brought_to_the_unit_of_the_first(
    monkeypatch: pytest.MonkeyPatch, first: float, other: float, expected: list[float], notes: list[str]
) -> None:
    line = {"model": "sd", "method": "cfg", "prompts": "p", "metric": "brightness", "quantity": "value", "note": ""}
    sides = {"t": line | {"value": 25.0, "scale": first}, "u": line | {"value": 23.0, "scale": other}}
    monkeypatch.setattr(published, "rows", lambda name: pd.DataFrame([sides[name]]))
    (record,) = compare(["published:t/cfg", "published:u/cfg"], results=Path("nowhere")).records
    assert [record["mean_against"], record["mean"]] == pytest.approx(expected)
    assert record["value"] == pytest.approx(expected[1] - expected[0])
    assert [note.replace("/cfg", "") for note in record["notes"]] == notes


def test_ours_is_brought_to_a_scale_below_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"model": "sd", "method": "cfg", "prompts": "things", "metric": "brightness", "quantity": "value",
             "value": 1.5, "scale": 0.01, "note": ""}]
    monkeypatch.setattr(published, "rows", lambda name: pd.DataFrame(rows))
    (record,) = compared(folder, "published:t", "base").records
    mine = scores(folder, "base", "cfg")["value"].mean()
    assert (record["mean"], record["mean_against"]) == pytest.approx((mine / 100, 1.5))
    assert record["notes"] == ["brightness: ours times 0.01, as printed"]


def test_two_methods_of_a_published_table() -> None:
    names = ["published:noise-selection-table1/unstable", "published:noise-selection-table1/stable"]
    found = compare(names, results=Path("nowhere"))
    table = published.rows("noise-selection-table1").set_index(["method", "prompts", "metric"])["value"]
    assert len(found.records) == len(table) / 2
    for record in found.records:
        stable, unstable = (table[method, record["prompts"], record["metric"]] for method in ("stable", "unstable"))
        assert record["value"] == pytest.approx(stable - unstable, abs=1e-12)


def test_every_format_of_the_command_holds_the_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["compare", "base/plain", "base/cfg", "--results", str(folder / "results")]
    records = json.loads(harness(capsys, *options, "--format", "json")[1])["comparisons"]
    shown = fixed(records[0]["value"], decimals([records[0]["value"]]), sign=True)
    for form in ("markdown", "latex", "html"):
        code, out, _ = harness(capsys, *options, "--format", form)
        assert code == 0
        assert shown in out.replace("$-$", "-")
    code, out, _ = harness(capsys, *options)
    assert shown in out
    assert "Lower is better: shift." in out
    rows = list(csv.DictReader(io.StringIO(harness(capsys, *options, "--format", "csv")[1])))
    assert [float(row["value"]) for row in rows] == [r["value"] for r in records]
    code, _, err = harness(capsys, "compare", "base", "--results", str(folder / "results"))
    assert (code, "two or more" in err) == (2, True)
