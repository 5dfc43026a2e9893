"""The same checkpoint through StableDiffusionXLPipeline and through ours gives the same image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from harness.diffusion.base import Sampler
from harness.diffusion.sampling import sample
from harness.diffusion.schedules import SOLVERS
from harness.diffusion.stable_diffusion_xl import StableDiffusionXL
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import load_method
from harness.prompts import Prompt
from tests.tiny import tiny_stable_diffusion_xl

TEXTS = ["a red square", "two blue rings left of a very long description that does not fit"]


@pytest.fixture(scope="module", params=[True, False], ids=["zero-null", "encoded-null"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    torch.set_num_threads(1)
    return tiny_stable_diffusion_xl(tmp_path_factory.mktemp("xl"), zero_null=request.param), request.param


def opened(folder: Path, **settings: Any) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(checkpoint: tuple[Path, bool]) -> Any:
    return opened(checkpoint[0])


@pytest.fixture(scope="module")
def model(checkpoint: tuple[Path, bool]) -> StableDiffusionXL:
    return StableDiffusionXL.load(str(checkpoint[0]))


def difference(
    pipeline: Any, model: StableDiffusionXL, solver: str, scale: float, spacing: str, steps: int,
    own_scheduler: bool = False,
) -> np.ndarray:
    noise = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(3))
    if not own_scheduler:
        pipeline.scheduler = SOLVERS[solver][0].from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    theirs = pipeline(
        TEXTS, num_inference_steps=steps, guidance_scale=scale, latents=noise.to(pipeline.dtype),
        height=model.size, width=model.size, output_type="np",
    ).images
    prompts = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    guidance = NoGuidance() if scale <= 1 else CFG(scale)
    with torch.no_grad():
        latents = sample(model, noise, model.encode(prompts), guidance, Sampler(solver, steps, spacing))
    ours = model.decode(latents)
    assert ours.shape == (2, 1, model.size, model.size, 3)
    assert ours.std() > 10  # not a grey field, where everything would be equal
    return np.abs(ours[:, 0].astype(int) - (theirs * 255).round().astype(int))


@pytest.mark.parametrize(("scale", "spacing"), [(1.0, "trailing"), (5.0, "trailing"), (5.0, "leading")])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_images_equal_those_of_the_pipeline(
    pipeline: Any, model: StableDiffusionXL, solver: str, scale: float, spacing: str
) -> None:
    assert difference(pipeline, model, solver, scale, spacing, steps=5).max() <= 1


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_without_guidance(tmp_path: Path, steps: int) -> None:
    folder = tiny_stable_diffusion_xl(tmp_path, turbo=True)
    model, pipeline = StableDiffusionXL.load(str(folder)), opened(folder)
    if steps == 1:  # its own scheduler adds noise at every step but the last; with one step the two are the same
        assert difference(pipeline, model, "euler", 0.0, "trailing", 1, own_scheduler=True).max() <= 1
    assert difference(pipeline, model, "euler", 0.0, "trailing", steps).max() <= 1


def test_another_size_than_the_weights_were_made_for(checkpoint: tuple[Path, bool], pipeline: Any) -> None:
    model = StableDiffusionXL.load(str(checkpoint[0]), size=48)
    assert difference(pipeline, model, "ddim", 5.0, "trailing", 4).max() <= 1


def test_the_micro_conditioning_and_the_null_prompt_matter(
    checkpoint: tuple[Path, bool], pipeline: Any, model: StableDiffusionXL
) -> None:
    """The parity above would not see what has no effect."""
    conditioning = model.encode([Prompt("0", TEXTS[0])])
    assert conditioning.tensors["text"].shape == (1, 16, 80)
    assert conditioning.tensors["pooled"].shape == (1, 24)
    zeros = [not value.any() for value in conditioning.null.values()]
    assert zeros == [checkpoint[1]] * 2
    x = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(3))
    before = model.predict(x, 500, conditioning)
    sizes, model._sizes = model._sizes, model._sizes * 4
    try:
        assert (model.predict(x, 500, conditioning) - before).abs().max() > 1e-3
    finally:
        model._sizes = sizes
    no_pooled = {**conditioning.tensors, "pooled": torch.zeros(1, 24)}
    changed = model.predict(x, 500, type(conditioning)(no_pooled, conditioning.null, conditioning.rows))
    assert (changed - before).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_the_pipeline(checkpoint: tuple[Path, bool], dtype: str) -> None:
    model = StableDiffusionXL.load(str(checkpoint[0]), dtype=dtype)
    # The official autoencoder overflows in float16, and says so in its configuration.
    assert model.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)
    assert model.unet.dtype == getattr(torch, dtype)
    pipeline = opened(checkpoint[0], torch_dtype=getattr(torch, dtype))
    found = difference(pipeline, model, "ddim", 5.0, "trailing", 4)
    # The pipeline keeps the solver's state in half precision, which this does not: some levels, no more.
    assert found.mean() < (0.5 if dtype == "float16" else 3)


@pytest.mark.parametrize("guidance", [{"cfg": {"scale": 4}}, {"pag": {"scale": 3, "cfg_scale": 4}}])
def test_a_row_does_not_depend_on_the_other_rows(model: StableDiffusionXL, guidance: dict[str, Any]) -> None:
    method = load_method(noise={"nlg": {"steps": 2}}, guidance=guidance, sampler={"steps": 3})
    whole = method(model, [*TEXTS, "", "a cross"], seeds=[0, 1, 2, 3])
    mixed = method(model, ["something else", TEXTS[1], "y", "a cross"], seeds=[8, 1, 9, 3])
    for row in (1, 3):
        np.testing.assert_array_equal(mixed.images[row], whole.images[row])
        assert torch.equal(mixed.latents[row], whole.latents[row])
