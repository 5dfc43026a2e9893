"""Clips through the whole harness: orbits of solids in, clips by a small model, their rows, scores and tables out."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import datasets
from harness import leaderboard, prompts, run
from harness.analysis.figures import grid
from harness.benchmark import PromptSpec
from harness.compare import compare
from harness.display import Display
from harness.errors import HarnessError
from harness.identity import digest
from harness.images import decode
from harness.metrics.load import load_metric
from harness.metrics.ssim import ssim
from harness.orbit_pictures import to_compare
from harness.prompts import Prompt
from harness.shapes.orbit import write_orbits
from harness.store import Store
from tests.clips import FRAMES, Turntable, turntable_weights
from tests.command import harness

AROUND = 12  # pictures of an orbit: every third is compared


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods on three objects and two seeds, generated and scored."""
    folder = tmp_path_factory.mktemp("clips")
    turntable_weights(folder / "weights")
    write_orbits(folder / "orbits", objects=3, frames=AROUND, size=32)
    write(folder)
    assert go(folder).failures == []
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "mine")
    return tmp_path / "mine"


def write(folder: Path, **change: Any) -> None:
    content = {
        "name": "clips",
        "models": {"turntable": {
            "family": "tests.clips:Turntable", "weights": str(folder / "weights"), "size": 32, "batch": 2,
        }},
        "prompts": {"orbits": {"set": "omniobject3d", "path": "orbits"}},
        "seeds": [0, 1],
        "sampler": {"name": "euler", "steps": 3},
        "methods": {"plain": {}, "sharper": {"guidance": {"cfg": {"scale": 1.2}}}},
        "metrics": ["ssim", {"tests.fakes:Difference": {"against": "plain"}}],
        "tables": [{"baseline": "plain"}],
    } | change
    (folder / "clips.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def go(folder: Path, **options: Any) -> run.Outcome:
    with Display(quiet=True) as display:
        return run.run(str(folder / "clips.yaml"), results=folder / "results", display=display, workers=0, **options)


def clips(folder: Path, method: str) -> dict[tuple[str, int], np.ndarray]:
    store = Store(folder / "results" / "clips")
    found = {}
    for part in store.parts("images", method=method):
        for row, clip in zip(*store.read_images(part), strict=True):
            assert clip is not None
            found[row["prompt_id"], row["seed"]] = clip
    return found


def scores(folder: Path, metric: str = "ssim") -> pd.DataFrame:
    store = Store(folder / "results" / "clips")
    samples = store.read("images", columns=["sample_id", "frame", "prompt_id", "seed"])
    return samples[samples["frame"] == 0].merge(store.read("scores", metric), on=["sample_id", "model", "method"])


def written(folder: Path, stage: str = "images") -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "results" / "clips" / stage).rglob("*.parquet")}


# ---- rows and values ----


def test_a_clip_is_a_row_a_frame_and_one_sample_everywhere_else(made: Path) -> None:
    rows = Store(made / "results" / "clips").read("images")
    assert len(rows) == 2 * 2 * 3 * FRAMES
    assert rows.groupby("sample_id")["frame"].apply(list).tolist() == [list(range(FRAMES))] * 12
    assert (rows.groupby("sample_id")[["nfe", "record", "seconds"]].nunique() == 1).all(axis=None)
    assert set(rows.loc[rows["method"] == "plain", "nfe"]) == {3}  # of the clip, not of each frame
    outcome = run.table("clips", results=made / "results")
    found = {(record["method"], record["metric"]): record for record in outcome.records}
    assert {key: record["n"] for key, record in found.items()} == {
        ("plain", "ssim"): 6, ("sharper", "ssim"): 6, ("plain", "difference"): 0, ("sharper", "difference"): 6,
    }
    assert {record["nfe"] for (method, _), record in found.items() if method == "sharper"} == {6}
    assert len(outcome.scored) == 18
    mine = scores(made)
    assert found["plain", "ssim"]["value"] == pytest.approx(mine.loc[mine["method"] == "plain", "value"].mean())
    assert "plain" in outcome.render("markdown", ci=True)


def test_each_frame_is_compared_with_its_picture_of_the_orbit(made: Path) -> None:
    """Against SSIM called by hand on the pictures of azimuth 90, 180, 270 and 0."""
    made_clips = clips(made, "plain")
    for row in scores(made).query("method == 'plain'").to_dict("records"):
        images = made / "orbits" / row["prompt_id"].rpartition("_")[0] / row["prompt_id"] / "render" / "images"
        pictures = [np.asarray(Image.open(images / f"r_{number}.png")) for number in (3, 6, 9, 0)]
        clip = made_clips[row["prompt_id"], row["seed"]]
        expected = [ssim(frame, picture) for frame, picture in zip(clip, pictures, strict=True)]
        detail = json.loads(row["detail"])
        np.testing.assert_allclose(detail["frames"], expected, rtol=1e-12)
        assert row["value"] == pytest.approx(np.mean(expected), rel=1e-12)
        assert len(detail["reference"]) == 64
        turned = [ssim(frame, picture) for frame, picture in zip(clip, pictures[1:] + pictures[:1], strict=True)]
        assert np.mean(expected) > np.mean(turned) + 0.05


def test_a_clip_is_compared_with_the_other_method_s_frame_by_frame(made: Path) -> None:
    plain, sharper = clips(made, "plain"), clips(made, "sharper")
    found = scores(made, "difference")
    assert len(found) == 6
    for row in found.to_dict("records"):
        pair = [each[row["prompt_id"], row["seed"]].astype(float) for each in (sharper, plain)]
        expected = np.abs(pair[0] - pair[1]).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(json.loads(row["detail"])["frames"], expected)


def test_other_metrics_get_the_whole_clip_and_those_of_stills_say_that_they_are(folder: Path) -> None:
    kept = yaml.safe_load((folder / "clips.yaml").read_text())["models"]
    still = kept["turntable"] | {"family": "tests.clips:Photograph"}
    asked = ["tests.fakes:Brightness", "tests.fakes:Colours", "geneval-shapes"]
    write(folder, models=kept | {"photograph": still}, methods={"plain": {}}, metrics=asked, tables=[{}])
    means = [clip.mean() for clip in clips(folder, "plain").values()]
    outcome = go(folder)
    of = {(record["model"], record["metric"]): record for record in outcome.records}
    assert of["turntable", "brightness"]["value"] == pytest.approx(np.mean(means))
    assert of["turntable", "colours-distance"]["n"] == of["photograph", "colours-distance"]["n"] == 6
    said = {model: of[model, "geneval-shapes"]["reason"] for model in ("turntable", "photograph")}
    assert of["turntable", "geneval-shapes"]["value"] is None
    assert "geneval-shapes is defined for stills; these samples have 4 frames" in said["turntable"]
    assert "defined for stills" not in str(said["photograph"])


def test_metrics_of_stills_are_refused_where_all_models_make_clips(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run that has one from before, what was made can still be read."""
    write(folder, metrics=["ssim", "geneval-shapes", "fd-shapes-clip", "inception-score"])
    with pytest.raises(HarnessError) as caught:
        go(folder)
    said = str(caught.value)
    for label in ("geneval-shapes", "fd-shapes-clip", "inception-score"):
        assert f"metrics.{label}: {label} is defined for stills, and models.turntable makes clips of 4" in said
    assert len(said.splitlines()) == 3
    code, _, errors = harness(capsys, "check", str(folder / "clips.yaml"))
    assert (code, "metrics.geneval-shapes: " in errors) == (2, True)
    with pytest.raises(HarnessError, match="geneval-shapes is defined for stills"), Display(quiet=True) as display:
        run.score("clips", results=folder / "results", display=display, metrics=("geneval-shapes",), workers=0)
    kept = folder / "results" / "clips" / "benchmark.yaml"
    old = yaml.safe_load(kept.read_text())
    kept.write_text(yaml.safe_dump(old | {"metrics": [*old["metrics"], "geneval-shapes", "fd-shapes-clip"]}))
    found = run.table("clips", results=folder / "results").records
    of = {record["metric"]: record for record in found if record["method"] == "plain"}
    assert of["ssim"]["n"] == 6
    assert of["fd-shapes-clip"]["reason"] == "fd-shapes-clip is defined for stills; these samples have 4 frames"


# ---- resuming, growing, reading elsewhere ----


def test_a_run_of_clips_resumes_and_is_compacted(folder: Path) -> None:
    images, values = written(folder), scores(folder)
    assert go(folder).failures == []
    assert written(folder) == images
    lost = next(iter(images))
    before = clips(folder, "plain"), clips(folder, "sharper")
    lost.unlink()
    assert go(folder).failures == []
    after = written(folder)
    assert {path for path in after if after[path] != images[path]} == {lost}
    for old, new in zip(before, (clips(folder, "plain"), clips(folder, "sharper")), strict=True):
        assert all(np.array_equal(old[key], new[key]) for key in old.keys() | new.keys())
    assert Store(folder / "results" / "clips").compact() == (10, 5)  # images, ssim of each method, difference of one
    assert go(folder).failures == []
    assert len(written(folder)) == 2
    assert all(np.array_equal(before[0][key], clip) for key, clip in clips(folder, "plain").items())
    pd.testing.assert_frame_equal(
        scores(folder).sort_values("sample_id", ignore_index=True), values.sort_values("sample_id", ignore_index=True)
    )


def test_an_object_that_fails_costs_its_row_and_is_made_later(folder: Path) -> None:
    shutil.rmtree(folder / "results")
    bad = folder / "orbits" / "cursed" / "cursed_9"
    shutil.copytree(folder / "orbits" / "box" / "box_000", bad)
    outcome = go(folder)
    assert [failure for failure in outcome.failures if "this object is cursed" not in failure] == []
    assert {r["n"] for r in outcome.records if r["metric"] == "ssim"} == {6}
    assert {r["failed"] for r in outcome.records if r["metric"] == "ssim"} == {2}
    assert {r["nfe"] for r in outcome.records if r["method"] == "plain"} == {3}
    rows = Store(folder / "results" / "clips").read("images", columns=["sample_id", "frame", "error"])
    assert sorted(rows.groupby("sample_id").size()) == [1] * 4 + [FRAMES] * 12


def test_a_changed_picture_of_the_orbit_scores_its_object_anew(folder: Path) -> None:
    before = scores(folder).set_index("sample_id")["value"]
    images = folder / "orbits" / "tetrahedron" / "tetrahedron_001" / "render" / "images"
    shutil.copy(images / "r_0.png", images / "r_1.png")  # not compared
    go(folder)
    assert scores(folder).set_index("sample_id")["value"].equals(before)
    shutil.copy(images / "r_0.png", images / "r_6.png")
    assert go(folder).failures == []
    after = scores(folder).set_index("sample_id")
    changed = after[after["value"] != before[after.index]]
    assert set(changed["prompt_id"]) == {"tetrahedron_001"}
    assert len(changed) == 4


def test_a_changed_conditioning_picture_is_refused_until_the_old_clips_go(folder: Path) -> None:
    go(folder)  # from now on the copy's own pictures are the run's
    before = clips(folder, "plain")
    images = folder / "orbits" / "box" / "box_000" / "render" / "images"
    shutil.copy(images / "r_3.png", images / "r_0.png")
    message = r"prompts\.orbits: the picture of prompt 'box_000', .*r_0\.png, is not the one .*--as .*--replace orbits"
    with pytest.raises(HarnessError, match=message):
        go(folder)
    with pytest.raises(HarnessError, match=message), Display(quiet=True) as display:
        run.score("clips", results=folder / "results", display=display, workers=0)
    assert all(np.array_equal(clip, before[key]) for key, clip in clips(folder, "plain").items())
    assert go(folder, replace=("orbits",), limit=1).failures == []
    changed = {key[0] for key, clip in clips(folder, "plain").items() if not np.array_equal(clip, before[key])}
    assert changed == {"box_000"}


def short(folder: Path, **change: Any) -> None:
    """One method, one seed, nothing made yet."""
    shutil.rmtree(folder / "results")
    write(folder, **{"seeds": [0], "methods": {"plain": {}}, "metrics": [], "tables": [{}]} | change)


def test_the_sense_of_rotation_shows_in_two_labels_of_one_set(folder: Path) -> None:
    """As docs/prompt-sets.md has it: the pictures numbered the other way round in a copy, under another label."""
    for original in (folder / "orbits").glob("*/*/render/images/*.png"):
        number = int(original.stem[2:])
        copy = folder / "back" / original.relative_to(folder / "orbits").with_name(f"r_{-number % AROUND}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(original)  # by which this model knows the orbit that its picture begins
    labels = {label: {"set": "omniobject3d", "path": path} for label, path in (("there", "orbits"), ("back", "back"))}
    short(folder, prompts=labels, metrics=["ssim"])
    outcome = go(folder)
    assert outcome.failures == []
    kept = scores(folder).query("prompts_x == prompts_y").groupby("prompts_x")["value"].mean()
    found = {record["prompts"]: record["value"] for record in outcome.records}
    assert found == pytest.approx(dict(kept))
    assert found["there"] > found["back"] + 0.05
    assert outcome.scored.groupby("prompts")["value"].mean().to_dict() == pytest.approx(found)


def test_two_labels_of_one_set_have_the_same_pictures_where_a_model_reads_them(folder: Path) -> None:
    shutil.copytree(folder / "orbits", folder / "other")
    images = folder / "other" / "octahedron" / "octahedron_002" / "render" / "images"
    shutil.copy(images / "r_3.png", images / "r_0.png")
    labels = {path: {"set": "omniobject3d", "path": path} for path in ("orbits", "other")}
    short(folder, prompts=labels)
    with pytest.raises(HarnessError, match=r"prompts\.other: the picture of prompt 'octahedron_002' of set "
                                           r"'omniobject3d', .*other/.*r_0\.png, is not that of prompts\.orbits, "):
        go(folder)


def test_runs_on_other_pictures_are_not_compared(folder: Path) -> None:
    shutil.copytree(folder / "orbits", folder / "other")
    for name, number in (("box/box_000", 0), ("octahedron/octahedron_002", 6)):
        images = folder / "other" / name / "render" / "images"
        shutil.copy(images / "r_3.png", images / f"r_{number}.png")
    write(folder, name="two", prompts={"orbits": {"set": "omniobject3d", "path": "other"}})
    assert go(folder).failures == []
    with pytest.raises(HarnessError) as refused:
        compare(["clips", "two"], results=folder / "results")
    reasons = {line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")}
    assert reasons == {
        "prompts orbits: 1 of the same id are made from another picture: box_000",
        "prompts orbits: ssim compares 2 of the same id with other pictures: box_000, octahedron_002",
    }
    found = compare(["clips", "two"], results=folder / "results", anyway=True)
    assert {(r["metric"], r["n"]) for r in found.records} == {("ssim", 2), ("difference", 4)}
    assert compare(["clips/plain", "clips/sharper"], results=folder / "results").notes == []


def test_the_leaderboard_tells_prompts_with_other_pictures_apart(folder: Path) -> None:
    def selection() -> str:
        return leaderboard.selection(prompts.load(PromptSpec(set="omniobject3d", path="orbits"), folder))

    before = selection()
    assert selection() == before
    images = folder / "orbits" / "box" / "box_000" / "render" / "images"
    shutil.copy(images / "r_3.png", images / "r_5.png")
    assert selection() != before
    texts = prompts.PromptSet("p", (Prompt("b", "two"), Prompt("a", "one", truth={"include": []})))
    assert leaderboard.selection(texts) == digest([["a", "one"], ["b", "two"]])
    classes = prompts.PromptSet("p", (Prompt("a", "one", class_label=0), Prompt("b", "two", class_label=3)))
    assert leaderboard.selection(classes) == digest([["a", "one", 0], ["b", "two", 3]])


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, once, while the first clips are made."""
    todo: list[Any] = []
    predict = Turntable.predict

    def patched(self: Turntable, *given: Any, **named: Any) -> Any:
        while todo:
            todo.pop()()
        return predict(self, *given, **named)

    monkeypatch.setattr(Turntable, "predict", patched)
    return todo


def test_a_picture_replaced_while_its_clip_is_made_is_noticed(folder: Path, during: list[Any]) -> None:
    short(folder)
    images = folder / "orbits" / "box" / "box_000" / "render" / "images"
    during.append(lambda: shutil.copy(images / "r_3.png", images / "r_0.png"))
    assert go(folder).failures == []
    with pytest.raises(HarnessError, match=r"the picture of prompt 'box_000', .*, is not the one"):
        go(folder)


def test_a_picture_that_is_gone_costs_its_own_clip(folder: Path, during: list[Any]) -> None:
    short(folder)
    for name in ("box/box_000", "tetrahedron/tetrahedron_001"):  # of the first batch, which is at work, and the second
        during.append((folder / "orbits" / name / "render" / "images" / "r_0.png").unlink)
    failure, = go(folder).failures
    assert "prompt 'tetrahedron_001': its picture " in failure
    rows = Store(folder / "results" / "clips").read("images", columns=["sample_id", "frame", "error"])
    assert sorted(rows.groupby("sample_id").size()) == [1, FRAMES, FRAMES]


def test_a_judge_of_stills_is_refused_for_clips(folder: Path) -> None:
    write(folder, methods={"best": {"noise": {"best_of_n": {"candidates": 2}}, "judge": "geneval-shapes"}}, metrics=[],
          tables=[{}])
    said = "methods.best: judge 'geneval-shapes' is defined for stills, and family 'tests.clips:Turntable'"
    with pytest.raises(HarnessError, match=said):
        go(folder)


def test_a_run_of_clips_opens_in_datasets_and_in_a_grid(made: Path) -> None:
    files = [str(path) for path in written(made)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(made / "cache"))
    assert len(loaded) == 48
    assert loaded[5]["frame"] == 1
    assert loaded[5]["image"].size == (32, 32)
    found = [clips(made, method)["box_000", 0] for method in ("plain", "sharper")]
    sheet = grid(found, ["plain", "sharper"], [f"{k * 90 + 90}°" for k in range(FRAMES)], blur=False, cell=64)
    assert sheet.size[0] > FRAMES * 64


def test_the_commands_know_clips(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = yaml.safe_load((made / "clips.yaml").read_text())
    large["models"]["turntable"]["size"] = 1024
    (made / "large.yaml").write_text(yaml.safe_dump(large))
    code, said, errors = harness(capsys, "check", str(made / "large.yaml"), "--json")
    assert code == 0, errors
    report = json.loads(said)
    assert (report["cost"]["samples"], report["models"][0]["frames"]) == (12, FRAMES)
    assert report["cost"]["images_gb"] == pytest.approx(12 * FRAMES * 1024**2 * 1.4e-9, abs=0.01)
    code, said, _ = harness(capsys, "check", str(made / "large.yaml"))
    assert "clips of 4 frames" in said
    assert [(entry["method"], entry["nfe"]) for entry in report["methods"]] == [("plain", 3), ("sharper", 6)]
    results = ("--results", str(made / "results"))
    code, said, _ = harness(capsys, "table", "clips", "--format", "json", *results)
    assert (code, {record["n"] for record in json.loads(said) if record["metric"] == "ssim"}) == (0, {6})
    code, said, errors = harness(capsys, "compare", "clips/plain", "clips/sharper", *results)
    assert code == 0, errors
    assert "ssim" in said


# ---- which pictures ----


def orbit(count: int) -> Prompt:
    names = [f"r_{k}" for k in range(count)]
    return Prompt("p", "text", image=names[0], truth={"frames": names})


@pytest.mark.parametrize(("pictures", "frames", "first"), [(84, 21, 4), (21, 21, 1), (105, 21, 5), (84, 4, 21)])
def test_every_nth_picture_is_compared_and_the_last_is_the_first(pictures: int, frames: int, first: int) -> None:
    found = [int(name[2:]) for name in to_compare(orbit(pictures), frames)]
    assert found[0] == first
    assert found[-1] == 0
    assert found == [k * pictures // frames for k in [*range(1, frames), 0]]


def test_a_still_is_compared_with_the_prompt_s_own_picture() -> None:
    assert to_compare(orbit(84), 1) == ("r_0",)
    assert to_compare(Prompt("p", "text", image="a.png"), 1) == ("a.png",)
    with pytest.raises(HarnessError, match="names no image"):
        to_compare(Prompt("p", "text"), 1)
    with pytest.raises(HarnessError, match="names no image"):
        to_compare(Prompt("p", "text", truth={"include": []}), 21)


def test_orbits_that_do_not_fit_are_refused_before_anything_is_made(folder: Path) -> None:
    images = folder / "orbits" / "box" / "box_000" / "render" / "images"
    for number in (10, 11):
        (images / f"r_{number}.png").unlink()
    shutil.rmtree(folder / "results")
    with pytest.raises(HarnessError, match=r"ssim: models\.turntable on prompts\.orbits: prompt 'box_000' has an orbit "
                                           r"of 10 pictures, which 4 frames do not divide"):
        go(folder)
    assert not written(folder)
    listed = [{"id": "x", "prompt": "x", "image": "orbits/box/box_000/render/images/r_0.png"}]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, listed)))
    write(folder, prompts={"own": "own.jsonl"})
    with pytest.raises(HarnessError, match=r"names one picture and no orbit to compare 4 frames with"):
        go(folder)
    listed[0]["truth"] = {"frames": [listed[0]["image"], "gone-1.png", "gone-2.png", listed[0]["image"]]}
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, listed)))
    with pytest.raises(HarnessError, match=r"ssim: prompts\.own: 2 of the pictures to compare with are not there; the "
                                           r"first: .*/gone-1\.png"):
        go(folder)


def test_thirty_of_many_objects_are_a_fixed_choice(tmp_path: Path) -> None:
    for k in range(40):
        place = tmp_path / "orbits" / "thing" / f"thing_{k:03d}" / "render" / "images"
        place.mkdir(parents=True)
        (place / "r_0.png").touch()
    spec = PromptSpec(set="omniobject3d", path="orbits", sample=30)
    first, second = ([prompt.id for prompt in prompts.load(spec, tmp_path).prompts] for _ in range(2))
    assert first == second
    assert len(set(first)) == 30
    assert first != [f"thing_{k:03d}" for k in range(30)]


def test_pictures_of_another_size_are_resized_and_those_of_another_shape_refused(folder: Path) -> None:
    before = scores(folder).set_index("sample_id")["value"]
    larger = write_orbits(folder / "larger", objects=3, frames=AROUND, size=64)
    for path in larger.rglob("*.png"):
        if path.name != "r_0.png":  # which the clips were made from
            shutil.copy(path, folder / "orbits" / path.relative_to(larger))
    images = folder / "orbits" / "octahedron" / "octahedron_002" / "render" / "images"
    Image.new("RGB", (64, 60), "white").save(images / "r_6.png")
    outcome = go(folder)
    after = scores(folder).set_index("sample_id")
    refused = after[after["error"].notna()]
    assert set(refused["prompt_id"]) == {"octahedron_002"}
    assert set(refused["error"]) == {"the pictures to compare with have different sizes: 32 x 32, 64 x 60"}
    assert len(outcome.failures) == 4
    good = after[after["error"].isna()]
    # Rendered at twice the size and brought down: nearly the same pictures.
    np.testing.assert_allclose(good["value"], before[good.index], atol=0.05)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 100, 0, 255)
    pixels[2] = (200, 100, 0, 51)  # a fifth
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode((tmp_path / "a.png").read_bytes())
    assert found.shape == (4, 4, 3)
    np.testing.assert_array_equal(found[:2], np.broadcast_to([200, 100, 0], (2, 4, 3)))
    np.testing.assert_allclose(found[2], np.broadcast_to([244, 224, 204], (4, 3)), atol=1)
    np.testing.assert_array_equal(found[3], np.full((4, 3), 255))
    half = decode((tmp_path / "a.png").read_bytes(), (2, 2))
    assert half.shape == (2, 2, 3)
    assert decode((tmp_path / "a.png").read_bytes(), (2, 3)).shape == (4, 4, 3)


@pytest.mark.parametrize("frame", ["../a.png", "/etc/passwd", 3, "a\\b.png"])
def test_pictures_of_an_orbit_outside_the_set_s_folder_are_refused(tmp_path: Path, frame: Any) -> None:
    row = {"prompt": "x", "image": "a.png", "truth": {"frames": ["a.png", frame]}}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(HarnessError, match=r"p\.jsonl: row 0: truth\.frames: expected paths below the folder"):
        prompts.load(PromptSpec(set="p", path=str(tmp_path / "p.jsonl")), Path())


def test_metrics_of_pairs_take_clips_by_hand() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 2, 3, 16, 16, 3), dtype=np.uint8)
    found = load_metric("ssim").score_pairs(first, second)  # type: ignore[attr-defined]
    expected = [[ssim(a, b) for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    np.testing.assert_allclose(found.values, np.mean(expected, axis=1))
    np.testing.assert_allclose([detail["frames"] for detail in found.details], expected)
