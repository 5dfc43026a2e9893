"""`harness reference`: from images to a file that a metric takes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from harness import make_reference as module
from harness.errors import HarnessError
from harness.frechet import Moments
from harness.make_reference import make_reference
from harness.metrics.load import load_metric
from harness.metrics.reference import read_reference
from tests.command import harness
from tests.tiny import tiny_stable_diffusion

FD, CMMD = "fd-shapes-clip", "cmmd-shapes-clip"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path / "home"))
    return tmp_path / "home"


def _images(count: int = 7) -> list[np.ndarray]:
    """Images of two sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (64, 64 + 16 * (i % 2), 3), dtype=np.uint8) for i in range(count)]


def _folder(path: Path, images: list[np.ndarray]) -> Path:
    for i, image in enumerate(images):
        place = path / f"part-{i // 4}" / f"{i:03}.{('png', 'webp')[i % 2]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place, lossless=True)
    return path


def _told(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return file.metadata()


def _by_hand(images: list[np.ndarray]) -> np.ndarray:
    metric = load_metric(FD)
    return np.concatenate([metric.features(image[None, None]) for image in images])


def test_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    images = _images()
    path = make_reference("mine", _folder(tmp_path / "images", images), FD, keep_features=True)
    metric = load_metric(FD, statistics="mine")
    found, expected = metric.reference(), _by_hand(images)
    assert found.features == pytest.approx(expected, abs=1e-5)
    moments = Moments.of(expected)
    assert found.mean == pytest.approx(moments.mean, abs=1e-6)
    assert found.covariance == pytest.approx(moments.covariance, abs=1e-4)
    told = _told(path)
    assert (told["count"], told["size"], told["source"]) == ("7", "as they are", "images")
    assert told["extractor"] == metric.extractor_digest
    assert str(tmp_path) not in json.dumps(told)


def test_moments_alone_by_default(tmp_path: Path) -> None:
    path = make_reference("mine", _folder(tmp_path / "images", _images()), FD)
    assert read_reference(path).features is None
    assert read_reference(path).count == 7
    metric = load_metric(CMMD, statistics="mine")
    with pytest.raises(ValueError, match="cmmd-shapes-clip needs its features"):
        metric.distance(np.zeros((3, len(read_reference(path).mean)), np.float32), metric.reference())


def _parquet(path: Path, images: list[np.ndarray | None]) -> Path:
    def encoded(image: np.ndarray | None) -> dict[str, Any] | None:
        if image is None:
            return None
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array([encoded(image) for image in images], kind)}), path)
    return path


def test_parquet_holds_the_same_images(tmp_path: Path) -> None:
    images = _images()
    first = make_reference("files", _folder(tmp_path / "images", images), FD)
    one = make_reference("one", _parquet(tmp_path / "one.parquet", [*images, None]), FD)
    _parquet(tmp_path / "parts" / "a.parquet", images[:3])
    _parquet(tmp_path / "parts" / "b.parquet", images[3:])
    several = make_reference("several", tmp_path / "parts", FD)
    for path in (one, several):
        assert read_reference(path).mean == pytest.approx(read_reference(first).mean, abs=1e-6)
        assert read_reference(path).count == 7
    assert _told(one)["source_sha256"] == _told(several)["source_sha256"]
    assert _told(one)["source_sha256"] != _told(first)["source_sha256"]  # other files: webp among them


def test_guided_diffusions_batch_of_images(tmp_path: Path) -> None:
    images = np.stack(_images()[::2])
    np.savez(tmp_path / "batch.npz", arr_0=images, mu=np.zeros(3))
    found = read_reference(make_reference("batch", tmp_path / "batch.npz", FD, keep_features=True))
    assert found.features == pytest.approx(_by_hand(list(images)), abs=1e-5)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3))
    np.savez(tmp_path / "float.npz", arr_0=images / 255)
    for name, reason in (("statistics", r"no images `arr_0`"), ("float", r"uint8.*float64")):
        with pytest.raises(HarnessError, match=reason):
            make_reference("other", tmp_path / f"{name}.npz", FD)


@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (64, 64), (31, 32)])
def test_size_is_the_middle_square_resized_by_pillow(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    expected = np.asarray(square.resize((40, 40), Image.Resampling.LANCZOS))
    assert np.array_equal(module._opened("x", buffer.getvalue(), 40, "lanczos"), expected)
    path = make_reference("mine", _folder(tmp_path / "i", [image, image]), FD, size=40, resample="lanczos")
    assert _told(path)["size"] == "40, centre crop, lanczos"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    pixels = module._opened("x", buffer.getvalue(), None, "bicubic")
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    def refused(images: Path, match: str, metric: str = FD, **settings: Any) -> None:
        with pytest.raises(HarnessError, match=match):
            make_reference("mine", images, metric, **settings)
        assert not list(tmp_path.rglob("*.safetensors"))

    folder = _folder(tmp_path / "images", _images())
    refused(tmp_path / "nowhere", "no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no .png")
    refused(folder, "compares no distributions", metric="clipscore-shapes")
    refused(folder, "expected one of bicubic", size=8, resample="nearest")
    refused(_folder(tmp_path / "single", _images(1)), "holds 1 image")
    corrupt = folder / "part-0" / "002.png"
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    refused(folder, r"part-0/002\.png cannot be read as an image")
    table = _parquet(tmp_path / "t.parquet", [_images(1)[0]])
    data = pq.read_table(table)
    pq.write_table(data.rename_columns(["picture"]), table)
    refused(table, "has no column `image`")
    table.write_bytes(table.read_bytes()[:-9])
    refused(table, "is no Parquet file")
    _parquet(folder / "x.parquet", [_images(1)[0]])
    refused(folder, "both image files and Parquet files")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": b"no", "path": None}], kind)}), table)
    refused(table, r"t\.parquet, row 0 cannot be read as an image \(no format of images\)")
    with pytest.raises(HarnessError, match="cannot name a folder"):
        make_reference("../mine", folder, FD)


def test_a_reference_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = _images()
    arguments = ["reference", "mine", "--images", str(_folder(tmp_path / "a", images)), "--metric", FD]
    code, out, err = harness(capsys, *arguments)
    assert (code, Path(out.strip()).is_file()) == (0, True)
    assert "features: 7/7" in err
    before = Path(out.strip()).read_bytes()
    arguments[3] = str(_folder(tmp_path / "b", images[:4]))
    code, _, err = harness(capsys, *arguments)
    assert code == 2
    assert "is there already: --replace makes it anew" in err
    assert Path(out.strip()).read_bytes() == before
    assert harness(capsys, *arguments, "--replace", "--features", "--size", "32")[0] == 0
    assert read_reference(Path(out.strip())).count == 4


def test_a_runs_own_images_are_at_distance_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny_stable_diffusion(tmp_path / "weights")
    (tmp_path / "prompts.txt").write_text("\n".join(f"number {i}" for i in range(12)))
    benchmark: dict[str, Any] = {
        "name": "small",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 4}},
        "prompts": {"numbers": {"set": "numbers", "path": "prompts.txt"}},
        "sampler": {"steps": 2},
        "methods": {"plain": {}, "cfg": {"guidance": {"cfg": {"scale": 3}}}},
        "metrics": [],
    }
    results = ["--workers", "0", "--results", str(tmp_path / "results")]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(benchmark))
    assert harness(capsys, "run", str(tmp_path / "small.yaml"), *results)[0] == 0
    cell = tmp_path / "results" / "small" / "images" / "sd" / "plain"
    made = harness(capsys, "reference", "plain", "--images", str(cell), "--metric", FD, "--features")
    assert made[0] == 0, made[2]
    benchmark["metrics"] = [{FD: {"statistics": "plain"}}, {CMMD: {"statistics": "plain"}}]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(benchmark))
    code, out, err = harness(capsys, "run", str(tmp_path / "small.yaml"), "--json", *results)
    assert code == 0, err
    values = {(r["method"], r["metric"]): r["value"] for r in json.loads(out) if r["group"] is None}
    for metric in (FD, CMMD):
        assert values["plain", metric] == pytest.approx(0, abs=1e-4)
        assert values["cfg", metric] > 10 * abs(values["plain", metric])
