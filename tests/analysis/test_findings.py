"""Findings: verdicts from intervals, the document and its command line; figures."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.analysis import figures, findings
from harness.errors import HarnessError
from harness.shapes.detector import detect
from harness.shapes.grammar import sample_scene
from harness.shapes.scene import render
from tests.analysis.world import world

METHODS = {
    "no-guidance": (20, 0.2), "cfg-2": (40, 0.5), "cfg-3": (40, 0.6), "same": (40, 0.6), "most-stable": (240, 0.6),
    "best-of-6": (241, 0.95), "slow": (120, 0.6),
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """60 prompts x 2 seeds; "same" makes the same images as cfg-3."""
    rng = np.random.default_rng(1)
    luck = rng.random((60, 2))
    found = []
    for method, (nfe, chance) in METHODS.items():
        own = rng.random((60, 2)) if method in ("most-stable", "slow") else luck
        for i in range(60):
            for seed in range(2):
                head = {
                    "model": "sd", "method": method, "prompts": "shapes", "prompt_id": str(i), "seed": seed, "nfe": nfe,
                    "category": "position" if i < 20 else "colors", "seconds": nfe / 100,
                    "judge": "clipscore-shapes" if method == "best-of-6" else None,
                }
                right = float(own[i, seed] < chance)
                found += [head | {"metric": "geneval-shapes", "value": right},
                          head | {"metric": "clipscore-shapes", "value": 0.2 + right / 10 + own[i, seed] / 100}]
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def text(rows) -> str:
    return findings.findings(findings.study(rows))


def test_the_baseline_is_the_best_constant_scale(rows, text):
    assert findings.choose_baseline(findings.study(rows), None) == "cfg-3"
    assert "**cfg-3**, the constant guidance scale with the best geneval-shapes" in text
    with pytest.raises(HarnessError, match="no rows of method 'cfg-9'"):
        findings.choose_baseline(findings.study(rows), "cfg-9")
    with pytest.raises(HarnessError, match="--baseline"):
        findings.choose_baseline(findings.study(rows[rows.method == "slow"]), None)


def test_verdicts(text):
    lines = text.split("### In short")[1].split("By the other metrics")[0].splitlines()
    said = {line.split("**")[1]: line for line in lines if line.startswith("- ")}
    assert "hurts" in said["no-guidance"]
    assert "0.5 times the evaluations" in said["no-guidance"]
    same = "no established effect; 0.0000 [0.0000, 0.0000], p = 1.00, 120 pairs of 60 prompts, equal cost"
    assert same in said["same"]
    assert "no established effect" in said["most-stable"]
    assert "helps" in said["best-of-6"]
    assert "itself" not in said["best-of-6"]


def test_a_verdict_needs_interval_and_p():
    clear = {"low": 0.1, "high": 0.2, "p_holm": 0.01}
    assert findings.verdict(clear) == "helps"
    assert findings.verdict(clear, higher_is_better=False) == "hurts"
    assert findings.verdict({"low": -0.2, "high": -0.1, "p_holm": 0.01}) == "hurts"
    for unclear in ({"p_holm": 0.06}, {"low": -0.01}, {"low": None}, {"p_holm": float("nan")}):
        assert findings.verdict(clear | unclear) == "no established effect"


def test_judges_equal_cost_and_tasks(text):
    assert "(it chooses by this very metric: no independent evidence)" in text
    assert "**most-stable**, **best-of-6** spend about 240 NFE. Against best-of-6:" in text
    assert "**slow** (120 NFE, 3 times cfg-3) has no rival of its cost" in text
    assert "geneval-shapes by category" in text
    assert "60 prompts × 2 seeds, 7 methods." in text
    assert "nan" not in text.lower().replace("nance", "")


def test_what_a_run_exports_is_what_findings_read(tmp_path):
    w = world(prompts=24)
    w.distribution[0]["against"] = {"cfg-3": {"value": 2.5, "low": 2.0, "high": 3.0}}
    path = findings.export(w, tmp_path / "study.parquet")
    found = findings.read(path)
    assert list(found.metrics) == ["geneval-shapes", "clipscore-shapes", "fd-shapes-clip"]
    assert found.judges == {"best_of_6": "clipscore-shapes"}
    ours = {(r["method"], r["metric"], r["group"]): r["value"] for r in w.records if r["metric"] != "pickscore"}
    theirs = {(r["method"], r["metric"], r["group"]): r["value"] for r in found.cells}
    assert theirs == pytest.approx(ours)
    text = findings.findings(found)
    assert "fd-shapes-clip ↓" in text
    assert "5.000 [4.500, 5.500]" in text
    assert "- **no-guidance** (fd-shapes-clip): hurts; +2.500 [+2.000, +3.000], 48 images." in text


def test_command_line(tmp_path, rows):
    rows.to_csv(tmp_path / "study.csv", index=False)
    out = tmp_path / "docs" / "findings.md"
    command = [sys.executable, "-m", "harness.analysis.findings", str(tmp_path / "study.csv"), str(out)]
    done = subprocess.run([*command, "--baseline", "cfg-2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The baseline is **cfg-2**." in out.read_text()
    assert "(figures/study-sd-shapes.png)" in out.read_text()
    with Image.open(tmp_path / "docs" / "figures" / "study-sd-shapes.png") as image:
        assert image.width > 800
    with pytest.raises(SystemExit) as stop:
        findings.main([str(tmp_path / "none.csv"), str(out)])
    assert stop.value.code == 2


def test_bad_rows_are_refused(tmp_path, rows):
    rows.drop(columns="nfe").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(HarnessError, match="columns nfe are missing"):
        findings.read(tmp_path / "a.parquet")
    rows[:0].to_parquet(tmp_path / "b.parquet")
    with pytest.raises(HarnessError, match="no rows"):
        findings.read(tmp_path / "b.parquet")
    with pytest.raises(HarnessError, match="no rows of metric 'fid'"):
        findings.study(rows, primary="fid")


def test_records_say_which_metrics_are_better_when_lower(rows):
    said = {"metric": "clipscore-shapes", "kind": "paired", "group": None, "higher_is_better": False}
    found = findings.study(rows, [said]).metrics
    assert [found[name].higher_is_better for name in ("geneval-shapes", "clipscore-shapes")] == [True, False]


def test_figures_leave_out_what_has_no_value(tmp_path):
    w = world()
    path = figures.quality_against_cost(w.records, [*w.metrics], tmp_path / "deep" / "figure.png", "title")
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert figures.quality_against_cost(w.records, [*w.metrics], path, "title").read_bytes() == first
    assert figures.quality_against_cost([], ["x"], tmp_path / "empty.png").is_file()


@pytest.mark.parametrize("side", [64, 512])
def test_nothing_can_be_made_out_once_blurred(side):
    rng = np.random.default_rng(0)
    scenes = [render(sample_scene(rng)) for _ in range(8)]
    for scene in scenes:
        image = Image.fromarray(scene).resize((side, side), Image.Resampling.LANCZOS)
        soft = figures.blurred(image).resize((64, 64), Image.Resampling.BOX)
        assert detect(scene)
        assert not detect(np.asarray(soft))
    edge = np.zeros((side, side, 3), np.uint8)
    edge[:, side // 2 :] = 255
    slope = np.abs(np.diff(np.asarray(figures.blurred(Image.fromarray(edge)), float), axis=1)).max()
    assert slope <= 255 / (side / 4 * np.sqrt(2 * np.pi)) + 1.5  # a Gaussian's peak; 8-bit levels, a box approximation


def test_a_grid_of_marked_prompts_is_blurred():
    split = np.zeros((64, 64, 3), np.uint8)
    split[:, 32:] = 255
    plain, soft = (figures.grid([[split]], ["a"], ["b"], blur=blur, cell=64, text=8) for blur in (False, True))
    assert plain.size == soft.size
    whole = np.abs(np.asarray(plain, float) - np.asarray(soft, float))
    assert whole.max() > 100
    assert (whole.max(axis=(1, 2)) > 0).sum() <= 64  # the image alone, no label


def test_what_is_not_known_to_be_harmless_is_blurred():
    kept = {"definitions": {"prompts": {"a": {"set": "a", "nsfw": False}, "b": {"nsfw": True}, "old": {"set": "old"}}}}
    assert [figures.must_blur(kept, label) for label in ("a", "b", "old")] == [False, True, True]
    with pytest.raises(KeyError):
        figures.must_blur(kept, "c")


def test_grid_places_every_image():
    red, blue = (np.full((64, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    labels = ["a red circle above a very long description of something else", "b"]
    out = figures.grid([[red, blue], [None, Image.fromarray(red)]], ["cfg", "none"], labels, blur=False, cell=128)
    colours = dict((colour, count) for count, colour in out.getcolors(100_000))
    assert colours[255, 0, 0] == 2 * 128 * 128
    assert colours[0, 0, 255] == 128 * 128
    with pytest.raises(ValueError, match="labels"):
        figures.grid([[red]], ["a"], ["b", "c"], blur=False)
