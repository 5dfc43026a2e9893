"""The shapes world's metrics: detector's verdicts, CLIPScore, Fréchet distance and CMMD on CLIP features."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from harness import registry
from harness.errors import HarnessError
from harness.frechet import gaussian_mmd
from harness.metrics.base import DistributionMetric, SampleMetric
from harness.metrics.distribution_shapes import make_reference
from harness.metrics.load import load_metric, metric_digest, metric_identity
from harness.prompts import Prompt
from harness.shapes.detector import Detection, judge
from harness.shapes.scene import Box, Scene, Thing, render
from tests.metrics.tiny_clip import tiny_clip

TEXTS = ["a red circle", "two blue stars above a ring and much more text than the context holds", "", "ünïcode"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 1, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def metric(folder) -> SampleMetric:
    return load_metric("clipscore-shapes", weights=str(folder))


# ---- CLIPScore ----


def _by_hand(folder, images):
    """The cosines as transformers gives them, without any code of ours."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    inputs = processor(
        text=TEXTS, images=[Image.fromarray(image[0]) for image in images], return_tensors="pt", padding=True,
        truncation=True, max_length=16,
    )
    with torch.no_grad():
        return torch.diagonal(model(**inputs).logits_per_image / model.logit_scale.exp()).numpy()


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (50, 70)])
def test_clipscore_is_the_cosine_of_transformers(folder, metric, shape):
    images = np.random.default_rng(1).integers(0, 256, (4, 1, *shape, 3), dtype=np.uint8)
    scores = metric.score(images, PROMPTS)
    assert scores.values.dtype == np.float64
    assert scores.values == pytest.approx(_by_hand(folder, images), abs=2e-6)
    assert len(scores.details) == 4


def test_clipscore_does_not_depend_on_batch_or_history(folder, metric, images):
    together = metric.score(images, PROMPTS).values
    metric.clip.texts.clear()
    metric.score(images[::-1], PROMPTS[::-1])
    assert metric.score(images, PROMPTS).values.tolist() == together.tolist()
    alone = [metric.score(images[i : i + 1], PROMPTS[i : i + 1]).values[0] for i in (3, 1, 2, 0)]
    assert together[[3, 1, 2, 0]] == pytest.approx(alone, abs=1e-6)
    many = metric.score(np.repeat(images, 20, axis=0), [p for p in PROMPTS for _ in range(20)])
    assert many.values[::20] == pytest.approx(together, abs=1e-6)
    assert len(metric.score(images[:0], []).values) == 0


def test_texts_are_encoded_once(metric, images):
    kept = metric.clip.texts
    kept.clear()
    metric.score(images, [PROMPTS[0]] * 4)
    assert list(kept) == [PROMPTS[0].text]


def test_differentiable_agrees_and_has_a_gradient(metric, images):
    x = (torch.from_numpy(images).float() / 255).requires_grad_()
    values = metric.differentiable(x, PROMPTS)
    assert values.detach().numpy() == pytest.approx(metric.score(images, PROMPTS).values, abs=1e-5)
    values.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0


def test_differentiable_resizes_as_the_processor_does(metric):
    ramp = np.linspace(0, 255, 60 * 48 * 3).reshape(1, 1, 60, 48, 3).round().astype(np.uint8)
    x = torch.from_numpy(ramp).float() / 255
    exact = metric.clip.pixels(ramp[:, 0])
    assert metric.clip.differentiable_pixels(x[:, 0]).numpy() == pytest.approx(exact.numpy(), abs=0.02)


def test_clipscore_refuses_what_it_cannot_score(metric, images):
    with pytest.raises(ValueError, match="4 images for 1 prompts"):
        metric.score(images, PROMPTS[:1])
    with pytest.raises(ValueError, match="stills"):
        metric.score(np.repeat(images, 2, axis=1), PROMPTS)


# ---- distributions ----


@pytest.mark.parametrize("name", ["fd-shapes-clip", "cmmd-shapes-clip"])
def test_distribution_metrics(name, folder, images):
    metric = load_metric(name, weights=str(folder))
    assert isinstance(metric, DistributionMetric)
    assert metric.extractor == "shapes-clip"
    features = metric.features(images)
    assert features.shape == (4, 12)
    assert features.dtype == np.float32
    reference = metric.reference()
    assert reference.count == 90
    assert metric.distance(reference.features, reference) == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(2)
    cloud = (rng.normal(size=(60, 12)) + 0.5).astype(np.float32)
    clusters = [f"p{i // 2}" for i in range(60)]
    low, high = metric.interval(cloud, clusters, reference)
    assert 0 <= low < metric.distance(cloud, reference) < high
    group = np.arange(60) // 2 % 5
    plain = DistributionMetric.without(metric, cloud, group, reference)
    assert metric.without(cloud, group, reference) == pytest.approx(plain)
    order = rng.permutation(60)
    assert metric.distance(cloud[order], reference) == pytest.approx(metric.distance(cloud, reference))
    assert np.isnan(metric.interval(cloud, ["one"] * 60, reference)).all()
    whole, less = (metric.jackknife(x, clusters, reference) for x in (cloud, cloud * 0.9))
    below, above = (whole - less).interval()
    assert below < (whole - less).value < above
    assert (whole - less).value == pytest.approx(
        metric.distance(cloud, reference) - metric.distance(cloud * 0.9, reference))
    assert ((whole - whole).value, *(whole - whole).interval()) == (0, 0, 0)


def test_features_are_not_normalised_and_cmmd_normalises(folder, images):
    metric = load_metric("cmmd-shapes-clip", weights=str(folder))
    features = metric.features(images).astype(np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    assert not np.allclose(norms, 1)
    y = metric.reference().features.astype(np.float64)
    by_hand = gaussian_mmd(features / norms, y / np.linalg.norm(y, axis=1, keepdims=True))
    assert metric.distance(features, metric.reference()) == pytest.approx(by_hand)


def test_too_few_rows_are_refused(folder):
    metric = load_metric("fd-shapes-clip", weights=str(folder))
    with pytest.raises(ValueError, match="at least 2"):
        metric.distance(np.zeros((1, 12), np.float32), metric.reference())


# ---- identity and what is missing ----


def test_the_digest_knows_the_weights_not_the_place(folder, tmp_path):
    one = registry.build("metric", "clipscore-shapes", {"weights": str(folder)})
    shutil.copytree(folder, tmp_path / "copy")
    two = registry.build("metric", "clipscore-shapes", {"weights": str(tmp_path / "copy")})
    assert metric_digest("clipscore-shapes", one) == metric_digest("clipscore-shapes", two)
    assert str(folder) not in str(metric_identity("clipscore-shapes", one))
    other = tiny_clip(tmp_path / "other", seed=1)
    three = registry.build("metric", "clipscore-shapes", {"weights": str(other)})
    assert metric_digest("clipscore-shapes", one) != metric_digest("clipscore-shapes", three)
    assert metric_digest("geneval-shapes", registry.build("metric", "geneval-shapes", {}))


def test_random_weights_say_so(folder, tmp_path):
    assert registry.build("metric", "clipscore-shapes", {"weights": str(folder)}).trained is False
    assert registry.build("metric", "geneval-shapes", {}).trained is True


def test_missing_weights_are_a_sentence(tmp_path, folder):
    metric = registry.build("metric", "fd-shapes-clip", {"weights": str(tmp_path / "nowhere")})
    assert "no such folder" in metric.missing()
    with pytest.raises(HarnessError, match="clipscore-shapes"):
        load_metric("clipscore-shapes", weights=str(tmp_path))
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "reference.safetensors").write_bytes(b"no such thing")
    bad = registry.build("metric", "fd-shapes-clip", {"weights": str(tmp_path / "bare")})
    assert "no reference of features" in bad.missing()
    (tmp_path / "bare" / "reference.safetensors").unlink()
    assert "reference.safetensors is missing" in bad.missing()
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(HarnessError, match="can be opened"):
        load_metric("clipscore-shapes", weights=str(tmp_path / "bare"))


def test_a_reference_of_other_weights_is_refused(tmp_path, images):
    first, second = tiny_clip(tmp_path / "a"), tiny_clip(tmp_path / "b", seed=1)
    path = make_reference(str(first), images[:, 0])
    reference = load_metric("fd-shapes-clip", weights=str(first)).reference()
    assert reference.count == 4
    assert "4 ground-truth renders" in reference.preprocessing
    assert reference.features.dtype == np.float32
    shutil.copy(path, second / path.name)
    metric = registry.build("metric", "fd-shapes-clip", {"weights": str(second)})
    assert "features of other weights" in metric.missing()
    with pytest.raises(HarnessError, match="make it anew"):
        metric.reference()


@pytest.mark.parametrize("name", ["geneval-shapes", "clipscore-shapes", "fd-shapes-clip", "cmmd-shapes-clip"])
def test_names_and_frozen_parameters(name):
    metric = registry.build("metric", name, {})
    assert metric.name == name
    assert metric.__dataclass_params__.frozen
    assert {field.name for field in dataclasses.fields(metric)} <= {"weights", "statistics"}


# ---- GenEval's rules ----


def _see(shape, colour, x=32.0, y=32.0, r=8.0):
    return Detection(shape, colour, Box(x - r, y - r, x + r, y + r), 4 * r * r)


def _want(*include, exclude=(), tag="test"):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


CIRCLE, STAR = {"class": "circle", "count": 1}, {"class": "star", "count": 1}
THREE = _want({"class": "star", "count": 3}, exclude=[{"class": "star", "count": 4}])
LEFT = _want(STAR, {**CIRCLE, "position": ["left of", 0]})


@pytest.mark.parametrize(("truth", "seen", "correct"), [
    (_want(CIRCLE), [_see("circle", "red")], True),
    (_want(CIRCLE), [], False),
    (_want(CIRCLE), [_see("circle", None)], True),
    (_want(CIRCLE), [_see(None, "red")], False),
    (_want(CIRCLE, STAR), [_see("star", "red")], False),
    (THREE, [_see("star", "red")] * 2, False),
    (THREE, [_see("star", "red")] * 3, True),
    (THREE, [_see("star", "red")] * 4, False),
    (_want({**CIRCLE, "color": "red"}), [_see("circle", "blue")], False),
    # only the count most confident are looked at: a second circle of the right colour does not save the first
    (_want({**CIRCLE, "color": "red"}), [_see("circle", "blue"), _see("circle", "red")], False),
    (_want({**CIRCLE, "color": "red"}), [_see("circle", "red"), _see("circle", "blue")], True),
    (_want({**CIRCLE, "color": "red"}, STAR), [_see("circle", "blue"), _see("star", "red")], False),
    (LEFT, [_see("circle", "red", x=12), _see("star", "red", x=50)], True),
    (LEFT, [_see("circle", "red", x=50), _see("star", "red", x=12)], False),
    (LEFT, [_see("circle", "red", x=32), _see("star", "red", x=32)], False),  # no offset: no relation
    (LEFT, [_see("circle", "red", x=28.8), _see("star", "red", x=32)], False),  # inside the dead zone: 0.1 (16 + 16)
    (LEFT, [_see("circle", "red", x=25.7), _see("star", "red", x=32)], False),  # shrunk 3.1 of 6.3: under half
    (LEFT, [_see("circle", "red", x=25.5), _see("star", "red", x=32)], True),  # shrunk 3.3 of 6.5: over half
    (LEFT, [_see("circle", "red", x=10, y=10), _see("star", "red", x=50, y=50)], True),  # left and above at once
    (LEFT, [_see("circle", "red", x=12)], False),  # no target
])
def test_rules(truth, seen, correct):
    assert judge(truth, seen)[0] is correct


def test_geneval_scores_renders_and_says_why():
    scene = Scene("white", (Thing("circle", "red", 18, 32, 10), Thing("star", "blue", 46, 32, 10)))
    image = render(scene)[None]
    truths = [
        _want({**STAR, "color": "blue"}, {**CIRCLE, "color": "red", "position": ["left of", 0]}, tag="position"),
        _want({"class": "ring", "count": 1}, tag="single_object"),
        None,
        {"frames": ["a.png"]},  # an orbit's
        {"exclude": [{"class": "ring", "count": 1}], "tag": "none"},
    ]
    prompts = [Prompt(str(i), "text", truth=truth) for i, truth in enumerate(truths)]
    metric = load_metric("geneval-shapes")
    assert metric.aggregation == "mean_of_groups"
    scores = metric.score(np.stack([image] * 5), prompts)
    np.testing.assert_array_equal(scores.values, [1, 0, np.nan, np.nan, 1])
    assert all("no truth" in scores.details[i]["reason"] for i in (2, 3))
    assert [detail.get("tag") for detail in scores.details] == ["position", "single_object", None, None, "none"]
