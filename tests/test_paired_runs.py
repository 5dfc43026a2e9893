"""Paired metrics in a run: which images they compare, and what makes them score anew; the mean of the lowest."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from harness import run
from harness.display import Display
from harness.errors import HarnessError
from harness.metrics.load import load_metric
from harness.prompts import read_file
from harness.store import Store
from tests.command import harness
from tests.tiny import tiny_stable_diffusion

CFG, BARE = {"guidance": {"cfg": {"scale": 3}}}, {"guidance": "none"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A benchmark of two methods, its prompts with images of their own; generated, not yet scored."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    lines = [{"id": f"p{i}", "prompt": f"thing {i}", "image": f"pictures/{i}.png"} for i in range(4)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write(folder, weights, metrics=[])
    go(folder)
    return folder


@pytest.fixture
def folder(generated: Path, tmp_path: Path, weights: Path) -> Path:
    """A copy of it, to be scored by SSIM against one of the methods."""
    shutil.copytree(generated, tmp_path / "mine")
    write(tmp_path / "mine", weights)
    return tmp_path / "mine"


def write(folder: Path, weights: Path, **change: Any) -> None:
    content = {
        "name": "small",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 2}},
        "prompts": {"things": {"set": "things", "path": "prompts.jsonl"}},
        "sampler": {"name": "ddim", "steps": 1},
        "methods": {"plain": BARE, "cfg": CFG},
        "metrics": [{"ssim": {"against": "plain"}}],
        "tables": [{"baseline": "plain"}],
    } | change
    (folder / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def go(folder: Path, **options: Any) -> run.Outcome:
    with Display(quiet=True) as display:
        return run.run(str(folder / "small.yaml"), results=folder / "results", display=display, workers=0, **options)


def images(folder: Path, method: str) -> dict[tuple[str, int], np.ndarray]:
    store = Store(folder / "results" / "small")
    found = {}
    for part in store.parts("images", method=method):
        for row, image in zip(*store.read_images(part), strict=True):
            assert image is not None
            found[row["prompt_id"], row["seed"]] = image
    return found


def scores(folder: Path, metric: str = "ssim") -> pd.DataFrame:
    store = Store(folder / "results" / "small")
    rows = store.read("images").merge(store.read("scores", metric), on="sample_id", suffixes=("", "_score"))
    return rows.assign(reference=[json.loads(detail).get("reference") for detail in rows["detail"]])


def written(folder: Path, stage: str = "scores") -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "results" / "small" / stage).rglob("*.parquet")}


def test_each_image_is_compared_with_the_other_method_s_of_its_prompt_and_seed(folder: Path, weights: Path) -> None:
    write(folder, weights, seeds=[0, 3])
    outcome = go(folder)
    assert outcome.failures == []
    plain, cfg = images(folder, "plain"), images(folder, "cfg")
    metric = load_metric("ssim")
    found = scores(folder)
    assert set(found["method"]) == {"cfg"}
    assert len(found) == 8
    for row in found.to_dict("records"):
        key = row["prompt_id"], row["seed"]
        expected = metric.score_pairs(cfg[key][None], plain[key][None]).values[0]  # type: ignore[attr-defined]
        assert row["value"] == pytest.approx(expected, abs=1e-12)
    records = {record["method"]: record for record in outcome.records}
    assert records["cfg"]["value"] == pytest.approx(found["value"].mean())
    assert (records["cfg"]["n"], records["cfg"]["kind"]) == (8, "paired")
    assert (records["plain"]["value"], records["plain"]["failed"]) == (None, 0)
    assert "the others are compared with these images" in outcome.render("markdown")


def test_pairs_are_found_after_compaction_and_growth_and_nothing_is_scored_twice(folder: Path, weights: Path) -> None:
    shutil.rmtree(folder / "results")
    go(folder, limit=1)
    Store(folder / "results" / "small").compact()
    go(folder)
    before = written(folder)
    assert len(scores(folder)) == 4
    assert scores(folder)["error_score"].isna().all()
    assert go(folder).failures == []
    assert go(folder, limit=1).failures == []
    assert written(folder) == before


def test_another_method_to_compare_with_is_another_score(folder: Path, weights: Path) -> None:
    go(folder)
    before = scores(folder)
    write(folder, weights, methods={"plain": BARE, "cfg": CFG, "cfg-7": {"guidance": {"cfg": {"scale": 7}}}},
          metrics=[{"ssim": {"against": "cfg-7"}}])
    outcome = go(folder)
    assert outcome.failures == []
    after = scores(folder)
    assert set(after["method"]) == {"plain", "cfg"}
    mine = after[after["metric_digest"] != before["metric_digest"].iloc[0]]
    assert len(mine) == 8
    assert not set(mine["reference"]) & set(before["reference"])
    assert run.table("small", results=folder / "results").records == outcome.records


def test_a_changed_method_to_compare_with_is_scored_anew(folder: Path, weights: Path) -> None:
    go(folder)
    before = scores(folder)
    write(folder, weights, methods={"plain": {"guidance": {"cfg": {"scale": 2}}}, "cfg": CFG})
    outcome = go(folder, replace=("plain",))
    after = scores(folder)
    assert len(after) == 4
    assert set(before["sample_id"]) == set(after["sample_id"])
    assert set(before["metric_digest"]).isdisjoint(after["metric_digest"])
    assert set(before["reference"]).isdisjoint(after["reference"])
    assert not np.allclose(before["value"], after["value"])
    assert {r["method"]: r["n"] for r in outcome.records} == {"plain": 0, "cfg": 4}


def test_the_same_method_under_another_label_is_the_same_score(folder: Path, weights: Path) -> None:
    go(folder)
    digest = scores(folder)["metric_digest"].iloc[0]
    write(folder, weights, name="other", methods={"bare": BARE, "cfg": CFG}, metrics=[{"ssim": {"against": "bare"}}],
          tables=[])
    go(folder)
    assert set(Store(folder / "results" / "other").read("scores", "ssim")["metric_digest"]) == {digest}


def test_the_prompts_own_images(folder: Path, weights: Path) -> None:
    write(folder, weights, metrics=["ssim"])
    assert go(folder).failures == []
    found = scores(folder)
    assert len(found) == 8
    metric = load_metric("ssim")
    cfg = images(folder, "cfg")
    for row in found[found["method"] == "cfg"].to_dict("records"):
        with Image.open(folder / "pictures" / f"{row['prompt_id'][1:]}.png") as image:
            expected = metric.score_pairs(  # type: ignore[attr-defined]
                cfg[row["prompt_id"], 0][None], np.asarray(image)[None, None]
            )
        assert row["value"] == pytest.approx(expected.values[0], abs=1e-12)
    before = written(folder)
    go(folder, limit=2)
    assert written(folder) == before
    # Another picture under the old name: the two samples of that prompt are scored anew.
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "1.png")
    assert go(folder).failures == []
    changed = found.merge(scores(folder), on="sample_id", suffixes=("_old", ""))
    moved = changed[changed["value"] != changed["value_old"]]
    assert set(moved["prompt_id"]) == {"p1"}
    assert len(moved) == 2


def test_pictures_that_do_not_fit_are_told_in_their_rows(folder: Path, weights: Path) -> None:
    write(folder, weights, metrics=["ssim"], methods={"cfg": CFG}, tables=[])
    Image.new("RGB", (31, 64)).save(folder / "pictures" / "0.png")
    (folder / "pictures" / "1.png").write_text("nothing")
    (folder / "pictures" / "2.png").unlink()
    outcome = go(folder)
    errors = scores(folder).set_index("prompt_id")["error_score"]
    assert "64 x 64 pixels cannot be compared with an image of 31 x 64 pixels" in errors["p0"]
    assert "1.png cannot be read" in errors["p1"]
    assert "2.png cannot be read" in errors["p2"]
    assert pd.isna(errors["p3"])
    assert len(outcome.failures) == 3
    assert (outcome.records[0]["n"], outcome.records[0]["failed"]) == (1, 3)


def test_a_cell_s_value_may_be_the_mean_of_the_lowest(folder: Path, weights: Path) -> None:
    write(folder, weights, metrics=[{"tests.fakes:Dimmest": {"lowest": 3}}], methods={"cfg": CFG}, tables=[{}])
    outcome = go(folder)
    values = sorted(image.mean() for image in images(folder, "cfg").values())
    assert outcome.records[0]["value"] == pytest.approx(np.mean(values[:3]))
    assert (outcome.records[0]["lowest"], outcome.records[0]["n"]) == (3, 4)
    assert "dimmest: mean of the 3 lowest values" in outcome.render("markdown")


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_picture_outside_the_prompts_folder_is_refused(tmp_path: Path, image: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "x", "image": image}))
    with pytest.raises(HarnessError, match="row 0: image: expected a path below the folder"):
        read_file(path, "jsonl", {"text": "prompt", "image": "image"})


def test_what_cannot_be_compared_is_refused_when_the_benchmark_is_read(folder: Path, weights: Path) -> None:
    write(folder, weights, metrics=[{"ssim": {"against": "plian"}}])
    with pytest.raises(HarnessError, match=r"metrics\.ssim: against: no method 'plian': did you mean 'plain'"):
        go(folder)
    (folder / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": "a thing"}))
    write(folder, weights, metrics=["ssim"])
    with pytest.raises(HarnessError, match=r"metrics\.ssim: .*prompts\.things.*METHOD' \(known: plain, cfg\)"):
        go(folder)
    write(folder, weights, methods={"b": {"noise": {"best_of_n": {"candidates": 2}}, "judge": "ssim"}}, tables=[],
          metrics=[{"ssim": {"against": "b"}}])
    with pytest.raises(HarnessError, match="is of the kind 'paired'"):
        go(folder)
    assert written(folder) == {}


def test_a_metric_with_parameters_from_the_command_line(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, weights, metrics=[])
    go(folder)
    results = ("--results", str(folder / "results"), "--workers", "0")
    code, said, _ = harness(capsys, "score", "small", "--metric", "ssim: {against: cfg}", *results)
    assert code == 0
    assert "ssim" in said
    assert set(scores(folder)["method"]) == {"plain"}
    assert harness(capsys, "score", "small", "--metric", "ssim", *results)[0] == 0  # as it was
    assert set(scores(folder)["method"]) == {"plain"}
    assert harness(capsys, "score", "small", "--metric", "{ssim: {against: plain}}", *results)[0] == 0  # otherwise
    assert set(scores(folder)["method"]) == {"plain", "cfg"}
    assert harness(capsys, "table", "small", "--results", str(folder / "results"))[0] == 0
    for wrong in ("ssim: 3", "a: b: c", "[ssim]"):
        code, _, errors = harness(capsys, "score", "small", "--metric", wrong, *results)
        assert code == 2
        assert "NAME: {PARAMETER: VALUE}" in errors
