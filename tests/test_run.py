"""A benchmark from its YAML to its table, in this process, with a tiny random Stable Diffusion."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness import benchmark, cli, run
from harness.analysis import tables
from harness.benchmark import TableSpec
from harness.display import Display
from harness.errors import HarnessError
from harness.resolve import resolve
from harness.store import DETERMINISTIC, Store
from tests.analysis.world import world
from tests.tiny import tiny_stable_diffusion

PLUGIN = '''
"""A method of one's own, in one file."""

from dataclasses import dataclass

import numpy as np

from harness.metrics.base import SampleMetric, Scores
from harness.noise.base import NoiseContext, Refined


@dataclass(frozen=True)
class Shrink:
    """Multiplies the noise by `strength`."""

    strength: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")

    def __call__(self, ctx: NoiseContext) -> Refined:
        return Refined(ctx.noise * self.strength, [{"strength": self.strength} for _ in ctx.prompts])


@dataclass(frozen=True)
class Brightness(SampleMetric):
    """The mean of all pixels, 0 to 255."""

    name = "brightness"

    def score(self, images: np.ndarray, prompts: object) -> Scores:
        return Scores(images.mean(axis=(1, 2, 3, 4), dtype=np.float64))
'''

SD = {"family": "stable_diffusion"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder: prompts, a plug-in, a benchmark."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # each test's `mine` is its own
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    lines = [f"p{i},thing {i},{'ab'[i % 2]}\n" for i in range(6)]
    (tmp_path / "prompts.csv").write_text("id,prompt,category\n" + "".join(lines))
    (tmp_path / "mine.py").write_text(PLUGIN)
    write(tmp_path, weights)
    return tmp_path


def write(folder: Path, weights: Path, **change: Any) -> Path:
    content = {
        "name": "small",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 4}},
        "prompts": {"things": {"set": "things", "path": "prompts.csv", "first": 4}},
        "seeds": [0],
        "sampler": {"name": "ddim", "steps": 2},
        "methods": {"plain": {"guidance": "none"}, "cfg": {"guidance": {"cfg": {"scale": 3}}}},
        "metrics": [],
    } | change
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def go(folder: Path, **options: Any) -> run.Outcome:
    with Display(quiet=True) as display:
        return run.run(str(folder / "small.yaml"), results=folder / "results", display=display, workers=0, **options)


def images(folder: Path) -> pd.DataFrame:
    columns = list(DETERMINISTIC)
    rows = Store(folder / "results" / "small").read("images", columns=columns)
    rows["image"] = [image and image["bytes"] for image in rows["image"]]
    return rows.sort_values("sample_id", ignore_index=True)


def test_a_run_is_complete_and_a_second_one_does_nothing(folder: Path) -> None:
    outcome = go(folder)
    assert outcome.failures == []
    rows = images(folder)
    assert len(rows) == 8
    assert rows.groupby("method")["nfe"].unique().map(list).to_dict() == {"plain": [2], "cfg": [4]}
    parts = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.parquet")}
    go(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.parquet")} == parts


def test_growing_keeps_every_old_row_and_adds_only_the_new(folder: Path, weights: Path) -> None:
    go(folder)
    before = images(folder)
    methods = {"plain": {}, "cfg": {"guidance": {"cfg": {"scale": 3}}}, "cfg-7": {"guidance": {"cfg": {"scale": 7}}}}
    write(
        folder, weights, methods=methods, seeds=[0, 1],
        prompts={"things": {"set": "things", "path": "prompts.csv", "first": 6}},
    )
    go(folder)
    after = images(folder)
    assert len(after) == 6 * 2 * 3
    kept = after[after["sample_id"].isin(before["sample_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)


def test_published_seeding_gives_a_resumed_run_the_places_of_a_whole_one(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(name: str) -> pd.DataFrame:
        found = Store(folder / "results" / name).read("images").sort_values("sample_id", ignore_index=True)
        found["norms"] = [json.loads(record).get("norms") for record in found["record"]]
        return found

    stage = {"nlg": {"steps": 2, "noise_variance": 0.5, "variant": "published"}}
    write(
        folder, weights, methods={"nlg": {"noise": stage}, "plain": {}}, seeding="published",
        models={"sd": SD | {"weights": str(weights), "batch": 2}},
        prompts={"things": {"set": "things", "path": "prompts.csv", "first": 6}},
    )
    go(folder)
    go(folder, as_name="resumed", limit=1)  # what is left is cut into other micro-batches
    go(folder, as_name="resumed")
    whole, resumed = rows("small"), rows("resumed")
    assert whole["sample_id"].tolist() == resumed["sample_id"].tolist()
    assert len(whole) == 12
    for one, other in zip(whole["norms"], resumed["norms"], strict=True):
        assert other == (None if one is None else pytest.approx(one, rel=1e-4))


def test_a_changed_definition_under_its_old_label_is_refused_with_the_difference(folder: Path, weights: Path) -> None:
    go(folder)
    before = images(folder)
    write(folder, weights, methods={"cfg": {"guidance": {"cfg": {"scale": 4, "steps": [0, 1]}}}})
    pattern = (r"methods\.cfg has changed.*\n.*scale: was 3.*, now 4.*\n.*steps: was left out, now \[0, 1\]\n.*"
               r"--as(.|\n)*--replace")
    with pytest.raises(HarnessError, match=pattern):
        go(folder)
    pd.testing.assert_frame_equal(images(folder), before)
    go(folder, as_name="other")
    assert Store(folder / "results" / "other").read("images")["method"].unique().tolist() == ["cfg"]
    go(folder, replace=("cfg",))
    after = images(folder)
    assert not set(after.loc[after["method"] == "cfg", "sample_id"]) & set(before["sample_id"])
    assert set(after.loc[after["method"] == "plain", "sample_id"]) <= set(before["sample_id"])


def test_a_changed_prompt_text_under_its_old_id_is_refused(folder: Path) -> None:
    go(folder)
    text = (folder / "prompts.csv").read_text()
    (folder / "prompts.csv").write_text(text.replace("thing 1", "another thing"))
    with pytest.raises(HarnessError, match="prompt 'p1' reads 'another thing' now, but 'thing 1'"):
        go(folder)


def test_a_corrupt_part_costs_its_own_samples_and_nothing_else(folder: Path) -> None:
    go(folder)
    before = images(folder)
    victim = next((folder / "results").rglob("images/sd/cfg/**/*.parquet"))
    victim.write_bytes(victim.read_bytes()[:100])
    go(folder)
    pd.testing.assert_frame_equal(images(folder), before)
    assert victim.with_name(victim.name + ".corrupt").exists()


def test_a_method_from_outside_runs_in_the_table(folder: Path, weights: Path) -> None:
    methods = {"mine": {"noise": {"mine:Shrink": {"strength": 0.5}}}, "plain": {"guidance": "none"}}
    write(folder, weights, methods=methods, metrics=["mine:Brightness"])
    outcome = go(folder)
    assert outcome.failures == []
    rows = Store(folder / "results" / "small").read("images")
    assert json.loads(rows.loc[rows["method"] == "mine", "record"].iloc[0]) == {"strength": 0.5}
    assert "| mine |" in outcome.render("markdown")
    assert {record["n"] for record in outcome.records} == {4}
    assert all(0 < record["value"] < 255 for record in outcome.records)


def test_an_edited_method_from_outside_is_another_definition(folder: Path, weights: Path) -> None:
    write(folder, weights, methods={"mine": {"noise": {"mine:Shrink": {}}}})
    go(folder)
    (folder / "mine.py").write_text(PLUGIN + "\n# edited\n")
    with pytest.raises(HarnessError, match=r"methods\.mine has changed"):
        go(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": {"m": {"noise": {"nlgg": {}}}}}, ["methods.m", "unknown noise 'nlgg'", "did you mean 'nlg'"]),
        ({"methods": {"m": {"noise": {"nlg": {"stps": 2}}}}}, ["methods.m", "no parameter 'stps'", "'steps'"]),
        ({"methods": {"m": {"noise": {"nlg": {"steps": "many"}}}}}, ["methods.m", "'steps'", "many"]),
        ({"methods": {"m": {"noise": {"inversion_stability": {"candidates": 0}}}}}, ["methods.m", "candidates", "0"]),
        ({"methods": {"m": {"guidance": {"cfg": {"scale": 3, "steps": [8, 2]}}}}}, ["methods.m", "8", "2"]),
        (
            {"methods": {"m": {"guidance": {"cfg": {"scale": 3, "sigma": [20, None]}}}}},
            ["methods.m: with models.sd", "sigma: [20.0, null]", "the nearest: 14.6146"],
        ),
        ({"methods": {"m": {"noise": {"best_of_n": {"candidates": 2}}}}}, ["methods.m", "needs a judge"]),
        (
            {"methods": {"m": {"noise": {"best_of_n": {}}, "judge": "clipscore-shape"}}},
            ["clipscore-shape", "did you mean"],
        ),
        (
            {"methods": {"m": {"noise": {"noise_diffusion": {}}, "judge": "geneval-shapes"}}},
            ["methods.m", "NoiseDiffusion needs a judge with a gradient", "'geneval-shapes'"],
        ),
        ({"methods": {"m": {"noise": {"nlg": {"weak": "network:small"}}}}}, [
            "methods.m", "needs a network 'small'", "{lora: FOLDER}}' to that block"]),
        ({"methods": {"m": {"noise": {"nlg": {"weak": "small"}}}}}, ["methods.m", "weak must be", "'small'"]),
        ({"seeding": "published"}, ["seeding: 'published'", "no method", "variant: published"]),
        (
            {"prompts": {"s": {"set": "imagenet-seeds", "first": 3}}, "seeding": "column:seed", "seeds": [0, 1]},
            ["prompts.s: prompt '1' at seed 0 and prompt '0' at seed 1 would be one image", "write 'seeds: [0]'"],
        ),
        ({"seeding": "column:number", "seeds": [0, 1]}, ["prompts.things: seeding: column 'number'", "whole number"]),
        (
            {"prompts": {"s": {"set": "imagenet-seeds", "first": 3}}, "seeding": "column:sed"},
            ["prompts.s: seeding: column 'sed' of prompt '0'", "extra columns of this set: seed"],
        ),
        ({"methods": {"m": {"noise": {"nowhere.at_all:Stage": {}}}}}, ["methods.m", "nowhere"]),
        ({"metrics": ["fid-shapes"]}, ["metrics.fid-shapes", "unknown metric"]),
        ({"sampler": {"name": "dimm", "steps": 2}}, ["dimm", "did you mean 'ddim'"]),
        ({"sampler": {"name": "ddim", "steps": 0}}, ["steps"]),
        ({"sampler": {"name": "ddim", "stps": 3}}, ["stps"]),
        ({"sampler": {"name": "heun", "rho": 0}}, [".yaml: sampler: rho must be a number above 0, got 0.0\n"]),
        (
            {"methods": {"m": {"sampler": {"rho": 0}}}},
            [".yaml: methods.m: sampler: rho must be a number above 0, got 0.0\n"],
        ),
        ({"models": {"sd": {"family": "stable_difusion", "weights": "x/y"}}}, ["models.sd", "'stable_diffusion'"]),
        ({"models": {"sd": SD | {"weights": "./nowhere"}}}, ["models.sd", "./nowhere", "no such folder"]),
        ({"models": {"sd": SD | {"weights": "builtin:shape-sd"}}}, ["models.sd", "builtin:shape-sd"]),
        ({"prompts": {"p": {"set": "drawbnch"}}}, ["prompts.p", "did you mean 'drawbench'"]),
        ({"tables": [{"baseline": "cgf"}]}, ["tables.0.baseline", "did you mean 'cfg'"]),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    folder: Path, weights: Path, change: dict[str, Any], expected: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(folder, weights, **change)
    monkeypatch.setattr("sys.argv", ["harness", "run", str(path), "--workers", "0", "--results", str(folder / "r")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert "Traceback" not in said
    assert "Value error" not in said
    assert said.count("rho must") <= 1
    assert len(said.splitlines()) < 25
    for part in expected:
        assert part in said
    assert not (folder / "r").exists()


@pytest.mark.parametrize(
    ("rows", "seeds", "twice"),
    [
        (["x,1,5", "y,1,6"], [0, 1], False),  # other texts
        (["x,1,5", "x,2,6"], [0, 1], False),  # other classes
        (["x,1,5", "x,1,6"], [0], False),
        (["x,1,5", "x,1,8"], [0, 1, 5], False),
        (["x,1,5", "y,1,6", "x,1,9"], [0, 1, 5], True),  # 9 + 1 = 5 + 5
    ],
)
def test_rows_that_seed_the_noise_make_no_image_twice(
    rows: list[str], seeds: list[int], twice: bool, folder: Path, weights: Path
) -> None:
    (folder / "numbers.csv").write_text("prompt,class_label,number\n" + "\n".join(rows))
    path = write(folder, weights, prompts={"n": "numbers.csv"}, seeding="column:number", seeds=seeds)
    refused = pytest.raises(HarnessError, match=r"prompts\.n: prompt '2' at seed 1 and prompt '0' at seed 5 would be")
    with refused if twice else nullcontext():
        resolve(benchmark.load(path), path)


def test_a_resolution_that_the_model_cannot_do_is_refused(folder: Path, weights: Path) -> None:
    write(folder, weights, models={"sd": {"family": "stable_diffusion", "weights": str(weights), "size": 30}})
    with pytest.raises(HarnessError, match="30"):
        go(folder)


def test_corrupt_weights_cost_a_message(folder: Path, weights: Path, tmp_path: Path) -> None:
    broken = tiny_stable_diffusion(tmp_path / "broken")
    victim = next(broken.glob("unet/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:1000])
    write(folder, broken)
    with pytest.raises(HarnessError, match=r"unet.*damaged or not whole"):
        go(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_results_folder_is_a_message(folder: Path) -> None:
    (folder / "results").mkdir(mode=0o500)
    with pytest.raises(HarnessError, match="may not write there"):
        go(folder)


def test_a_results_folder_that_is_a_file_is_a_message(folder: Path) -> None:
    (folder / "results").write_text("")
    with pytest.raises(HarnessError, match="results"):
        go(folder)


def test_limit_is_a_part_of_the_whole(folder: Path) -> None:
    go(folder, limit=2)
    before = images(folder)
    assert len(before) == 4
    go(folder)
    after = images(folder)
    assert set(before["sample_id"]) < set(after["sample_id"])
    assert len(after) == 8


def test_differences_are_computed_once_for_all_formats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> None:
        monkeypatch.setattr(tables, name, lambda *args: (called.append(name), real(*args))[1])

    counted("scored_rows", tables.scored_rows)
    counted("differences", tables.differences)
    w = world()
    specs = [TableSpec(baseline="cfg-3"), TableSpec(baseline="cfg-3", show="win_rate"),
             TableSpec(baseline="cfg-3", columns=["clipscore-shapes"]), TableSpec(baseline={"cfg-3": "no-guidance"})]
    outcome = run.Outcome(w.records, specs, w.rows, w.scores, w.metrics, w.judges, [])
    found = {form: outcome.render(form) for form in ("markdown", "csv", "json")}
    outcome.print_tables()
    assert called == ["scored_rows", *["differences"] * 3]  # the first two specs share theirs
    assert found["markdown"] == "\n".join(tables.render(w, spec, "markdown") for spec in specs)
    assert "Paired differences" in capsys.readouterr().out
