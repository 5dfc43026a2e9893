"""Quality against cost from the YAML to the printed table, in this process, with a tiny random Stable Diffusion."""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness import benchmark
from harness.errors import HarnessError
from harness.resolve import resolve
from tests.command import BRIGHTNESS, harness
from tests.tiny import tiny_stable_diffusion

METHODS: dict[str, Any] = {
    "plain": {},  # 4
    "cfg": {"guidance": {"cfg": {"scale": 3}}},  # 8
    "nlg": {"noise": {"nlg": {"steps": 2}}},  # 8
    "stable": {"noise": {"inversion_stability": {"candidates": 3}}},  # 24
    "best-of-6": {"noise": {"best_of_n": {"candidates": 6}}, "judge": "bright:Brightness"},  # 24
    "search": {"noise": {"zero_order_search": {"rounds": 2, "neighbours": 2}}, "judge": "bright:Brightness"},  # 20
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cost")
    tiny_stable_diffusion(made / "weights")
    (made / "prompts.txt").write_text("one\ntwo\n")
    (made / "bright.py").write_text(BRIGHTNESS)
    return made


def written(place: Path, **change: Any) -> Path:
    content: dict[str, Any] = {
        "name": "cost",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(place / "weights"), "batch": 2}},
        "prompts": {"numbers": {"set": "numbers", "path": "prompts.txt"}},
        "sampler": {"steps": 4},
        "methods": METHODS,
        "metrics": ["bright:Brightness"],
        "tables": [{"match": "nfe"}, {"match": "flops", "baselines": ["plain"]}],
    }
    (place / "cost.yaml").write_text(yaml.safe_dump(content | change, sort_keys=False))
    return place / "cost.yaml"


@pytest.fixture(scope="module")
def done(place: Path) -> list[str]:
    """The options that find the finished run."""
    from harness import run
    from harness.display import Display

    results = place / "results"
    assert run.run(str(written(place)), results=results, display=Display(), workers=0).failures == []
    return ["cost", "--results", str(results)]


def test_a_run_compares_each_method_with_what_its_cost_buys(
    done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = harness(capsys, "table", *done, "--format", "markdown")
    by_nfe, by_flops = (part.split("Each against")[0] for part in out.split("Paired differences at equal ")[1:])
    rows = {line.split(" | ")[1]: line.split(" | ") for line in by_nfe.splitlines() if line.startswith("| numbers")}
    assert {name: (row[2], row[-1]) for name, row in rows.items()} == {
        "nlg": ("cfg", "1.00 |"), "stable": ("best-of-6", "1.00 |"),
    }
    assert len([line for line in by_flops.splitlines() if line.startswith("| numbers")]) == 5
    assert "no baseline within 1.5 times the cost of stable: best_of_n with candidates:" in out


def test_rows_of_one_method_cost_the_same_operations(done: list[str]) -> None:
    rows = pd.concat(pd.read_parquet(path) for path in Path(done[2], "cost", "images").rglob("*.parquet"))
    each = rows.groupby("method")["flops"].agg(["min", "max"])
    assert (each["min"] == each["max"]).all()
    cost = each["max"]
    evaluation = (cost["cfg"] - cost["plain"]) / 4
    decode = (cost["best-of-6"] - cost["stable"]) / 6  # for the judge, whose mean pixel is no operation of torch
    assert min(evaluation, decode) > 0
    assert cost["nlg"] == cost["cfg"]
    assert cost["stable"] == cost["plain"] + 20 * evaluation
    assert cost["search"] == cost["plain"] + 16 * evaluation + 5 * decode


def test_the_front_on_the_command_line(done: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = harness(capsys, "table", *done, "--pareto", "nfe", "--figure", str(place / "front.png"))
    assert "brightness against NFE" in out
    assert "Bold: on the Pareto front" in out
    assert (place / "front.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = harness(capsys, "table", *done, "--pareto", "flops", "--metric", "brightness", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (rows[0]["method"], rows[0]["front"]) == ("plain", "True")
    assert float(rows[-1]["flops"]) > float(rows[0]["flops"]) > 0
    (place / "file").write_text("")
    front = ["--pareto", "nfe"]
    for wrong, said in (
        (["--figure", "a.png"], "belong to --pareto"),
        ([*front, "--metric", "x"], "no such metric"),
        ([*front, "--groups"], "--groups has no part in --pareto"),
        ([*front, "--figure", str(place / "file" / "a.png")], "not a folder: move it away or give another folder with "
                                                            "--figure"),
        (["--rows", str(place / "file" / "a.parquet")], "give another folder with --rows"),
    ):
        code, _, err = harness(capsys, "table", *done, *wrong)
        assert code == 2
        assert said in err


def test_what_only_samples_is_a_baseline(place: Path) -> None:
    path = written(place)
    resolved = resolve(benchmark.load(path), path)
    assert {label: method.candidates for label, method in resolved.methods.items()} == {
        "plain": 1, "cfg": 1, "nlg": None, "stable": None, "best-of-6": 6, "search": 5,
    }


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"match": "seconds"}, "tables.0.match: Input should be 'nfe' or 'flops'"),
        ({"baselines": ["plain"]}, "tables.0: 'baselines' belongs to 'match: nfe' or 'match: flops'"),
        ({"match": "nfe", "baselines": ["plane"]}, "tables.0.baselines: no method 'plane': did you mean 'plain'"),
    ],
)
def test_a_match_that_makes_no_sense_is_refused(place: Path, table: dict[str, Any], said: str) -> None:
    path = written(place, tables=[table])
    with pytest.raises(HarnessError) as caught:
        resolve(benchmark.load(path), path)
    assert said in str(caught.value)
