"""Every metric at once, by the command: 48 images of shapes prompts, tiny random checkpoints in official formats."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import registry
from tests.command import harness
from tests.metrics import tiny_alexnet, tiny_clip
from tests.tiny import tiny_stable_diffusion

BASELINE = {"against": "no-guidance"}
WITHOUT_WEIGHTS = {"geneval-shapes", "ssim"}  # these have nothing that could be trained


def metrics(made: Callable[[Callable[[Path], Path]], str]) -> dict[str, dict[str, Any]]:
    """A line a metric: its parameters. `made` gives the place of what a writer of `tests/metrics` has written."""
    return {
        "geneval-shapes": {},
        "clipscore-shapes": {"weights": made(tiny_clip.tiny_clip)},
        "fd-shapes-clip": {"weights": made(tiny_clip.tiny_clip)},
        "cmmd-shapes-clip": {"weights": made(tiny_clip.tiny_clip)},
        "ssim": BASELINE,
        "lpips": {"weights": made(tiny_alexnet.write)} | BASELINE,
        "clip-s": {"weights": made(tiny_clip.tiny_clip)} | BASELINE,
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    places: dict[Callable[[Path], Path], str] = {}

    def made(write: Callable[[Path], Path]) -> str:
        if write not in places:
            places[write] = str(write(tmp_path_factory.mktemp("weights")))
        return places[write]

    return metrics(made)


def test_random_checkpoints_say_so(wanted: dict[str, dict[str, Any]]) -> None:
    trained = {name for name, parameters in wanted.items() if registry.build("metric", name, parameters).trained}
    assert trained == WITHOUT_WEIGHTS


def test_score_fills_every_metric(
    wanted: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = {
        "name": "all",
        "models": {"sd": {
            "family": "stable_diffusion", "weights": str(tiny_stable_diffusion(tmp_path / "sd")), "batch": 24,
        }},
        "prompts": {"shapes": {"set": "shapes", "first": 24}},
        "sampler": {"name": "ddim", "steps": 1},
        "methods": {"no-guidance": {"guidance": "none"}, "cfg-3": {"guidance": {"cfg": {"scale": 3}}}},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(benchmark, sort_keys=False))
    results = ("--results", str(tmp_path / "runs"))
    code, _, errors = harness(capsys, "run", str(tmp_path / "all.yaml"), "--workers", "0", *results)
    assert code == 0, errors

    entries = [part for name, given in wanted.items() for part in ("--metric", json.dumps({name: given}))]
    code, _, errors = harness(capsys, "score", "all", *entries, "--workers", "0", *results)
    assert code == 0, errors

    _, said, _ = harness(capsys, "table", "all", "--format", "json", *results)
    records = {(record["method"], record["metric"]): record for record in json.loads(said) if not record["group"]}
    assert {metric for _, metric in records} == set(wanted)
    for (method, metric), record in records.items():
        assert record["trained"] is False, metric
        if wanted[metric].get("against") == method:
            assert record["value"] is None
        else:
            assert math.isfinite(record["value"]), (method, metric, record)
            assert (record["n"], record["failed"], record["reason"]) == (24, 0, None), (method, metric, record)

    # Once is enough: nothing is left to score.
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")}
    assert harness(capsys, "score", "all", "--workers", "0", *results)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")} == parts
