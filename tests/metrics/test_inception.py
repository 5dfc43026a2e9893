"""Inception features and the metrics on them against torch-fidelity, torchmetrics and clean-fid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import registry
from harness.distribution import _difference, _estimate, _Side, _value
from harness.errors import HarnessError
from harness.frechet import Moments
from harness.metrics import inception
from harness.metrics.base import DistributionMetric, Reference
from harness.metrics.load import load_metric, metric_digest
from harness.metrics.reference import write_reference
from tests.metrics import tiny_inception
from tests.metrics.tiny_openclip import picture
from tests.vectors.distribution.make import SETS, SIZES, places

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "distribution" / "outputs.json").read_text())
NAMES = ["fid", "kid", "precision", "recall", "density", "coverage"]
SMALL = {"kid": {"subset_size": 5, "subsets": 4}, "inception-score": {"splits": 3}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_inception.write(tmp_path_factory.mktemp("inception"))


@pytest.fixture(scope="module")
def score(weights):
    return load_metric("inception-score", weights=str(weights), **SMALL["inception-score"])


@pytest.fixture(scope="module")
def features(score) -> tuple[np.ndarray, np.ndarray]:
    """Of the small sets."""
    x, y = (score.features(tiny_inception.pictures(8, seed)) for seed in (0, 1))
    return x, y


@pytest.fixture(scope="module")
def reference(features, score, tmp_path_factory) -> Path:
    """A file with the features of the second small set."""
    path = tmp_path_factory.mktemp("reference") / "small.safetensors"
    write_reference(path, features[1], score.preprocessing, score.extractor_digest)
    return path


def _metric(name: str, weights: Path, reference: Path) -> DistributionMetric:
    given = {"weights": str(weights), "statistics": str(reference), **SMALL.get(name, {})}
    return registry.build("metric", name, given)


# ---- the network and the resizes ----


def test_the_features_are_those_of_torch_fidelity(weights, score):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    for size in ((33, 70), (1, 20)):
        image = picture(*size, 3)
        found, logits = theirs(torch.from_numpy(image).permute(2, 0, 1)[None])
        features = score.features(image[None, None])
        assert features.dtype == np.float32
        assert features == pytest.approx(found.numpy(), rel=1e-5, abs=1e-6)
        assert score.logits(features) == pytest.approx(logits.numpy(), rel=1e-5, abs=1e-4)  # theirs are float32


def test_the_antialiased_features_are_those_of_torchmetrics(weights):
    from torchmetrics.image.fid import NoTrainInceptionV3

    metric = registry.build("metric", "fid-torchmetrics", {"weights": str(weights)})
    metric.open()
    image = picture(400, 310, 2)
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    found = theirs(torch.from_numpy(image).permute(2, 0, 1)[None]).numpy()
    assert metric.features(image[None, None]) == pytest.approx(found, rel=1e-5, abs=1e-6)


def test_the_clean_resize_is_that_of_clean_fid():
    for k, (size, theirs) in enumerate(zip(SIZES, VECTORS["clean"], strict=True)):
        x = torch.from_numpy(picture(*size, k)).permute(2, 0, 1)[None]
        ours = inception.clean_resize(x)[0].permute(1, 2, 0).numpy()
        assert places(ours) == pytest.approx(theirs, abs=1e-3)


def test_batches_do_not_matter(score, monkeypatch):
    images = tiny_inception.pictures(3, 4)
    monkeypatch.setattr(inception, "CHUNK", 2)
    together = score.features(images)
    assert together[2:] == pytest.approx(score.features(images[2:]), rel=1e-4, abs=1e-6)
    assert score.features(images[:0]).shape == (0, 2048)
    with pytest.raises(ValueError, match="stills"):
        score.features(np.repeat(images, 2, axis=1))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    state = {key: torch.zeros(()).expand(value.shape) for key, value in tiny_inception.tensors().items()}
    lacking = {key: value for key, value in state.items() if key != "fc.weight"}
    for wrong, message in [
        ({**state, "AuxLogits.fc.weight": torch.zeros(2)}, "AuxLogits.fc.weight"),
        (lacking, "lacks 1 tensor: fc.weight"),
        ({**state, "Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, "another network"),
        ([1, 2], "no checkpoint"),
    ]:
        torch.save(wrong, path)
        with pytest.raises(HarnessError, match=message):
            registry.build("metric", "inception-score", {"weights": str(path)}).open()
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(HarnessError, match="no checkpoint of the Inception network"):
        registry.build("metric", "inception-score", {"weights": str(path)}).open()


# ---- values ----


def _all(features, weights, reference, settings) -> dict[str, float]:
    """Each metric's value, under torch-fidelity's name of it."""
    given = {"kid": {"subset_size": settings["kid_subset_size"], "subsets": settings["kid_subsets"]},
             "inception-score": {"splits": settings["isc_splits"]}}
    theirs = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean",
              "inception-score": "inception_score_mean", "precision": "precision", "recall": "recall"}
    found = {}
    for name, key in theirs.items():
        parameters = {"weights": str(weights), "statistics": str(reference), **given.get(name, {})}
        metric = registry.build("metric", name, parameters)
        found[key] = metric.distance(features, metric.reference())
    return found


def _expected(name: str) -> dict[str, object]:
    # Of 8 features in 2048 dimensions their FID takes the roots of 2040 eigenvalues that are 0 but for rounding: 2e-5
    # too small here. Their KID is in float32, as are its sums. Features and all else are the same.
    bounds = {"frechet_inception_distance": 1e-4, "kernel_inception_distance_mean": 1e-5}
    return {
        key: pytest.approx(value, rel=bounds.get(key, 1e-6))
        for key, value in VECTORS["inception"][name].items() if key in {*bounds, "inception_score_mean", "precision",
                                                                        "recall"}
    }


def test_the_whole_path_equals_torch_fidelity(features, weights, reference):
    assert _all(features[0], weights, reference, SETS["small"][1]) == _expected("small")


@pytest.mark.long
def test_the_whole_path_equals_torch_fidelity_on_more_images(score, weights, tmp_path):
    count, settings = SETS["large"]
    x, y = (score.features(tiny_inception.pictures(count, seed)) for seed in (0, 1))
    write_reference(tmp_path / "large.safetensors", y, score.preprocessing, score.extractor_digest)
    assert _all(x, weights, tmp_path / "large.safetensors", settings) == _expected("large")


@pytest.mark.long
@pytest.mark.parametrize("name", list(SETS))
def test_fid_torchmetrics_equals_torchmetrics(weights, name, tmp_path):
    metric = registry.build("metric", "fid-torchmetrics", {"weights": str(weights)})
    metric.open()
    x, y = (metric.features(tiny_inception.pictures(SETS[name][0], seed)) for seed in (0, 1))
    moments = Moments.of(y)
    known = Reference(moments.mean, moments.covariance, moments.count, None, metric.preprocessing, "")
    theirs = VECTORS["inception"][name]["torchmetrics"]  # a float32
    assert metric.distance(x, known) == pytest.approx(theirs, rel=1e-4)


def test_intervals_and_directions(features, weights, reference):
    x = np.random.default_rng(0).normal(size=(40, 2048)).astype(np.float32) * 0.1 + features[0].mean(axis=0)
    clusters = [f"p{i // 8}" for i in range(40)]
    group = np.arange(40) // 8
    for name in [*NAMES, "inception-score"]:
        metric = _metric(name, weights, reference)
        assert metric.higher_is_better == (name not in ("fid", "kid"))
        known = metric.reference()
        if name == "fid":  # a covariance of full rank, as those of many images: its root is quickly found
            known = Reference(known.mean, np.eye(2048) / 100, 9999, None, metric.preprocessing, "full rank")
        value = metric.distance(x, known)
        assert isinstance(value, float)
        without = metric.without(x, group, known)
        assert without[2] == pytest.approx(metric.distance(x[group != 2], known), rel=0.5)
        low, high = metric.interval(x, clusters, known)
        assert metric.lowest <= low <= value <= high <= metric.highest


def test_a_metric_without_a_reference_is_tabulated(score, features):
    assert score.reference() is None
    assert "reference" not in score.content()
    both, clusters = np.concatenate(features), [f"p{i % 8}" for i in range(16)]
    estimate = _estimate(score, _Side(both, clusters), None)
    record = _value(score, estimate)
    assert record["error"] is None
    assert 1 <= record["low"] <= record["value"] <= record["high"]
    assert _difference(estimate, estimate) == {"value": 0, "low": 0, "high": 0}


def test_the_four_come_from_one_pass(features, weights, reference, monkeypatch):
    from harness.metrics import prdc as module

    calls = []
    monkeypatch.setattr(module, "_KNOWN", {})
    monkeypatch.setattr(module, "prdc", lambda x, y, k: calls.append(k) or module.PRDC(0.1, 0.2, 0.3, 0.4))
    found = []
    for name in ("precision", "recall", "density", "coverage"):
        metric = _metric(name, weights, reference)
        found.append(metric.distance(features[0], metric.reference()))
    assert (found, calls) == ([0.1, 0.2, 0.3, 0.4], [3])


# ---- what is stored, and what is refused ----


def test_metrics_on_the_same_features_share_a_shelf(weights, reference, tmp_path):
    shelves = {_metric(name, weights, reference).shelf for name in [*NAMES, "inception-score"]}
    assert len(shelves) == 1
    others = {registry.build("metric", n, {"weights": str(weights)}).shelf for n in ("fid-torchmetrics", "fid-clean")}
    assert len(shelves | others) == 3


def test_the_digest_follows_the_content(features, score, weights, reference, tmp_path):
    def digest(path: Path) -> str:
        return metric_digest("fid", _metric("fid", weights, path))

    other = tmp_path / "elsewhere.safetensors"
    other.write_bytes(reference.read_bytes())
    assert digest(other) == digest(reference)
    write_reference(other, features[0], score.preprocessing, score.extractor_digest)
    assert digest(other) != digest(reference)
    assert not _metric("fid", weights, reference).trained


def test_what_is_missing_is_said(weights, reference, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    nothing = registry.build("metric", "fid", {"weights": str(weights)}).missing()
    assert "harness reference NAME --images FOLDER --metric fid" in nothing
    assert "fid: {statistics: NAME}" in nothing
    assert "--features" not in nothing
    both = registry.build("metric", "kid", {}).missing()
    assert "inception-2015-12-05" in both
    assert "--metric kid --features" in both
    assert registry.build("metric", "inception-score", {"weights": str(weights)}).missing() is None
    assert "nowhere" in registry.build("metric", "fid", {"weights": "nowhere", "statistics": str(reference)}).missing()
    assert "harness reference coco" in registry.build(
        "metric", "kid", {"weights": str(weights), "statistics": "coco"}
    ).missing()


def test_other_preprocessing_and_other_weights_are_refused(weights, reference, features, score, tmp_path):
    wrong = _metric("fid-clean", weights, reference).missing()
    assert "'tf1-bilinear-299'" in wrong
    assert "'clean-299'" in wrong
    path = tmp_path / "other.safetensors"
    write_reference(path, features[1], score.preprocessing, "f" * 64)
    wrong = _metric("fid", weights, path).missing()
    assert "f" * 12 in wrong
    assert score.extractor_digest[:12] in wrong


@pytest.mark.parametrize("name", ["kid", "precision", "recall", "density", "coverage"])
def test_moments_are_not_enough_for_some(name, features, weights, score, tmp_path):
    path = tmp_path / "moments.safetensors"
    write_reference(path, None, score.preprocessing, score.extractor_digest, moments=Moments.of(features[1]))
    metric = _metric(name, weights, path)
    assert metric.missing() is None
    with pytest.raises(ValueError, match=f"holds moments only; {name} needs its features"):
        metric.distance(features[0], metric.reference())


def test_too_few_images_give_no_number(features, weights, reference):
    for name, rows in (("fid", 1), ("kid", 4), ("precision", 3), ("inception-score", 2)):
        metric = _metric(name, weights, reference)
        with pytest.raises(ValueError, match=r"row|feature"):
            metric.distance(features[0][:rows], metric.reference())


@pytest.mark.parametrize(("name", "wrong"), [
    ("kid", {"subset_size": 1}), ("kid", {"subsets": 0}), ("inception-score", {"splits": 0}),
    ("precision", {"neighbours": 0}),
])
def test_parameters_that_make_no_sense_are_refused(name, wrong):
    with pytest.raises(HarnessError, match="at least"):
        registry.build("metric", name, wrong)
