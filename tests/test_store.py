"""The run folder: what is written comes back exactly, whole or not at all, and other tools can read it."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import files
from harness.errors import HarnessError, PartError
from harness.parquet import DETERMINISTIC, IMAGES, SCORES, read_part
from harness.store import NO_IMAGE, Store, StoreError, check_label
from harness.units import Part
from tests.light import within

PART = Part("sdxl", "cfg-7.5", "drawbench", "0-0-3")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def rows(count: int, first: int = 0, **other: Any) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"{i:032x}", "model": PART.model, "method": PART.method, "prompts": PART.prompts,
            "prompt_id": str(i), "prompt": f"a photo of {i} ünïcorns", "category": None, "seed": 2**62 + i, "nfe": 40,
            "nfe_by_network": {"main": np.int64(40)}, "grad_evals": 0, "flops": 1.5e12,
            "record": {"score": np.float32(0.5), "curve": np.arange(2.0), "lost": float("nan")}, "error": None,
            "seconds": 0.25, "batch": 4, "retried": False, "device": "cpu", "dtype": "float32",
            "versions": {"torch": "2"}, "created": pd.Timestamp("2026-01-02T03:04:05.678901Z"), **other,
        }
        for i in range(first, first + count)
    ]


def pictures(count: int, frames: int = 1, height: int = 24, width: int = 16, seed: int = 0) -> list[np.ndarray]:
    random_numbers = np.random.default_rng(seed)
    return [random_numbers.integers(0, 256, (frames, height, width, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("codec", ["webp", "png"])
@pytest.mark.parametrize("frames", [1, 3])
def test_images_come_back_bit_for_bit(tmp_path: Path, codec: str, frames: int) -> None:
    store = Store(tmp_path, codec)
    written = [*pictures(3, frames), np.zeros((frames, 24, 16, 3), np.uint8)]
    store.write_images(PART, rows(4), written)
    found, images = store.read_images(PART)
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in rows(4)]
    for image, original in zip(images, written, strict=True):
        np.testing.assert_array_equal(image, original)
    table = pq.read_table(store.path("images", PART))
    assert table.num_rows == 4 * frames
    assert table["frame"].to_pylist() == list(range(frames)) * 4
    assert table["image"][0]["path"].as_py() == f"{rows(1)[0]['sample_id']}-0.{codec}"
    assert set(table["height"].to_pylist()) == {24}


def test_columns_are_those_of_the_contract(store: Store) -> None:
    names = (  # noqa: SIM905
        "sample_id frame model method prompts prompt_id prompt category seed image width height nfe nfe_by_network "
        "grad_evals flops record error seconds batch retried device dtype versions created"
    ).split()
    path = store.write_images(PART, rows(20), pictures(20))
    schema = pq.read_schema(path)
    assert schema.names == names == IMAGES.names
    assert schema.equals(IMAGES, check_metadata=False)
    assert DETERMINISTIC[-1] == "error"
    row = pq.read_table(path).to_pylist()[1]
    assert row["seed"] == 2**62 + 1
    assert row["nfe_by_network"] == '{"main":40}'
    assert json.loads(row["record"]) == {"score": 0.5, "curve": [0.0, 1.0], "lost": None}
    assert row["created"] == pd.Timestamp("2026-01-02T03:04:05.678901Z")


def test_pixels_are_stored_plainly_in_small_row_groups(store: Store) -> None:
    metadata = pq.read_metadata(store.write_images(PART, rows(20), pictures(20)))
    assert metadata.num_row_groups == 2
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(26)}
    pixels = columns["image.bytes"]
    assert pixels.compression == "UNCOMPRESSED"
    assert not pixels.is_stats_set
    assert "PLAIN_DICTIONARY" not in pixels.encodings
    assert "RLE_DICTIONARY" not in pixels.encodings
    assert columns["prompt"].compression == "ZSTD"


def test_a_row_without_an_image_says_why(store: Store) -> None:
    bad = rows(1, 1, error="ValueError: cursed")
    store.write_images(PART, rows(1) + bad, [*pictures(1), None])
    found, images = store.read_images(PART)
    assert images[0] is not None
    assert images[1] is None
    assert found[1]["error"] == "ValueError: cursed"
    assert found[1]["width"] is None
    assert store.sample_ids("images") == {row["sample_id"] for row in rows(2)}
    assert store.sample_ids("images", with_failed=False) == {rows(1)[0]["sample_id"]}


def test_pandas_duckdb_and_datasets_open_a_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pictures(4)
    store.write_images(PART, rows(4), written)
    store.write_images(Part("sdxl", "cfg-1", "drawbench", "0-0-3"), rows(2, 4, method="cfg-1"), [*pictures(1), None])
    store.write_scores("hpsv2", PART, [{"sample_id": row["sample_id"], "value": 0.3} for row in rows(4)])
    (store.root / "images" / "sdxl" / "cfg-1" / "drawbench" / ".torn.tmp").write_bytes(b"PAR1")

    frame = pd.read_parquet(store.root / "images")
    assert len(frame) == 6
    assert frame["image"].isna().tolist() == [False, True, False, False, False, False]

    query = f"""
        select method, count(*), avg(value) from '{store.root}/images/**/*.parquet' i
        left join '{store.root}/scores/hpsv2/**/*.parquet' s using (sample_id) group by method order by method
    """
    assert duckdb.sql(query).fetchall() == [("cfg-1", 2, None), ("cfg-7.5", 4, pytest.approx(0.3))]

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=f"{store.root}/images/**/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    by_id = {row["sample_id"]: row for row in loaded if row["method"] == "cfg-7.5"}
    for row, image in zip(rows(4), written, strict=True):
        np.testing.assert_array_equal(np.asarray(by_id[row["sample_id"]]["image"]), image[0])


def test_scores_and_features_come_back(store: Store) -> None:
    written = [
        {"sample_id": "a", "metric_digest": "d1", "value": 0.5, "detail": {"objects": 2}},
        {"sample_id": "b", "metric_digest": "d1", "value": float("nan"), "error": "the metric gave nan"},
        {"sample_id": "c", "metric_digest": "d1", "value": None, "error": NO_IMAGE},
    ]
    path = store.write_scores("geneval-shapes", PART, written)
    assert pq.read_schema(path).equals(SCORES)
    frame = store.read("scores", "geneval-shapes")
    assert list(frame.columns) == ["model", "method", "prompts", *SCORES.names]
    assert frame["value"].isna().tolist() == [False, True, True]
    assert frame["method"].tolist() == ["cfg-7.5"] * 3
    assert frame["detail"].tolist() == ['{"objects":2}', "{}", "{}"]
    assert store.sample_ids("scores", "geneval-shapes", digest="d1") == {"a", "b"}
    assert store.sample_ids("scores", "geneval-shapes", digest="d2") == set()
    assert store.kept("scores") == ["geneval-shapes"]

    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    path = store.write_features("clip-shapes", PART, list("abcde"), features)
    assert pq.read_schema(path).field("feature").type == pa.list_(pa.float32(), 7)
    ids, found = store.read_features("clip-shapes", model=PART.model, method=PART.method, prompts=PART.prompts)
    assert ids == list("abcde")
    np.testing.assert_array_equal(found, features)
    assert store.read_features("clip-shapes", model="other", method="x", prompts="y")[1].shape == (0, 0)


def test_reading_an_empty_run_gives_empty_answers(store: Store) -> None:
    assert store.read("images").empty
    assert "prompt" in store.read("images").columns
    assert store.read("scores", "hpsv2").empty
    assert store.sample_ids("images") == set()
    assert store.corrupt_parts() == []
    assert store.read_benchmark() is None
    assert store.read_environment() == {}
    assert store.read_log() == []


def test_parts_come_in_the_order_of_their_numbers(store: Store) -> None:
    for name in ("0-128-143", "0-16-31", "10-0-15", "2-0-15"):
        store.write_images(Part("m", "a", "p", name), rows(1), pictures(1))
    store.write_images(Part("m", "b", "p", "0-0-0"), rows(1), pictures(1))
    assert [part.name for part in store.parts("images", method="a")] == ["0-16-31", "0-128-143", "2-0-15", "10-0-15"]
    assert len(list(store.parts("images"))) == 5
    assert list(store.parts("images", model="other")) == []


# ---- whole or not at all ----

# Imports once; then every line of input is a run folder, written to for ever by a forked child whose id is printed.
WRITERS = """
import os, sys
from harness.images import Encoded
from harness.store import Store
from harness.units import Part
part = Part("sdxl", "cfg-7.5", "drawbench", "0-0-3")
made = [{"sample_id": f"{i:032x}"} for i in range(64)]
images = [Encoded((os.urandom(200_000),), 8, 8, "webp") for _ in made]
for line in sys.stdin:
    child = os.fork()
    while child == 0:
        Store(line.strip()).write_images(part, made, images)
    print(child, flush=True)
"""


@pytest.fixture(scope="module")
def start_writer() -> Iterator[Callable[[Path], int]]:
    command = [sys.executable, "-c", WRITERS]
    parent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )

    def start(root: Path) -> int:
        assert parent.stdin is not None
        assert parent.stdout is not None
        print(root, file=parent.stdin, flush=True)
        return int(parent.stdout.readline())

    yield start
    parent.kill()
    parent.wait()


def test_a_killed_writer_never_leaves_a_partial_file(start_writer: Callable[[Path], int], tmp_path: Path) -> None:
    dice = random.Random(0)
    finished = torn = 0
    for attempt in range(12):
        store = Store(tmp_path / str(attempt))
        writer = start_writer(store.root)
        if attempt == 0:  # however slow the disk, one part gets finished
            assert within(120, lambda store=store: any(store.parts("images")))
        time.sleep(dice.uniform(0.05, 0.6))
        os.kill(writer, signal.SIGKILL)
        time.sleep(0.05)
        for part in store.parts("images"):
            assert read_part(store.path("images", part)).num_rows == 64  # all pages, checksums and all
            finished += 1
        torn += len(list(store.root.rglob("*.tmp")))
        assert store.corrupt_parts() == []
        assert store.sweep(older_than=3600) == 0  # a young one may have a living writer
        store.sweep(older_than=-1)
        assert not list(store.root.rglob("*.tmp"))
    assert finished > 0
    print(f"12 writers killed: {finished} whole parts, {torn} torn temporary files, no partial part")


def test_two_writers_of_one_part_do_no_harm(start_writer: Callable[[Path], int], store: Store) -> None:
    writers = [start_writer(store.root) for _ in range(2)]
    assert within(120, lambda: any(store.parts("images")))
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for part in store.parts("images"):
            assert len(store.read_part(part, ["sample_id"])) == 64
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
    assert [part.name for part in store.parts("images")] == ["0-0-3"]


def test_writing_under_a_taken_name_keeps_the_other_samples(store: Store) -> None:
    store.write_images(PART, rows(2, error="out of memory") + rows(2, 2), [None, None, *pictures(2)])
    store.write_images(PART, rows(2), pictures(2))
    found, images = store.read_images(PART)
    assert len(found) == 4
    assert all(row["error"] is None for row in found)
    assert all(image is not None for image in images)


def test_a_retried_sample_counts_once_and_without_its_error(store: Store) -> None:
    store.write_images(PART, rows(1, error="out of memory") + rows(1, 1), [None, *pictures(1)])
    store.write_images(Part("sdxl", "cfg-7.5", "drawbench", "0-0-3+1"), rows(1), pictures(1))
    frame = store.read("images")
    assert frame["prompt_id"].tolist() == ["0", "1"]
    assert frame["error"].isna().all()


# ---- damage ----


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "pixels", "other table"])
def test_a_damaged_part_is_named_and_can_be_moved_aside(store: Store, damage: str) -> None:
    path = store.write_images(PART, rows(4), pictures(4))
    good = store.write_images(Part("m", "a", "p", "0-0-3"), rows(4), pictures(4))
    data = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            data = data[: len(data) // 2]
        case "empty":
            data = bytearray()
        case "garbage":
            data[:] = b"x" * len(data)
        case "pixels":
            data[len(data) // 3] ^= 0xFF  # within the image column
        case "other table":
            pq.write_table(pa.table({"x": [1]}), path)
            data = bytearray(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(PartError, match=r"0-0-3\.parquet"):
        store.read_images(PART)
    if damage == "pixels":
        return  # found only by whoever reads the pixels
    with pytest.raises(PartError, match=r"0-0-3\.parquet"):
        store.sample_ids("images")
    assert store.corrupt_parts() == [path]
    assert len(store.read("images", lenient=True)) == 4
    assert store.quarantine(path).name == "0-0-3.parquet.corrupt"
    assert store.corrupt_parts() == []
    assert [store.path("images", part) for part in store.parts("images")] == [good]


def test_a_damaged_part_is_written_over(store: Store) -> None:
    store.write_images(PART, rows(4), pictures(4)).write_bytes(b"PAR1 nonsense PAR1")
    store.write_images(PART, rows(4), pictures(4))
    assert len(store.read_images(PART)[0]) == 4


@pytest.mark.parametrize("label", ["..", "a/b", "", ".hidden", "_seen-by-nobody", "w=7", "a\\b", "a b", "x" * 101, "é"])
def test_labels_that_cannot_name_a_folder_are_refused(store: Store, label: str) -> None:
    with pytest.raises(HarnessError, match="cannot name a folder"):
        check_label("method", label)
    with pytest.raises(HarnessError, match="cannot name a folder"):
        store.path("images", Part("m", label, "p", "0-0-3"))
    with pytest.raises(HarnessError, match="cannot name a folder"):
        store.path("scores", PART, label)


@pytest.mark.parametrize("name", ["../0-0-3", ".0-0-3", "a/b", ""])
def test_part_names_that_leave_the_folder_are_refused(store: Store, name: str) -> None:
    with pytest.raises(HarnessError, match="cannot name a file"):
        store.path("images", Part("m", "a", "p", name))


# ---- a disk that does not take it ----


def test_a_full_disk_is_said_and_nothing_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match=r"0-0-3\.parquet: the disk is full.*--results"):
        store.write_images(PART, rows(4), pictures(4))
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_really_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        store = Store(small / "run")
        store.write_images(PART, rows(1), pictures(1))
        with pytest.raises(StoreError, match="the disk is full"):
            store.write_images(Part("m", "a", "p", "0-4-7"), rows(4), pictures(4, height=256, width=256))
        assert [path.name for path in store.root.rglob("*") if path.is_file()] == ["0-0-3.parquet"]
        with contextlib.suppress(StoreError):
            while True:
                store.log("x", filler="y" * 1000)
        assert store.sample_ids("images")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        Store(tmp_path / "run").write_benchmark({"name": "x"})


def test_a_read_only_folder_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StoreError, match="read-only: give another folder with --results"):
        store.write_images(PART, rows(1), pictures(1))


# ---- housekeeping ----


def test_compacting_keeps_every_row_and_pixel(store: Store) -> None:
    for k in range(6):
        part = Part("sdxl", "cfg-7.5", "drawbench", f"0-{4 * k}-{4 * k + 3}")
        store.write_images(part, rows(4, 4 * k), pictures(4, seed=k))
    store.write_images(Part("sdxl", "cfg-7.5", "drawbench", "0-0-0"), rows(1), pictures(1))  # a retry
    store.write_scores("hpsv2", PART, [{"sample_id": "a", "value": 1.0}])
    store.write_scores("hpsv2", Part("sdxl", "cfg-7.5", "drawbench", "0-4-7"), [{"sample_id": "b", "value": 2.0}])
    before = store.read("images")
    assert store.compact() == (9, 2)
    assert store.compact() == (2, 2)
    after = store.read("images")
    assert len(after) == 24
    pd.testing.assert_frame_equal(before, after)
    (part,) = store.parts("images")
    found, images = store.read_images(part)
    for k in range(6):
        np.testing.assert_array_equal(images[4 * k + 3], pictures(4, seed=k)[3])
    assert len(found) == 24
    assert store.read("scores", "hpsv2")["value"].tolist() == [1.0, 2.0]
    metadata = pq.read_metadata(store.path("images", part))
    assert metadata.num_row_groups == 2
    assert b"huggingface" in metadata.metadata


def test_large_parts_are_left_alone(store: Store) -> None:
    for k in range(4):
        store.write_images(Part("m", "a", "p", f"0-{k}-{k}"), rows(1, k), pictures(1, height=64, width=64))
    size = store.path("images", next(store.parts("images"))).stat().st_size
    assert store.compact(target_bytes=2 * size + size // 2) == (4, 2)
    assert len(store.read("images")) == 4


def test_dropping_a_label_drops_its_images_scores_and_features(store: Store) -> None:
    for method in ("a", "b"):
        part = Part("m", method, "p", "0-0-0")
        store.write_images(part, rows(1), pictures(1))
        store.write_scores("hpsv2", part, [{"sample_id": "a", "value": 1.0}])
        store.write_features("clip", part, ["a"], np.zeros((1, 2), np.float32))
    assert store.drop(method="a") == 3
    assert {part.method for part in store.parts("images")} == {"b"}
    assert store.drop(metric="hpsv2") == 1
    assert len(list(store.parts("images"))) == 1


def test_the_files_beside_the_parts(store: Store) -> None:
    resolved = {"name": "example", "methods": {"z": {}, "a": {"guidance": {"cfg": {"scale": 5}}}}, "prompt": "ü"}
    store.write_benchmark(resolved)
    assert store.read_benchmark() == resolved
    assert list(store.read_benchmark()["methods"]) == ["z", "a"]  # type: ignore[index]
    (store.root / "benchmark.yaml").write_text("- a list")
    with pytest.raises(PartError, match=r"benchmark\.yaml is not a benchmark"):
        store.read_benchmark()
    store.write_environment({"torch": "2", "device": np.int64(3)})
    assert store.read_environment() == {"torch": "2", "device": 3}
    store.log("run", samples=3)
    store.log("failed", error="x\ny")
    with open(store.root / "log.jsonl", "a") as file:
        file.write('{"event": "torn')
    assert [event["event"] for event in store.read_log()] == ["run", "failed"]
    assert store.write_table("table.md", "| a |").read_text() == "| a |"
