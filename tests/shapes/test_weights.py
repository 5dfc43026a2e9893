"""The shipped weights: genuine formats, small enough, one text tower, and good for something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

import harness
from harness.metrics.base import DistributionMetric
from harness.metrics.load import load_metric
from harness.shapes.evaluate import (
    WEIGHTS,
    evaluate,
    evaluate_clip,
    image_features,
    reference_images,
)
from harness.shapes.tokenizer import tokenize

pytestmark = pytest.mark.usefixtures("one_thread")


def test_size_and_kinds_of_files() -> None:
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    sizes = {"shapes-noise-refine": 0, "shapes-edm2": 0, "others": 0}
    for path in files:
        part = path.relative_to(WEIGHTS).parts[0].removesuffix("-guide")
        sizes[part if part in sizes else "others"] += path.stat().st_size
    assert 0 < sizes["shapes-noise-refine"] <= 2_000_000
    assert 0 < sizes["shapes-edm2"] <= 2_000_000
    assert sizes["others"] <= 10_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".md"}
    for path in WEIGHTS.rglob("*model*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118
        assert kinds <= {torch.float16, torch.int64}, path


def test_pipeline_loads_and_draws() -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "shapes-sd", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    config = pipe.scheduler.config
    assert (config.prediction_type, config.beta_schedule) == ("epsilon", "scaled_linear")
    assert (config.timestep_spacing, config.clip_sample) == ("trailing", False)
    result = pipe("a photo of a red circle", num_inference_steps=2, output_type="np")
    assert result.images.shape == (1, 64, 64, 3)  # the folder's own default size


def test_the_refiner_changes_the_noise_a_little() -> None:
    networks = {"refiner": {"lora": "builtin:shapes-noise-refine"}}
    model = harness.load_model("stable_diffusion", "builtin:shapes-sd", networks=networks)
    method = harness.load_method(noise="noise_refine", sampler={"steps": 1})
    result = method(model, ["a red circle", "two stars"])
    assert all(0.03 < record["shift"] < 0.4 for record in result.records)
    assert result.nfe_by_network[0] == {"refiner": 1, "main": 1}


def test_clip_loads_and_shares_its_text_tower() -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPProcessor

    clip = CLIPModel.from_pretrained(WEIGHTS / "shapes-clip").float().eval()
    processor = CLIPProcessor.from_pretrained(WEIGHTS / "shapes-clip")
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "shapes-sd", torch_dtype=torch.float32)
    texts = ["a photo of a red star left of a ring", "two crosses", ""]
    ids = torch.tensor(tokenize(texts))
    assert torch.equal(pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        assert torch.equal(pipe.text_encoder(ids)[0], clip.text_model(input_ids=ids).last_hidden_state)
    images = reference_images(2)
    pixels = processor(text=texts[:2], images=list(images), return_tensors="pt", padding=True).pixel_values
    plain = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(pixels, plain, atol=1e-6)
    with torch.no_grad():
        mine = image_features(clip, plain, unit=False).numpy()
    metric = load_metric("fd-shapes-clip")
    assert isinstance(metric, DistributionMetric)
    assert np.allclose(mine, metric.features(images[:, None]), atol=1e-4)


def test_reference_belongs_to_the_tower() -> None:
    path = WEIGHTS / "shapes-clip" / "reference.safetensors"
    metric = load_metric("fd-shapes-clip")
    assert isinstance(metric, DistributionMetric)
    reference = metric.reference()  # refuses features of other weights
    assert path.stat().st_size <= 600_000
    assert (reference.count, reference.mean.shape) == (2000, (128,))
    first = metric.features(reference_images(40)[:, None])
    assert reference.features is not None
    assert np.allclose(reference.features[:40], first, atol=0.02)  # kept as float16
    assert metric.distance(reference.features, reference) < 1e-6


def test_quality_at_a_glance(capsys: pytest.CaptureFixture[str]) -> None:
    """60 held-out prompts and 240 renders: far above chance (the full figures are in the model card)."""
    figures = evaluate(first=60)
    clip = evaluate_clip(number=240)
    with capsys.disabled():
        print("\nshapes-sd, 60 held-out prompts:", figures, "\nshapes-clip:", clip)
    assert figures["overall"] > 0.5
    assert clip["r1_of_200"] > 0.5
    assert clip["attribute_swap"] > 0.8
    assert clip["position_swap"] > 0.8
