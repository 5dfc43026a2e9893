"""The same checkpoint through StableDiffusionPipeline and through ours gives the same image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from harness.diffusion.base import Sampler
from harness.diffusion.sampling import sample
from harness.diffusion.schedules import SOLVERS
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.prompts import Prompt
from tests.tiny import tiny_stable_diffusion

TEXTS = ["a red square", "two blue rings left of a very long description that does not fit"]
STEPS = 6
CASES = [(scale, "trailing") for scale in (1.0, 5.0)] + [(5.0, "leading"), (5.0, "linspace")]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "tiny-autoencoder"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny-autoencoder":
        return tiny_stable_diffusion(folder, autoencoder="tiny")
    return tiny_stable_diffusion(folder, prediction_type=request.param)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    made = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> StableDiffusion:
    return StableDiffusion.load(str(checkpoint))


@pytest.mark.parametrize(("scale", "spacing"), CASES)
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_images_equal_those_of_the_pipeline(
    pipeline: Any, model: StableDiffusion, solver: str, scale: float, spacing: str
) -> None:
    noise = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(3))
    official_class = SOLVERS[solver][0]
    pipeline.scheduler = official_class.from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    # The pipeline scales what it is given by the scheduler's own first sigma.
    theirs = pipeline(
        TEXTS, num_inference_steps=STEPS, guidance_scale=scale, latents=noise.clone(), output_type="np"
    ).images

    prompts = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    guidance = NoGuidance() if scale == 1 else CFG(scale)
    with torch.no_grad():
        latents = sample(model, noise, model.encode(prompts), guidance, Sampler(solver, STEPS, spacing))
    ours = model.decode(latents)

    assert ours.shape == (2, 1, 64, 64, 3)
    assert ours.dtype == np.uint8
    assert ours.std() > 10  # not a grey field, where everything would be equal
    difference = np.abs(ours[:, 0].astype(int) - (theirs * 255).round().astype(int))
    assert difference.max() <= 1, f"{difference.max()} of 255, {(difference > 0).mean():.1%} of the values"


def test_the_scheduler_configuration_of_2022_is_mended_as_the_pipeline_does(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path)
    config = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=0
    )
    config.save_pretrained(folder / "scheduler")
    official = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, scheduler=config)
    scheduler = DDIMScheduler.from_config(official.scheduler.config, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)
    ours = StableDiffusion.load(str(folder)).schedule(Sampler("ddim", STEPS, "leading"))
    assert [step.timestep for step in ours.evaluations] == scheduler.timesteps.tolist()
