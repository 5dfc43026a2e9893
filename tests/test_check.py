"""What `harness check` says on a machine that has nothing: all that is lacking, and the cost; it asks nobody."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import benchmark as benchmarks
from harness import manifest
from harness.errors import HarnessError
from tests.command import harness

FOLDER = benchmarks.resources("benchmarks")
NFE = {  # an image, by the papers' settings: K, n, M, R rounds of T steps, each of one or two evaluations
    "noise-selection-table1": [100 * 4 * 2] * 2,
    "noise-optimisation-table2": [10 * 2, 100 * 10 * (2 + 1)],
    "noiserefine-table1": [20, 1 + 20, 2 * 20],
    "noiserefine-table3": [1 + 20] * 4,
    "noise-diffusion-simple": [2 * 50, (1 + 50) * 2 * 50],
    "noise-diffusion-complex": [2 * 50, (1 + 50) * 2 * 50],
    "nlg-coco": [20, 2 * 20, 2 * 20 + 20, 2 * 20 + 20],
}
SUITES = ("geneval", "drawbench-suite", "hpdv2-suite", "partiprompts", "coco-30k", "dpg-bench")
NFE |= {name: [50, 2 * 50] for name in SUITES}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has nothing and may ask nobody."""

    def offline(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("HARNESS_WEIGHTS", "HARNESS_PROMPTS", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", offline)
    monkeypatch.setattr("harness.fetch.model", offline)
    monkeypatch.chdir(tmp_path)


def test_the_estimate_is_plain_arithmetic(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(harness(capsys, "check", "noiserefine-table2", "--json", "--throughput", "50")[1])
    evaluations = 30_000 * (20 + 21 + 40)
    assert report["cost"] == {
        "samples": 90_000, "nfe": evaluations, "judged": 0,
        "files": 3 * 30_000 // 16 * 2,  # shards of two micro-batches of 8, each with images and features
        "gpu_hours": round(evaluations / 50 / 3600, 2), "evaluations_per_second": {"sd21": 50.0}, "assumed": False,
        "images_gb": round(90_000 * 768**2 * 1.4 / 1e9, 2), "features_gb": round(90_000 * 2048 * 4 / 1e9, 2),
    }
    said = harness(capsys, "check", "noiserefine-table2")[1].splitlines()
    assert line(said, "time      ").endswith("sd21 55.6 (assumed; --throughput takes yours)")  # 100 / (0.8 * 1.5**2)


def test_a_disk_without_room_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the folder which the run's is to lie in; what a run has written already needs no room."""
    content = yaml.safe_load((FOLDER / "shapes.yaml").read_text(encoding="utf-8"))
    content |= {"seeds": list(range(1000)), "metrics": [], "tables": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    asked: list[Path] = []
    room = 10**10
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (
        asked.append(path), shutil._ntuple_diskusage(10**12, 10**12 - room, room))[1])  # type: ignore[attr-defined]
    args = ("check", str(tmp_path / "mine.yaml"), "--results", str(tmp_path / "far" / "runs"))
    code, said, _ = harness(capsys, *args)
    assert (code, line(said.splitlines(), "disk      ").count("MISSING")) == (0, 0)
    assert f"10.0 GB free on the disk of {tmp_path}" in said
    room = 10**9
    code, said, _ = harness(capsys, *args)
    told = line(said.splitlines(), "disk      ")
    assert (code, set(asked)) == (1, {tmp_path})
    assert " MISSING: about 4.4 GB are still to be written, and the disk of " in told
    assert f"{tmp_path} has 1.0 GB free: free some space, or give another folder with --results" in told
    written = tmp_path / "far" / "runs" / content["name"] / "images"
    written.mkdir(parents=True)
    with (written / "part").open("wb") as file:
        file.truncate(10**10)  # it takes no room
    assert harness(capsys, *args)[0] == 0


@pytest.mark.parametrize("name", list(NFE))
def test_check_lists_all_that_a_bare_machine_lacks(
    name: str, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = benchmarks.load(FOLDER / f"{name}.yaml")
    code, said, _ = harness(capsys, "check", name)
    assert code == 1
    lines = said.splitlines()
    for label, model in benchmark.models.items():
        assert f"`harness fetch {model.weights}` gets them" in line(lines, f"model     {label}: ")
        for network, spec in model.networks.items():
            assert f"`{spec.made_by}` makes it" in line(lines, f"network   {network} of {label}: ")
    for label, prompts in benchmark.prompts.items():
        expected = manifest.load(prompts.set).rows
        count = min(n for n in (expected, prompts.first, prompts.sample) if n)
        assert line(lines, f"prompts   {label}: ").startswith(f"{count:,} of set {prompts.set}")
        assert " MISSING: " in line(lines, f"prompts   {label}: ")
    metrics = [line(lines, f"metric    {benchmarks.named(entry)[0]}: ") for entry in benchmark.metrics]
    for text in metrics:
        assert text.startswith("MISSING: not on this machine: ")
        assert "harness fetch" in text
    assert [line(lines, f"method    {k} on ").split(": ")[1].split()[0] for k in benchmark.methods] == [
        f"{nfe:,}" for nfe in NFE[name]
    ]
    assert "(assumed; --throughput takes yours)" in line(lines, "time      about ")


def line(lines: list[str], start: str) -> str:
    """What follows a line's start; there must be one such line."""
    found, = [text.removeprefix(start) for text in lines if text.startswith(start)]
    return found


def test_a_reference_that_was_not_made_is_told(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    said = harness(capsys, "check", "noiserefine-table2")[1]
    assert "`harness reference coco-val2014 --images FOLDER --metric fid` makes it" in said


def test_a_run_on_a_bare_machine_is_refused(
    bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(name: str, *_: Any) -> Path:
        raise HarnessError(f"{name} cannot be had")

    monkeypatch.setattr("harness.fetch.model", unreachable)
    code, _, said = harness(capsys, "run", "noise-diffusion-simple", "--workers", "0", "--results", str(tmp_path / "r"))
    assert code == 2
    assert "models.sd14: CompVis/stable-diffusion-v1-4 cannot be had" in said
    assert "prompts.noise-diffusion-simple: prompt set 'noise-diffusion-simple' is not on this machine" in said
    assert "methods.noise-diffusion: judge 'vqascore-clip-flant5-xxl': not on this machine" in said
    assert not (tmp_path / "r").exists()
