"""The commands as a person types them, in this process."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import BRIGHTNESS, harness
from tests.tiny import tiny_stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    weights = tiny_stable_diffusion(made / "weights")
    (made / "prompts.txt").write_text("one\ntwo\nthree\n")
    (made / "bright.py").write_text(BRIGHTNESS)
    content: dict[str, Any] = {
        "name": "small",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 4}},
        "prompts": {"numbers": {"set": "numbers", "path": "prompts.txt"}},
        "sampler": {"steps": 2},
        "methods": {"plain": {}, "cfg": {"guidance": {"cfg": {"scale": 3}}}},
        "metrics": ["bright:Brightness"],
        "tables": [{"baseline": "plain"}],
    }
    (made / "small.yaml").write_text(yaml.safe_dump(content))
    return made




@pytest.fixture
def done(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The options that find the finished run."""
    results = ["--results", str(folder / "results")]
    code, out, err = harness(capsys, "run", str(folder / "small.yaml"), "--workers", "0", *results)
    assert code == 0, err
    assert "plain" in out
    assert "brightness" in out
    return ["small", *results]


def test_every_format_holds_the_same_numbers(done: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads(harness(capsys, "table", *done, "--format", "json")[1])
    assert {(r["method"], r["n"]) for r in records} == {("plain", 3), ("cfg", 3)}
    shown = f"{records[0]['value']:.1f}"
    for form in ("markdown", "latex", "html", "csv"):
        code, out, _ = harness(capsys, "table", *done, "--format", form, "--ci")
        assert code == 0
        assert shown in out, form
    rows = list(csv.DictReader(io.StringIO(harness(capsys, "table", *done, "--format", "csv")[1])))
    assert {row["method"] for row in rows} == {"plain", "cfg"}
    assert r"\toprule" in harness(capsys, "table", *done, "--format", "latex")[1]


def test_random_weights_are_marked(done: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads(harness(capsys, "table", *done, "--format", "json")[1])
    assert {record["trained"] for record in records} == {False}


def test_rows_are_kept_for_studies(done: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    assert harness(capsys, "table", *done, "--rows", str(folder / "kept" / "rows.parquet"))[0] == 0
    rows = pd.read_parquet(folder / "kept" / "rows.parquet")
    assert len(rows) == 6
    assert {"model", "method", "prompt_id", "seed", "metric", "value", "nfe"} <= set(rows.columns)


def test_a_metric_that_is_added_later_scores_what_is_there(
    done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done[2], tmp_path / "copy")
    code, out, err = harness(
        capsys, "score", done[0], "--results", str(tmp_path / "copy"), "--metric", "geneval-shapes", "--workers", "0"
    )
    assert "geneval-shapes" in out
    assert code == 1  # these prompts carry no truth to judge by, which is said
    assert "truth" in err


def test_an_unknown_run_gets_the_nearest_name(done: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = harness(capsys, "table", "smal", *done[1:])
    assert code == 2
    assert "did you mean 'small'" in err


def test_check_counts_what_the_run_will_cost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = harness(capsys, "check", str(folder / "small.yaml"), "--json")
    report = json.loads(out)
    assert code == 0
    assert {entry["method"]: entry["nfe"] for entry in report["methods"]} == {"plain": 2, "cfg": 4}
    cost = report["cost"]
    assert [cost[key] for key in ("samples", "files", "nfe", "judged")] == [6, 4, 18, 0]  # a score file beside each
    assert cost["assumed"]
    assert "18 evaluations" in harness(capsys, "check", str(folder / "small.yaml"))[1]
    said = harness(capsys, "check", str(folder / "small.yaml"), "--json", "--throughput", "0.005")[1]
    assert json.loads(said)["cost"]["gpu_hours"] == 1  # 18 evaluations of 200 seconds


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "stable_diffusion"), ("methods", "nlg"), ("methods", "cfg"), ("metrics", "geneval-shapes"),
        ("prompts", "drawbench"), ("benchmarks", "shapes"),
    ],
)
def test_list_names_what_there_is(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = harness(capsys, "list", kind, "--json")
    assert code == 0
    entry = next(entry for entry in json.loads(out) if entry["name"] == name)
    assert entry["about"]
    assert name in harness(capsys, "list", kind)[1]


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "shapes", "--limit", "0"], ["run", "shapes", "--wrkers", "2"], ["list", "model"], ["tabel"]],
)
def test_a_misused_command_line_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert harness(capsys, *arguments)[0] == 2


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "PyTorch finds no GPU here"), ("gpu", "expected cpu or cuda")]
)
def test_training_on_a_device_that_is_not_here_is_refused(
    device: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, said = harness(capsys, "train", "noise-refine", "--device", device, "--out", str(tmp_path))
    assert code == 2
    assert expected in said
