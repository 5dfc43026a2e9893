"""DINOv2 and CLIP embeddings against the hub's model, dgm-eval, EDM2 and a port of CMMD."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from harness import registry
from harness.errors import HarnessError
from harness.frechet import gaussian_mmd
from harness.metrics.base import Reference
from harness.metrics.cmmd import CMMD
from harness.metrics.dinov2 import hub_positions
from harness.metrics.load import load_metric
from harness.metrics.reference import PREPROCESSINGS, write_reference
from tests.metrics import tiny_dinov2, tiny_openclip
from tests.metrics.tiny_openclip import picture
from tests.vectors.distribution.make import CLIP, SIZES

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "distribution" / "outputs.json").read_text())


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    return tiny_dinov2.write(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny_openclip.write_openai(tmp_path_factory.mktemp("clip"), seed=0, settings=CLIP)


def _opened(name: str, weights: Path):
    metric = registry.build("metric", name, {"weights": str(weights)})
    metric.open()
    return metric


# ---- DINOv2 ----


@pytest.mark.parametrize(("name", "theirs"), [("fd-dinov2", "dgm-eval"), ("fd-dinov2-edm2", "edm2")])
def test_the_features_are_those_of_the_hubs_model(dinov2, name, theirs):
    metric = _opened(name, dinov2)
    for k, size in enumerate(SIZES):
        features = metric.features(picture(*size, k)[None, None])
        assert features.dtype == np.float32
        assert features[0] == pytest.approx(VECTORS["dinov2"][theirs][k], abs=1e-5)


def test_the_two_preprocessings_differ_and_are_kept_apart(dinov2):
    one, other = _opened("fd-dinov2", dinov2), _opened("fd-dinov2-edm2", dinov2)
    image = picture(512, 512, 0)[None, None]
    assert np.abs(one.features(image) - other.features(image)).max() > 1e-4
    assert one.shelf != other.shelf
    assert {one.preprocessing, other.preprocessing} <= set(PREPROCESSINGS)


def test_the_positions_are_not_those_of_transformers(dinov2):
    model = Dinov2Model.from_pretrained(dinov2)
    own = model.embeddings.interpolate_pos_encoding(torch.zeros(1, 257, 32), 224, 224).detach()
    hub = hub_positions(model.embeddings.position_embeddings.detach(), 16)
    assert hub.shape == own.shape == (1, 257, 32)
    assert torch.equal(hub[:, 0], own[:, 0])
    assert (hub - own).norm() / own.norm() > 0.02
    assert torch.equal(hub_positions(hub, 16), hub)


def test_the_published_sizes_are_what_would_be_opened():
    with torch.device("meta"):
        large = Dinov2Model(Dinov2Config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14
        ))
    assert large.embeddings.position_embeddings.shape == (1, 1 + 37**2, 1024)
    assert large.config.hidden_size == 1024


def test_fd_dinov2_in_a_table(dinov2, tmp_path):
    metric = _opened("fd-dinov2", dinov2)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, 32)).astype(np.float32) for _ in range(2))
    path = tmp_path / "reference.safetensors"
    write_reference(path, y, metric.preprocessing, metric.extractor_digest)
    metric = load_metric("fd-dinov2", weights=str(dinov2), statistics=str(path))
    known = metric.reference()
    assert metric.distance(y, known) == pytest.approx(0, abs=1e-9)
    assert metric.distance(y + 0.5, known) == pytest.approx(32 * 0.25, rel=1e-5)
    low, high = metric.interval(x, [str(i) for i in range(60)], known)
    assert low < metric.distance(x, known) < high
    assert not metric.trained
    wrong = registry.build("metric", "fd-dinov2-edm2", {"weights": str(dinov2), "statistics": str(path)}).missing()
    assert "'dinov2-pil-224'" in wrong
    assert "'dinov2-torch-224'" in wrong


def test_a_folder_that_is_no_dinov2_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HarnessError, match="no DINOv2"):
        _opened("fd-dinov2", tmp_path)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    folder = tiny_dinov2.write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(HarnessError, match=r"lacks \d+ tensors: encoder.layer.2"):
        _opened("fd-dinov2", folder)


# ---- CMMD ----


def test_the_embeddings_are_those_of_the_port(clip):
    metric = _opened("cmmd", clip)
    for k, size in enumerate(SIZES):
        embedded = metric.features(picture(*size, k)[None, None])
        assert embedded.dtype == np.float32
        assert np.linalg.norm(embedded) == pytest.approx(1, abs=1e-6)
        assert embedded[0] == pytest.approx(VECTORS["cmmd"]["embeddings"][k], abs=1e-5)
    assert metric.features(np.zeros((0, 1, 9, 9, 3), np.uint8)).shape == (0, 24)


def test_cmmd_is_that_of_the_port(clip, tmp_path):
    metric = _opened("cmmd", clip)
    x = np.concatenate([metric.features(picture(*size, k)[None, None]) for k, size in enumerate(SIZES)])
    y = metric.features(np.stack([picture(100, 90, k + 20) for k in range(5)])[:, None])
    path = tmp_path / "reference.safetensors"
    write_reference(path, y, metric.preprocessing, metric.extractor_digest)
    metric = load_metric("cmmd", weights=str(clip), statistics=str(path))
    known = metric.reference()
    # The port's kernel is float32: 1e-7 of a sum near 2, times 1000.
    assert metric.distance(x, known) == pytest.approx(VECTORS["cmmd"]["cmmd"], abs=1e-3)
    assert metric.distance(y, known) == pytest.approx(0, abs=1e-9)
    group = np.arange(6) % 3
    plain = [gaussian_mmd(x[group != k], y) for k in range(3)]
    assert metric.without(x, group, known) == pytest.approx(plain, abs=1e-3)  # embeddings are of length 1 to 1e-7
    assert not metric.trained


def test_the_known_answer_of_the_kernel():
    rng = np.random.RandomState(0)
    x = rng.standard_normal((64, 768))
    y = rng.standard_normal((48, 768)) + 0.05
    known = Reference(np.zeros(768), np.eye(768), 48, y, "clip-336", "known-answer")
    assert CMMD().distance(x, known) == pytest.approx(0.40946185131951474, rel=1e-9)
    moments = Reference(np.zeros(768), np.eye(768), 48, None, "clip-336", "moments")
    with pytest.raises(ValueError, match="moments only; cmmd needs its features"):
        CMMD().distance(x, moments)
