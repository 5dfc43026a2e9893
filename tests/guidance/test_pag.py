"""Perturbed attention: against the PAG pipelines of diffusers, and what it must leave alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionXLPAGPipeline
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.diffusion.base import Conditioning, Counter, Sampler, Step
from harness.diffusion.sampling import sample
from harness.diffusion.schedules import SOLVERS
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.diffusion.stable_diffusion_xl import StableDiffusionXL
from harness.errors import HarnessError
from harness.guidance.base import COND, UNCOND, Guidance, Request
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.guidance.pag import PAG
from harness.prompts import Prompt
from tests.tiny import tiny_stable_diffusion, tiny_stable_diffusion_xl

TEXTS = ["a red square", "two blue rings"]
STEP = Step(3, 10, sigma=5.0, timestep=600)
STRONG = 40.0  # random weights hardly mind a perturbation: at this scale it shows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_stable_diffusion(tmp_path_factory.mktemp("pag"))


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    return StableDiffusion.load(str(folder))


def conditioning(model: StableDiffusion, texts: list[str] = TEXTS) -> Conditioning:
    return model.encode([Prompt(str(i), text) for i, text in enumerate(texts)])


def noise(model: StableDiffusion, rows: int = 2) -> torch.Tensor:
    return torch.randn((rows, *model.latent_shape), generator=torch.Generator().manual_seed(3))


def images(model: StableDiffusion, guidance: Guidance, solver: str) -> np.ndarray:
    with torch.no_grad():
        return model.decode(sample(model, noise(model), conditioning(model), guidance, Sampler(solver, 5)))[:, 0]


def theirs(pipeline: Any, model: StableDiffusion, solver: str, layers: list[str], **scales: float) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SOLVERS[solver][0].from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_pag_applied_layers(layers)
    made = pipeline(TEXTS, num_inference_steps=5, latents=noise(model), output_type="np", **scales).images
    rounded: np.ndarray = (made * 255).round().astype(int)
    return rounded


@pytest.mark.parametrize("layers", [["mid"], ["down_blocks.1", "up_blocks.0.attentions.0"]])
@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_images_equal_those_of_the_pipeline(
    folder: Path, model: StableDiffusion, solver: str, cfg_scale: float, layers: list[str]
) -> None:
    pipeline = StableDiffusionPAGPipeline.from_pretrained(folder, safety_checker=None)
    expected = theirs(pipeline, model, solver, layers, guidance_scale=cfg_scale, pag_scale=STRONG)
    ours = images(model, PAG(STRONG, cfg_scale=cfg_scale, layers=tuple(layers)), solver).astype(int)
    assert np.abs(ours - expected).max() <= 1
    without = images(model, CFG(cfg_scale), solver).astype(int)
    assert np.abs(ours - without).max() > 10  # it has an effect, which the equality above would not see


def test_images_equal_those_of_the_xl_pipeline(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_xl(tmp_path)
    model = StableDiffusionXL.load(str(folder))
    pipeline = StableDiffusionXLPAGPipeline.from_pretrained(folder, add_watermarker=False)
    layers = ["mid", "up_blocks.0"]
    expected = theirs(pipeline, model, "ddim", layers, guidance_scale=4.0, pag_scale=STRONG)
    ours = images(model, PAG(STRONG, cfg_scale=4, layers=tuple(layers)), "ddim").astype(int)
    assert np.abs(ours - expected).max() <= 1
    assert np.abs(ours - images(model, CFG(4), "ddim").astype(int)).max() > 10


def test_the_perturbed_prediction_is_the_values_alone(model: StableDiffusion) -> None:
    x, texts = noise(model), conditioning(model)
    attention = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    seen: dict[str, torch.Tensor] = {}
    with attention.register_forward_hook(lambda _, tokens, answer: seen.update(tokens=tokens[0], answer=answer)):
        model.predict(x, 500, texts, perturbed=("mid",))
    values = torch.nn.functional.linear(seen["tokens"], attention.to_v.weight)
    expected = torch.nn.functional.linear(values, attention.to_out[0].weight, attention.to_out[0].bias)
    torch.testing.assert_close(seen["answer"], expected)


def test_processors_are_put_back_whatever_happens(folder: Path, model: StableDiffusion) -> None:
    x, texts = noise(model), conditioning(model)
    modules = [module for module in model.unet.modules() if isinstance(module, Attention)]
    before = [module.processor for module in modules]
    plain = model.predict(x, 500, texts)
    model.predict(x, 500, texts, perturbed=("mid",))
    with pytest.raises(RuntimeError):
        model.predict(x[:, :3], 500, texts, perturbed=("mid",))
    with pytest.raises(HarnessError, match=r"layer 'middle'; this UNet has down_blocks\.1, up_blocks\.0, mid_block"):
        model.predict(x, 500, texts, perturbed=("middle",))
    found = StableDiffusion.layer_problems(folder, ("mid", "middle"))
    assert found == ["no self-attention under layer 'middle'; this UNet has down_blocks.1, up_blocks.0, mid_block"]
    assert all(module.processor is processor for module, processor in zip(modules, before, strict=True))
    assert torch.equal(model.predict(x, 500, texts), plain)


def test_both_spellings_of_a_layer(model: StableDiffusion) -> None:
    x, texts = noise(model), conditioning(model)
    for new, old in (("down_blocks.1", "down.block_1"), ("up_blocks.0.attentions.1", "up.block_0.attentions_1")):
        assert torch.equal(
            model.predict(x, 500, texts, perturbed=(new,)), model.predict(x, 500, texts, perturbed=(old,))
        )


def test_a_row_does_not_depend_on_the_other_rows(model: StableDiffusion) -> None:
    x = noise(model, 3)
    whole = model.predict(x, 500, conditioning(model, ["a", "b", "c"]), perturbed=("mid",))
    other = model.predict(x[[1, 0, 1]], 500, conditioning(model, ["b", "x", "y"]), perturbed=("mid",))
    assert torch.equal(whole[1], other[0])


@pytest.mark.parametrize(
    ("guidance", "nfe"),
    [
        (PAG(3), 2 * 20), (PAG(3, cfg_scale=5), 3 * 20), (PAG(0, cfg_scale=5), 2 * 20), (PAG(0), 20),
        (PAG(3, cfg_scale=5, steps=(5, 9)), 20 + 2 * 5), (PAG(3, fraction=(0, 0.5)), 20 + 10),
    ],
)
def test_evaluations(model: StableDiffusion, guidance: PAG, nfe: int) -> None:
    model.counter = Counter(2)
    try:
        sample(model, noise(model), conditioning(model), guidance, Sampler("ddim", 20))
        assert model.counter.nfe.tolist() == [nfe] * 2
    finally:
        model.counter = None


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_the_formula(scale: float, cfg_scale: float, values: list[float]) -> None:
    guidance = PAG(scale, cfg_scale=cfg_scale)
    u, c, p = values
    made = {UNCOND: u, COND: c, Request("perturbed", layers=("mid",)): p}
    asked = guidance.requests(STEP, STEP.sigma)
    x = torch.zeros(1, dtype=torch.float64)
    answer = guidance.combine({request: x + made[request] for request in asked}, x, STEP)
    assert float(answer.prediction) == pytest.approx(c + (cfg_scale - 1) * (c - u) + scale * (c - p), abs=1e-9)


def test_without_weight_it_is_the_plain_method(model: StableDiffusion) -> None:
    np.testing.assert_array_equal(images(model, PAG(0), "ddim"), images(model, NoGuidance(), "ddim"))
    np.testing.assert_array_equal(images(model, PAG(0, cfg_scale=4), "ddim"), images(model, CFG(4), "ddim"))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [({"scale": float("nan")}, "scale"), ({"scale": 1, "cfg_scale": float("inf")}, "cfg_scale"),
     ({"scale": 1, "layers": ()}, "layers"), ({"scale": 1, "steps": (3, 1)}, "upside down")],
)
def test_settings_that_make_no_sense(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PAG(**chosen)
