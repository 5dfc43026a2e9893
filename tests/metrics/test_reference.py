"""Reference files: ours, and the formats in which papers publish theirs."""

import os
import pickle
import shutil

import numpy as np
import pytest

from harness import registry
from harness.errors import HarnessError
from harness.frechet import Moments
from harness.metrics.load import load_metric, metric_digest
from harness.metrics.reference import PREPROCESSINGS, find_reference, named_file, read_reference, write_reference
from tests.metrics.tiny_clip import tiny_clip

TF1, CLEAN, DINOV2 = "tf1-bilinear-299", "clean-299", "dinov2-torch-224"


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def _moments(features) -> dict[str, np.ndarray]:
    return {"mu": features.mean(axis=0, dtype=np.float64), "sigma": np.cov(features, rowvar=False)}


def _same(reference, features):
    assert reference.mean == pytest.approx(features.mean(axis=0, dtype=np.float64))
    assert reference.covariance == pytest.approx(np.cov(features, rowvar=False))
    assert reference.mean.dtype == reference.covariance.dtype == np.float64


# ---- ours ----


def test_what_is_written_is_read(tmp_path, features):
    path = tmp_path / "deep" / "name.safetensors"
    moments = Moments.of(features)
    for kept, held in ((features, None), (None, moments), (features.astype(np.float16), moments)):
        write_reference(path, kept, TF1, "digest", moments=held, told={"source": "a folder"})
        reference = read_reference(path, "digest", preprocessing=TF1)
        if held is None or kept is not features:
            _same(reference, features)
        assert (reference.count, reference.preprocessing) == (20, TF1)
        assert (reference.features is None) == (kept is None)
        assert not [p for p in path.parent.iterdir() if p != path]
    assert reference.features.dtype == np.float32


def test_other_weights_and_other_preprocessing_are_refused(tmp_path, features):
    path = tmp_path / "name.safetensors"
    write_reference(path, features, TF1, "one")
    with pytest.raises(HarnessError, match="features of other weights"):
        read_reference(path, "two")
    with pytest.raises(HarnessError, match=r"made with the preprocessing 'tf1-bilinear-299'.*the metric uses 'clean"):
        read_reference(path, "one", preprocessing=CLEAN)
    with pytest.raises(HarnessError, match="says that its preprocessing is"):
        read_reference(path, stated=CLEAN)
    with pytest.raises(HarnessError, match="expected one of tf1"):
        read_reference(path, stated="bicubic")


@pytest.mark.parametrize("tensors", [
    {"mean": np.zeros(3), "covariance": np.zeros((2, 2))},
    {"mean": np.zeros(3)},
    {"mean": np.full(2, np.nan), "covariance": np.eye(2)},
    {"mean": np.zeros(2), "covariance": np.array([[1.0, 0.5], [0.0, 1.0]])},
    {"mean": np.zeros(2), "covariance": np.eye(2), "features": np.zeros((5, 3), np.float32)},
    {"features": np.zeros((1, 3), np.float32)},
    {"features": np.zeros(3, np.float32)},
    {"other": np.zeros(3, np.float32)},
])
def test_a_file_that_is_no_reference_is_a_sentence(tmp_path, tensors):
    from safetensors.numpy import save_file

    path = tmp_path / "name.safetensors"
    save_file(tensors, path, metadata={"preprocessing": TF1})
    with pytest.raises(HarnessError, match="is no reference"):
        read_reference(path)


def test_a_name_or_a_path(tmp_path, features, monkeypatch):
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    with pytest.raises(HarnessError, match="`harness reference coco --images FOLDER --metric fid`"):
        find_reference("coco", "inception", "fid")
    write_reference(named_file("coco", "inception"), features, TF1)
    assert find_reference("coco", "inception", "fid") == named_file("coco", "inception")
    with pytest.raises(HarnessError):
        find_reference("coco", "dinov2", "fd-dinov2")
    assert find_reference(str(named_file("coco", "inception")), "dinov2", "fd-dinov2").is_file()


# ---- published ----


def test_edm2(tmp_path, features):
    path, other = tmp_path / "img512.pkl", features[:, :4] * 2
    content = {"num_images": 1281167, "fid": _moments(features), "fd_dinov2": _moments(other)}
    path.write_bytes(pickle.dumps(content))
    _same(read_reference(path, "any", preprocessing=TF1), features)
    dinov2 = read_reference(path, preprocessing=DINOV2)
    _same(dinov2, other)
    assert (dinov2.count, dinov2.features) == (1281167, None)
    with pytest.raises(HarnessError, match="the metric uses 'dinov2-pil-224'"):
        read_reference(path, preprocessing="dinov2-pil-224")
    path.write_bytes(pickle.dumps({"num_images": 5, "fd_dinov2": _moments(other)}))
    with pytest.raises(HarnessError, match=r"'dinov2-torch-224'.*the metric uses 'tf1"):
        read_reference(path, preprocessing=TF1)
    for wrong in ([1], {"num_images": 5}, {"fid": 3}, {"fid": {"mu": 1}}):
        path.write_bytes(pickle.dumps(wrong))
        with pytest.raises(HarnessError, match="is no reference"):
            read_reference(path, preprocessing=TF1)


def test_a_malicious_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'touched'}",)

    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps({"fid": {"mu": Evil()}}))
    with pytest.raises(HarnessError, match=r"asks for posix.system"):
        read_reference(path, preprocessing=TF1)
    assert not (tmp_path / "touched").exists()


def test_guided_diffusion(tmp_path, features):
    path, images = tmp_path / "VIRTUAL_imagenet256_labeled.npz", np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(path, arr_0=images, **_moments(features), mu_s=np.zeros(3), sigma_s=np.eye(3))
    reference = read_reference(path, preprocessing=TF1)
    _same(reference, features)
    assert (reference.count, reference.features) == (0, None)


@pytest.mark.parametrize(("name", "made"), [
    ("ffhq_clean_trainval_256.npz", CLEAN),
    ("cifar10_legacy_tensorflow_test_32.npz", TF1),
    ("lsun_church_legacy_pytorch_train_256.npz", "pytorch-fid"),
])
def test_clean_fid(tmp_path, features, name, made):
    path = tmp_path / name
    np.savez_compressed(path, **_moments(features))
    reference = read_reference(path, preprocessing=made)
    _same(reference, features)
    with pytest.raises(HarnessError, match="cannot be compared"):
        read_reference(path, preprocessing=next(p for p in PREPROCESSINGS if p != made))
    kid = path.with_name(path.stem + "_kid.npz")
    np.savez_compressed(kid, feats=features)
    reference = read_reference(kid, preprocessing=made)
    _same(reference, features)
    assert np.array_equal(reference.features, features)
    assert reference.count == 20


def test_an_npz_that_does_not_tell_needs_the_users_word(tmp_path, features):
    path = tmp_path / "imagenet-64x64.npz"
    np.savez(path, **_moments(features))
    with pytest.raises(HarnessError, match=r"does not tell.*`statistics_preprocessing`, one of tf1"):
        read_reference(path, preprocessing=TF1)
    _same(read_reference(path, preprocessing=TF1, stated=TF1), features)
    with pytest.raises(HarnessError, match="cannot be compared"):
        read_reference(path, preprocessing=TF1, stated="pytorch-fid")


def test_damaged_npz(tmp_path, features):
    path = tmp_path / "a_clean_b.npz"
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    whole = path.read_bytes()
    with pytest.raises(HarnessError, match=r"is no reference.*allow_pickle"):
        read_reference(path)
    for data in (whole[:-30], b"", b"PK", b"text", features.tobytes()):
        path.write_bytes(data)
        with pytest.raises(HarnessError, match="is no reference"):
            read_reference(path)
    with path.open("wb") as file:
        np.save(file, features)
    with pytest.raises(HarnessError, match="is no reference"):
        read_reference(path)


# ---- in a metric ----


def test_a_metric_takes_a_reference_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    folder = tiny_clip(tmp_path / "clip")
    plain = load_metric("fd-shapes-clip", weights=str(folder))
    other = np.random.default_rng(5).normal(size=(30, 12)).astype(np.float32)
    write_reference(named_file("mine", "shapes-clip"), other, "shapes-clip", plain.extractor_digest)
    metric = load_metric("fd-shapes-clip", weights=str(folder), statistics="mine")
    assert metric.distance(other, metric.reference()) == pytest.approx(0, abs=1e-9)
    assert metric.shelf == plain.shelf
    assert metric_digest("fd-shapes-clip", metric) != metric_digest("fd-shapes-clip", plain)
    copied = shutil.copy(named_file("mine", "shapes-clip"), tmp_path / "elsewhere.safetensors")
    same = registry.build("metric", "fd-shapes-clip", {"weights": str(folder), "statistics": str(copied)})
    assert metric_digest("fd-shapes-clip", same) == metric_digest("fd-shapes-clip", metric)
    lost = registry.build("metric", "fd-shapes-clip", {"weights": str(folder), "statistics": "nowhere"})
    assert "harness reference nowhere" in lost.missing()

