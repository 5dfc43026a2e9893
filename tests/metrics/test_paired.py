"""SSIM, LPIPS and CLIP-S against other packages' values, on arrays as a notebook has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from harness import registry
from harness.errors import HarnessError
from harness.metrics.base import PairedMetric
from harness.metrics.load import load_metric, metric_digest
from tests.metrics import tiny_alexnet
from tests.metrics.tiny_clip import tiny_clip

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "paired" / "outputs.json").read_text())["values"]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_alexnet.write(tmp_path_factory.mktemp("alexnet"))


@pytest.fixture(scope="module")
def metrics(alexnet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    clip = tiny_clip(tmp_path_factory.mktemp("clip"))
    return {
        "ssim": load_metric("ssim"),
        "lpips": load_metric("lpips", weights=str(alexnet)),
        "clip-s": load_metric("clip-s", weights=str(clip)),
    }


def pairs(*cases: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one size as uint8 `[B, 1, H, W, 3]`."""
    sides = zip(*(tiny_alexnet.pair(*case) for case in cases), strict=True)
    first, second = (np.stack(side)[:, None] for side in sides)
    return first, second


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: "-".join(map(str, v["case"])))
def test_values_are_those_of_the_other_packages(vector: dict[str, Any], metrics: dict[str, Any]) -> None:
    images, references = pairs(tuple(vector["case"]))
    for value in vector["ssim"].values():  # float64 on both sides; the order of sums differs
        assert metrics["ssim"].score_pairs(images, references).values == pytest.approx([value], abs=1e-12)
    for value in vector.get("lpips", {}).values():  # float32 on both sides
        assert metrics["lpips"].score_pairs(images, references).values == pytest.approx([value], rel=1e-5)


def test_clip_s_is_the_cosine_of_transformers(metrics: dict[str, Any]) -> None:
    images, references = pairs(("grey", 64, 64), ("noise", 64, 64))
    folder = metrics["clip-s"].weights
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    embedded = []
    for side in (images, references):
        pixels = processor.image_processor(list(side[:, 0]), return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            found = model.get_image_features(**pixels)
        embedded.append(found if isinstance(found, torch.Tensor) else found.pooler_output)
    expected = torch.nn.functional.cosine_similarity(*embedded).numpy()
    assert metrics["clip-s"].score_pairs(images, references).values == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name", ["ssim", "lpips", "clip-s"])
def test_identical_symmetric_and_independent_of_the_batch(name: str, metrics: dict[str, Any]) -> None:
    metric = metrics[name]
    assert isinstance(metric, PairedMetric)
    images, references = pairs(("shift", 64, 64), ("noise", 64, 64), ("ramp", 64, 64))
    best = 1.0 if metric.higher_is_better else 0.0
    same = metric.score_pairs(images, images)
    assert same.values == pytest.approx([best] * 3, abs=1e-6)
    assert same.values.dtype == np.float64
    there, back = (metric.score_pairs(*sides).values for sides in ((images, references), (references, images)))
    assert there == pytest.approx(back, abs=1e-7)
    assert all(there < best) or all(there > best)
    many = metric.score_pairs(np.tile(images, (15, 1, 1, 1, 1)), np.tile(references, (15, 1, 1, 1, 1)))
    assert many.values == pytest.approx(np.tile(there, 15), abs=1e-6)
    assert metric.score_pairs(images[:0], references[:0]).values.shape == (0,)


@pytest.mark.parametrize("name", ["ssim", "lpips", "clip-s"])
def test_a_clip_is_the_mean_of_its_frames(name: str, metrics: dict[str, Any]) -> None:
    images, references = pairs(("grey", 64, 64), ("noise", 64, 64), ("shift", 64, 64))
    stills = metrics[name].score_pairs(images, references)
    clip = metrics[name].score_pairs(images.swapaxes(0, 1), references.swapaxes(0, 1))
    assert clip.values == pytest.approx([stills.values.mean()], abs=1e-6)
    assert clip.details[0]["frames"] == pytest.approx(stills.values, abs=1e-6)
    assert stills.details == [{}] * 3
    twice = [np.concatenate([side.swapaxes(0, 1), side[::-1].swapaxes(0, 1) // 2]) for side in (images, references)]
    halves = metrics[name].score_pairs(images[::-1] // 2, references[::-1] // 2)
    both = metrics[name].score_pairs(*twice)
    assert both.values == pytest.approx([stills.values.mean(), halves.values.mean()], abs=1e-6)
    assert both.details[1]["frames"] == pytest.approx(halves.values, abs=1e-6)


def test_what_cannot_be_compared_is_refused(metrics: dict[str, Any]) -> None:
    images, references = pairs(("noise", 64, 64))
    with pytest.raises(ValueError, match=r"64 x 64 pixels cannot be compared with an image of 32 x 64 pixels"):
        metrics["ssim"].score_pairs(images, references[:, :, :, :32])
    with pytest.raises(ValueError, match=r"64 x 64 pixels cannot be compared with .* and 2 frames"):
        metrics["ssim"].score_pairs(images, np.repeat(references, 2, axis=1))
    with pytest.raises(ValueError, match="must be"):
        metrics["ssim"].score_pairs(images[0], references[0])
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got 64 x 10"):
        metrics["ssim"].score_pairs(images[:, :, :10], references[:, :, :10])
    with pytest.raises(ValueError, match=r"at least 31 x 31 pixels, got 30 x 64"):
        metrics["lpips"].score_pairs(images[:, :, :, :30], references[:, :, :, :30])
    smallest = metrics["lpips"].score_pairs(images[:, :, :31, :31], references[:, :, :31, :31])
    assert np.isfinite(smallest.values).all()


def test_a_shift_of_brightness(metrics: dict[str, Any]) -> None:
    """Flat images: only the luminance term is left, (2 a b + C1) / (a² + b² + C1)."""
    flat = np.full((1, 1, 32, 32, 3), 100, np.uint8)
    expected = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert metrics["ssim"].score_pairs(flat, flat + np.uint8(50)).values == pytest.approx([expected], abs=1e-9)


def test_a_black_image_has_features_without_length(alexnet: Path, tmp_path: Path, metrics: dict[str, Any]) -> None:
    state = torch.load(alexnet, weights_only=True)
    torch.save({name: tensor * 0 for name, tensor in state.items()}, tmp_path / "zero.pth")
    dead = load_metric("lpips", weights=str(tmp_path / "zero.pth"))
    assert isinstance(dead, PairedMetric)
    assert dead.score_pairs(*pairs(("noise", 64, 64))).values == [0.0]


# ---- what the checkpoint may be ----


def test_a_random_trunk_says_so_and_is_known_by_its_content(alexnet: Path, tmp_path: Path) -> None:
    metric = registry.build("metric", "lpips", {"weights": str(alexnet)})
    assert metric.missing() is None
    assert not metric.trained
    assert not registry.build("metric", "lpips", {"weights": str(alexnet.parent)}).trained
    digest = metric_digest("lpips", metric)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(alexnet.read_bytes())
    assert metric_digest("lpips", registry.build("metric", "lpips", {"weights": str(copy), "batch": 2})) == digest
    copy.write_bytes(alexnet.read_bytes() + b" ")
    assert metric_digest("lpips", registry.build("metric", "lpips", {"weights": str(copy)})) != digest


def test_weights_that_are_not_here_are_a_sentence(tmp_path: Path) -> None:
    for name in ("lpips", "clip-s"):
        metric = registry.build("metric", name, {"weights": str(tmp_path / "nowhere")})
        assert "nowhere" in metric.missing()
    assert registry.build("metric", "ssim", {}).missing() is None


@pytest.mark.parametrize(("damage", "said"), [
    ("cut", "no PyTorch checkpoint"), ("text", "no PyTorch checkpoint"), ("code", "no PyTorch checkpoint"),
    ("list", "no named tensors"), ("missing", r"features\.8\.bias"), ("surplus", r"features\.12\.weight"),
    ("shape", r"features\.3\.weight"),
])
def test_a_file_that_is_no_alexnet_is_refused(damage: str, said: str, alexnet: Path, tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pth"
    state = torch.load(alexnet, weights_only=True)
    match damage:
        case "cut":
            path.write_bytes(alexnet.read_bytes()[:100_000])
        case "text":
            path.write_text("not found")
        case "code":
            torch.save({"x": Path("would be code")}, path)
        case "list":
            torch.save([torch.zeros(1)], path)
        case "missing":
            torch.save({name: tensor for name, tensor in state.items() if name != "features.8.bias"}, path)
        case "surplus":
            torch.save(state | {"features.12.weight": torch.zeros(1)}, path)
        case "shape":
            torch.save(state | {"features.3.weight": torch.zeros(192, 64, 3, 3)}, path)
    with pytest.raises(HarnessError, match=said):
        load_metric("lpips", weights=str(path))


def test_the_shapes_are_those_of_torchvision() -> None:
    from torchvision.models import alexnet as official

    with torch.device("meta"):
        features = official(weights=None).features
    expected = {f"features.{name}": tuple(tensor.shape) for name, tensor in features.state_dict().items()}
    ours: dict[str, tuple[int, ...]] = {}
    for place, (out, into, size) in tiny_alexnet.CONVOLUTIONS.items():
        ours |= {f"features.{place}.weight": (out, into, size, size), f"features.{place}.bias": (out,)}
    assert ours == expected


def test_a_metric_that_is_not_open_says_so() -> None:
    for name in ("lpips", "clip-s"):
        with pytest.raises(HarnessError, match="not open"):
            registry.build("metric", name, {}).score_pairs(*pairs(("noise", 64, 64)))
