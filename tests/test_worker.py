"""What a worker does with a unit: padding, bad rows, what it keeps, and the scores it writes."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from harness.errors import HarnessError
from harness.files import StoreError, write_atomic
from harness.metrics.load import metric_digest
from harness.parquet import read_part, serialised
from harness.prompts import Prompt
from harness.store import NO_IMAGE, Store
from harness.units import Counterpart, Part, ScoreUnit
from harness.worker import DeviceLost, Job, MethodJob, MetricJob, ModelJob, Slot, Worker
from tests.fakes import Brightness, Colours, FakeDiffusion, part, unit

PLACE = "tests.fakes:"
SAMPLER = {"name": "ddim", "steps": 3}


def make_job(root: Path, **other: Any) -> Job:
    root.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "models": {
            "model": ModelJob(f"{PLACE}FakeDiffusion", "anything", slot=Slot("cpu")),
            "second": ModelJob(f"{PLACE}FakeDiffusion", "anything", slot=Slot("cpu")),
            "broken": ModelJob(f"{PLACE}FakeDiffusion", "missing", slot=Slot("cpu")),
        },
        "methods": {
            "plain": MethodJob(sampler=SAMPLER),
            "best": MethodJob(noise={"best_of_n": {"candidates": 2}}, sampler=SAMPLER, judge="brightness"),
            "wrong": MethodJob(noise="no-such-stage", sampler=SAMPLER),
        },
        "metrics": {
            "brightness": MetricJob(f"{PLACE}Brightness", {"offset": 1.0}, "d1"),
            "absent": MetricJob(f"{PLACE}Absent", {}, "d2"),
            "colours": MetricJob(f"{PLACE}Colours", {}, "d3"),
            "difference": MetricJob(f"{PLACE}Difference", {"against": "best"}, "d4"),
        },
        "scoring": Slot("cpu"),
    }
    return Job(str(root), **(settings | other))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path / "run")


@pytest.fixture
def worker(job: Job) -> Worker:
    FakeDiffusion.batches.clear()
    return Worker(job, Slot("cpu"))


def made(worker: Worker, name: str = "0-0-3", **other: str) -> tuple[list[dict[str, Any]], list[np.ndarray | None]]:
    return worker.store.read_images(part(name, **other))


def test_a_shard_becomes_one_part_with_all_its_columns(worker: Worker) -> None:
    report = worker.run(unit(["a", "bb", "ccc", "dddd"]))
    assert (report.rows, report.failed, report.stage) == (4, [], "generate")
    rows, images = made(worker)
    assert [row["prompt"] for row in rows] == ["a", "bb", "ccc", "dddd"]
    assert all(image is not None and image.shape == (1, 8, 8, 3) for image in images)
    row = rows[0]
    assert (row["nfe"], row["nfe_by_network"], row["grad_evals"], row["flops"]) == (3, '{"main":3}', 0, 3000.0)
    assert (row["model"], row["method"], row["prompts"], row["seed"]) == ("model", "plain", "prompts", 0)
    assert (row["category"], row["error"], row["record"]) == ("fake", None, "{}")
    assert (row["batch"], row["retried"], row["device"], row["dtype"]) == (4, False, "cpu", "float32")
    assert row["seconds"] > 0
    assert set(json.loads(row["versions"])) >= {"torch", "diffusers", "transformers"}


def test_the_last_micro_batch_is_padded_and_the_padding_is_dropped(worker: Worker) -> None:
    report = worker.run(unit(["a", "b", "c", "d", "e", "f"], "0-0-5", batch=4))
    assert FakeDiffusion.batches == [4, 4]
    assert report.rows == 6
    rows, images = made(worker, "0-0-5")
    assert [row["prompt"] for row in rows] == list("abcdef")
    assert [row["nfe"] for row in rows] == [3] * 6
    worker.run(unit(list("abcdef"), "0-0-5", batch=2))
    for image, again in zip(images, made(worker, "0-0-5")[1], strict=True):
        np.testing.assert_array_equal(image, again)


@pytest.mark.parametrize("bad", [0, 3, 4])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_bad_row_costs_itself_alone(worker: Worker, bad: int, batch: int) -> None:
    texts = [f"prompt {i}" + (" raise" if i == bad else "") for i in range(5)]
    report = worker.run(unit(texts, "0-0-4", batch=batch))
    assert report.rows == 5
    assert report.failed == [
        {"sample_id": f"model-0-0-4-{bad}", "prompt_id": f"0-0-4-{bad}", "error": "ValueError: this prompt is cursed"}
    ]
    rows, images = made(worker, "0-0-4")
    assert [image is None for image in images] == [i == bad for i in range(5)]
    assert [row["error"] is not None for row in rows] == [i == bad for i in range(5)]
    assert [row["nfe"] is None for row in rows] == [i == bad for i in range(5)]
    if batch > 1:
        in_batch = [i // batch == bad // batch for i in range(5)]
        assert [row["retried"] for row in rows] == in_batch

    good = worker.run(unit([f"prompt {i}" for i in range(5)], "0-0-4", batch=batch))
    assert good.failed == []
    for i, (image, again) in enumerate(zip(images, made(worker, "0-0-4")[1], strict=True)):
        if i != bad:
            np.testing.assert_array_equal(image, again)


def test_rows_that_do_not_fit_together_into_memory_are_made_in_smaller_batches(worker: Worker) -> None:
    report = worker.run(unit(["oom-above-2"] * 8, "0-0-7", batch=8))
    assert report.failed == []
    assert FakeDiffusion.batches == [8, 4, 2, 2, 4, 2, 2]
    assert all(row["retried"] and row["batch"] == 2 for row in made(worker, "0-0-7")[0])


def test_latents_that_are_not_finite_are_an_error_row(worker: Worker) -> None:
    report = worker.run(unit(["a", "b nan", "c", "d"]))
    assert [failed["error"] for failed in report.failed] == ["the latents are not finite (NaN or infinity)"]
    rows, images = made(worker)
    assert [image is None for image in images] == [False, True, False, False]
    assert not any(row["retried"] for row in rows)
    assert rows[1]["nfe"] == 3  # it was paid for


def test_models_are_loaded_once_and_one_is_kept_at_a_time(worker: Worker) -> None:
    before = FakeDiffusion.loads
    for method in ("plain", "best", "plain"):
        worker.run(unit(["a"], method=method))
    assert FakeDiffusion.loads == before + 1
    worker.run(unit(["a"], model="second"))
    assert FakeDiffusion.loads == before + 2
    assert worker._model is not None
    assert worker._model[0] == "second"


def test_a_judge_is_opened_once_and_its_scores_are_recorded(worker: Worker) -> None:
    before = Brightness.opened
    worker.run(unit(["a", "b"], method="best"))
    worker.run(unit(["a", "b"], "1-0-1", method="best"))
    assert Brightness.opened == before + 1
    record = json.loads(made(worker, method="best")[0][0]["record"])
    assert len(record["scores"]) == 2


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ("broken", "plain", "model 'broken' cannot be loaded: FileNotFoundError: no weights at all"),
        ("model", "wrong", "method 'wrong' cannot be loaded: unknown noise 'no-such-stage'"),
    ],
)
def test_what_cannot_be_loaded_fails_the_unit_and_writes_nothing(
    worker: Worker, model: str, method: str, message: str
) -> None:
    for _ in range(2):
        report = worker.run(unit(["a"], model=model, method=method))
        assert report.rows == 0
        assert report.failed[0]["unit"]
        assert report.failed[0]["error"].startswith(message)
    assert list(worker.store.parts("images")) == []


def test_a_lost_gpu_is_no_fault_of_the_rows(worker: Worker) -> None:
    with pytest.raises(DeviceLost, match="illegal memory access"):
        worker.run(unit(["a", "lost", "c", "d"]))
    assert list(worker.store.parts("images")) == []


def test_a_full_disk_stops_the_run(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.files.os.fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        worker.run(unit(["a"]))


def test_a_run_folder_that_this_machine_does_not_see(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path), root=str(tmp_path / "elsewhere"))
    with pytest.raises(HarnessError, match=r"not visible on this machine.*storage that all nodes share"):
        Worker(job, Slot("cpu"))


def test_a_gpu_that_is_not_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Worker(job, Slot("auto")).device == "cpu"
    with pytest.raises(HarnessError, match="has no GPU"):
        Worker(job, Slot("cuda"))


def test_a_gpu_computes_in_the_dtype_that_rows_carry(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default, put back afterwards
    Worker(job, Slot("cpu"))
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_missing_column_of_the_prompt_set_is_an_error_row(worker: Worker) -> None:
    report = worker.run(replace(unit(["a", "b"]), seeding="column:evaluation_seed"))
    assert len(report.failed) == 2
    assert "column 'evaluation_seed'" in report.failed[0]["error"]


# ---- scoring ----


def score_unit(texts: list[str], metrics: tuple[str, ...] = ("brightness",), extractors: tuple[str, ...] = ()) -> Any:
    prompts = tuple(Prompt(f"0-0-3-{i}", text) for i, text in enumerate(texts))
    return ScoreUnit(part(), metrics, extractors, prompts)


def scores(worker: Worker, metric: str = "brightness") -> list[dict[str, Any]]:
    rows = worker.store.read("scores", metric).to_dict("records")
    return [{**row, "error": None if pd.isna(row["error"]) else row["error"]} for row in rows]


def test_scores_and_features_of_a_part(worker: Worker, job: Job) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    report = worker.run(score_unit(["a", "b b", "c", "d"], extractors=("colours",)))
    assert (report.rows, report.failed, report.stage) == (4, [], "score")
    images = made(worker)[1]
    for row, image in zip(scores(worker), images, strict=True):
        assert image is not None
        assert row["value"] == pytest.approx(image.mean() + 1)
        assert (row["metric"], row["metric_digest"], row["error"]) == ("brightness", "d1", None)
    assert [json.loads(row["detail"])["words"] for row in scores(worker)] == [1, 2, 1, 1]
    ids, features = worker.store.read_features(Colours().shelf, model="model", method="plain", prompts="prompts")
    assert ids == [f"model-0-0-3-{i}" for i in range(4)]
    np.testing.assert_allclose(features[2], images[2].mean(axis=(0, 1, 2)), rtol=1e-6)  # type: ignore[union-attr]
    assert worker._model is None  # its memory is free for metrics


def test_images_that_are_missing_and_scores_that_fail_are_rows_too(worker: Worker) -> None:
    worker.run(unit(["a", "b raise", "c", "d"]))
    report = worker.run(score_unit(["unclear", "b", "unscorable", "d"], extractors=("colours",)))
    errors = [row["error"] for row in scores(worker)]
    assert errors == ["the metric gave nan", NO_IMAGE, "ValueError: cannot score this", None]
    assert [np.isnan(row["value"]) for row in scores(worker)] == [True, True, True, False]
    assert [failed["sample_id"] for failed in report.failed] == ["model-0-0-3-0", "model-0-0-3-2"]
    ids, _ = worker.store.read_features(Colours().shelf, model="model", method="plain", prompts="prompts")
    assert ids == ["model-0-0-3-0", "model-0-0-3-2", "model-0-0-3-3"]


def test_a_metric_without_its_weights_does_not_stop_the_others(worker: Worker) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    report = worker.run(score_unit(["a", "b", "c", "d"], ("absent", "brightness")))
    assert len(report.failed) == 1
    assert report.failed[0]["metric"] == "absent"
    assert "harness fetch absent" in report.failed[0]["error"]
    assert worker.store.kept("scores") == ["brightness"]
    assert len(scores(worker)) == 4


def test_a_damaged_part_is_named(worker: Worker) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    path = worker.store.path("images", part())
    path.write_bytes(path.read_bytes()[:-50])
    report = worker.run(score_unit(["a", "b", "c", "d"]))
    assert report.rows == 0
    assert str(path) in report.failed[0]["error"]


def test_no_image_at_all(worker: Worker) -> None:
    worker.run(unit(["raise"] * 2))
    worker.run(score_unit(["a", "b"], extractors=("colours",)))
    assert [row["error"] for row in scores(worker)] == [NO_IMAGE] * 2
    assert Store(worker.job.root).kept("features") == []


def spoil(worker: Worker, place: int, *, kept: int = 20, of: Part | None = None) -> str:
    """Cuts one image of a part off after some bytes; the file itself stays sound. Returns the sample's id."""
    path = worker.store.path("images", of or part())
    table = read_part(path)
    rows = table.to_pylist()
    rows[place]["image"]["bytes"] = rows[place]["image"]["bytes"][:kept]
    write_atomic(path, serialised(pa.Table.from_pylist(rows, table.schema)))
    return str(rows[place]["sample_id"])


@pytest.mark.parametrize("kept", [0, 4, 20, 60])
def test_a_damaged_image_costs_its_row_alone(worker: Worker, kept: int) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    sample = spoil(worker, 2, kept=kept)
    report = worker.run(score_unit(["a", "b", "c", "d"], extractors=("colours",)))
    assert report.rows == 4
    assert [(failed["metric"], failed["sample_id"]) for failed in report.failed] == [
        ("brightness", sample), ("colours", sample),
    ]
    errors = [row["error"] for row in scores(worker)]
    assert [error is None for error in errors] == [True, True, False, True]
    assert f"the image of sample {sample} is damaged" in errors[2]
    assert str(worker.store.path("images", part())) in errors[2]
    ids, _ = worker.store.read_features(Colours().shelf, model="model", method="plain", prompts="prompts")
    assert len(ids) == 3
    assert sample not in ids


def test_a_batch_that_does_not_fit_into_memory_is_halved(job: Job) -> None:
    fewer = {"colours": MetricJob(f"{PLACE}Colours", {"room": 3}, "d3")}
    worker = Worker(replace(job, metrics=job.metrics | fewer), Slot("cpu"))
    Brightness.batches.clear()
    Colours.batches.clear()
    worker.run(unit(list("abcdefgh"), "0-0-7", batch=8))
    prompts = tuple(Prompt(f"0-0-7-{i}", "oom-above-2") for i in range(8))
    report = worker.run(ScoreUnit(part("0-0-7"), ("brightness",), ("colours",), prompts))
    assert report.failed == []
    assert Brightness.batches == [8, 4, 2, 2, 4, 2, 2]
    assert Colours.batches == [8, 4, 2, 2, 4, 2, 2]
    assert len(scores(worker)) == 8
    assert len(worker.store.read_features(Colours().shelf, model="model", method="plain", prompts="prompts")[0]) == 8


def test_a_metric_says_how_many_images_it_takes_at_once(job: Job) -> None:
    three = {"brightness": MetricJob(f"{PLACE}Brightness", {"batch": 3}, "d1")}
    worker = Worker(replace(job, metrics=job.metrics | three), Slot("cpu"))
    Brightness.batches.clear()
    worker.run(unit(list("abcdefgh"), "0-0-7", batch=8))
    worker.run(ScoreUnit(part("0-0-7"), ("brightness",), (), ()))
    assert Brightness.batches == [3, 3, 2]
    assert metric_digest("b", Brightness(batch=3)) == metric_digest("b", Brightness())


def test_the_images_of_one_unit_are_decoded_while_another_computes(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, decoded = threading.Event(), threading.Event()
    for name in ("0-0-3", "1-0-3"):
        worker.run(unit(["a", "b", "c", "d"], name))
    read, score = Store.read_images, Brightness.score

    def reading(self: Store, of: Part, *args: Any, **named: Any) -> Any:
        if of.name == "1-0-3":
            assert computing.wait(120)  # the first unit is at its metric
        found = read(self, of, *args, **named)
        if of.name == "1-0-3":
            decoded.set()
        return found

    def scoring(self: Brightness, images: np.ndarray, prompts: Any) -> Any:
        computing.set()
        assert decoded.wait(120)
        return score(self, images, prompts)

    monkeypatch.setattr(Store, "read_images", reading)
    monkeypatch.setattr(Brightness, "score", scoring)
    units = [ScoreUnit(part(name), ("brightness",), (), ()) for name in ("0-0-3", "1-0-3")]
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(worker.run, units))
    assert [report.failed for report in reports] == [[], []]


# ---- pairs ----


def paired_unit(worker: Worker, given: dict[int, Counterpart | str], name: str = "0-0-3") -> ScoreUnit:
    ids = {i: f"model-{name}-{i}" for i in range(4)}
    return ScoreUnit(part(name), ("difference",), (), (), {"difference": {ids[i]: c for i, c in given.items()}})


def test_a_pair_is_found_in_whatever_part_it_lies(worker: Worker, tmp_path: Path) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    worker.run(unit(["aaaa", "bbbb raise"], "0-0-1", method="best"))
    worker.run(unit(["cccc"], "0-2-2", method="best"))
    mine = made(worker)[1]
    own = tmp_path / "own.png"
    Image.fromarray(mine[3][0]).save(own)  # type: ignore[index]
    first, second = part("0-0-1", method="best"), part("0-2-2", method="best")
    report = worker.run(paired_unit(worker, {
        0: Counterpart(first, "model-0-0-1-0"), 1: Counterpart(first, "model-0-0-1-1"),
        2: Counterpart(second, "model-0-2-2-0"), 3: Counterpart((str(own),), "sha"),
    }))
    found = scores(worker, "difference")
    others = {name: made(worker, name, method="best")[1][0] for name in ("0-0-1", "0-2-2")}
    for i, name in ((0, "0-0-1"), (2, "0-2-2")):
        expected = np.abs(mine[i].astype(float) - others[name].astype(float)).mean()  # type: ignore[union-attr]
        assert found[i]["value"] == pytest.approx(expected)
        assert expected > 0
    assert json.loads(found[2]["detail"]) == {"reference": "model-0-2-2-0"}
    assert (found[3]["value"], json.loads(found[3]["detail"])) == (0, {"reference": "sha"})
    assert found[1]["error"] == "the image to compare with is gone"
    assert [failed["sample_id"] for failed in report.failed] == ["model-0-0-3-1"]


def test_a_pair_that_cannot_be_compared_costs_its_row(worker: Worker, tmp_path: Path) -> None:
    worker.run(unit(["a", "b", "c", "d"]))
    worker.run(unit(["aaaa"], "0-0-0", method="best"))
    spoil(worker, 0, of=part("0-0-0", method="best"))
    Image.new("RGB", (20, 30)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    worker.run(paired_unit(worker, {
        0: Counterpart(part("0-0-0", method="best"), "model-0-0-0-0"), 1: "there is no image by 'best' to compare with",
        2: Counterpart((str(tmp_path / "large.png"),), ""), 3: Counterpart((str(tmp_path / "text.png"),), ""),
    }))
    errors = [row["error"] for row in scores(worker, "difference")]
    assert "the image of sample model-0-0-0-0 is damaged" in errors[0]
    assert errors[1] == "there is no image by 'best' to compare with"
    assert "an image of 8 x 8 pixels cannot be compared with an image of 20 x 30 pixels" in errors[2]
    wanted = "text.png cannot be read (no format of images); put a good PNG, JPEG or WebP file in its place"
    assert errors[3] == str(tmp_path / wanted)


def test_samples_that_are_not_asked_for_get_no_row_and_lost_parts_cost_theirs(worker: Worker, tmp_path: Path) -> None:
    worker.run(unit(["a", "b raise", "c", "d"]))
    report = worker.run(paired_unit(worker, {
        1: Counterpart((str(tmp_path / "x.png"),), ""), 2: Counterpart(part("9-9-9", method="best"), "gone"),
    }))
    found = {row["sample_id"]: row["error"] for row in scores(worker, "difference")}
    assert found.keys() == {"model-0-0-3-1", "model-0-0-3-2"}
    assert found["model-0-0-3-1"] == NO_IMAGE
    assert "9-9-9.parquet" in found["model-0-0-3-2"]
    assert len(report.failed) == 1
