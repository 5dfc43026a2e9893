"""Every metric at once, by the command: 48 images of shapes prompts, tiny random checkpoints in official formats."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from harness import artifacts, registry
from harness.metrics.base import DistributionMetric
from tests.command import harness
from tests.metrics import tiny_clip, tiny_home
from tests.tiny import tiny_stable_diffusion

STATISTICS = {"statistics": "squares"}
BASELINE = {"against": "no-guidance"}
METRICS: dict[str, dict[str, Any]] = {  # a metric a line; those that are not here take no parameters
    "fid": STATISTICS,
    "fid-torchmetrics": STATISTICS,
    "fid-clean": STATISTICS,
    "kid": STATISTICS | {"subset_size": 8},
    "precision": STATISTICS,
    "recall": STATISTICS,
    "density": STATISTICS,
    "coverage": STATISTICS,
    "fd-dinov2": STATISTICS,
    "fd-dinov2-edm2": STATISTICS,
    "cmmd": STATISTICS,
    "ssim": BASELINE,
    "lpips": BASELINE,
    "clip-s": BASELINE,
}
EXTRACTORS = ("fid", "fid-torchmetrics", "fid-clean", "fd-dinov2", "fd-dinov2-edm2", "cmmd")  # of one metric each
WITHOUT_WEIGHTS = {"geneval-shapes", "ssim"}  # these have nothing that could be trained
GENEVAL = "geneval-mask2former-hf"  # knows COCO's objects, not shapes: a run of its own
SHAPES_CLIP = {"clipscore-shapes", "fd-shapes-clip", "cmmd-shapes-clip"}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All metrics with their parameters, and their weights where `harness fetch` puts them."""
    folder = tmp_path_factory.mktemp("all")
    clip = str(tiny_clip.tiny_clip(folder / "shapes-clip"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_WEIGHTS", str(tiny_home.write(folder / "weights")))
        yield {
            name: METRICS.get(name, {}) | ({"weights": clip} if name in SHAPES_CLIP else {})
            for name in registry.BUILTIN["metric"] if name != GENEVAL
        }


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A folder of a dozen images to compare with."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "squares"
    folder.mkdir()
    for k in range(12):
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(blocks).save(folder / f"{k:02}.png")
    return folder


def test_all_of_the_catalogue_is_at_hand(wanted: dict[str, dict[str, Any]]) -> None:
    others = {"sv3d-u", "edm2-img64-reference", "edm2-img512-reference"}  # a model, and what `statistics` names
    assert set(tiny_home.WRITERS) == set(artifacts.catalogue()) - others
    for name in tiny_home.WRITERS:
        assert artifacts.find(name).is_dir()


def test_random_checkpoints_say_so(wanted: dict[str, dict[str, Any]]) -> None:
    built = {name: registry.build("metric", name, given) for name, given in {**wanted, GENEVAL: {}}.items()}
    known = {name: metric for name, metric in built.items() if not isinstance(metric, DistributionMetric)}
    assert {name for name, metric in known.items() if metric.trained} == WITHOUT_WEIGHTS


def tiny_benchmark(folder: Path) -> dict[str, Any]:
    """All but the prompts."""
    weights = str(tiny_stable_diffusion(folder / "sd"))
    return {
        "name": "all",
        "models": {"sd": {"family": "stable_diffusion", "weights": weights, "batch": 24}},
        "sampler": {"name": "ddim", "steps": 1},
        "methods": {"no-guidance": {"guidance": "none"}},
    }


def test_score_fills_every_metric(
    wanted: dict[str, dict[str, Any]], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = tiny_benchmark(tmp_path) | {"prompts": {"shapes": {"set": "shapes", "first": 24}}}
    benchmark["methods"] = {"no-guidance": {"guidance": "none"}, "cfg-3": {"guidance": {"cfg": {"scale": 3}}}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(benchmark, sort_keys=False))
    results = ("--results", str(tmp_path / "runs"))
    code, _, errors = harness(capsys, "run", str(tmp_path / "all.yaml"), "--workers", "0", *results)
    assert code == 0, errors
    for extractor in EXTRACTORS:
        made = ("reference", "squares", "--images", str(squares), "--metric", extractor, "--features")
        code, _, errors = harness(capsys, *made)
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


def test_geneval_scores_prompts_with_its_truth(
    wanted: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [  # as its own prompt file has them
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}],
         "prompt": "a photo of two clocks"},
    ]
    (tmp_path / "objects.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmark = tiny_benchmark(tmp_path) | {
        "prompts": {"objects": {"set": "objects", "path": "objects.jsonl"}}, "metrics": [GENEVAL],
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(benchmark, sort_keys=False))
    code, said, errors = harness(
        capsys, "run", str(tmp_path / "all.yaml"), "--workers", "0", "--results", str(tmp_path / "runs"), "--json"
    )
    assert code == 0, errors
    record = next(record for record in json.loads(said) if not record["group"])
    assert (record["value"], record["n"], record["failed"]) == (0, 2, 0)  # random networks find no bench
