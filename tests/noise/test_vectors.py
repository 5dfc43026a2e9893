"""NLG and Noise Diffusion against the numbers that their authors' code gave on the same weights (tests/vectors).

Relative to the norm of the tensor, 1e-5: both sides compute in float32 and differ in the order of operations.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.diffusion.base import Sampler
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method
from harness.noise.base import NoiseContext
from harness.noise.nlg import NLG
from harness.noise.noise_diffusion import NoiseDiffusion
from harness.prompts import Prompt
from harness.seeding import RowKey
from tests.vectors import checkpoint
from tests.vectors.nlg import make as nlg
from tests.vectors.noise_diffusion import make as noise_diffusion
from tests.vectors.noise_diffusion.judge import Pattern

CLOSE = 1e-5


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def model(folder: Path, sha256: str, prediction_type: str, contrast: float = 1.0) -> StableDiffusion:
    torch.set_num_threads(1)
    made = checkpoint.make(folder, prediction_type, contrast)
    assert checkpoint.sha256(made) == sha256, (
        "the tiny checkpoint is no longer the one of the vectors: make them anew as tests/vectors/*/README.md says"
    )
    return StableDiffusion.load(str(made))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    about = json.loads((nlg.HERE / "outputs.json").read_text())
    return model(tmp_path_factory.mktemp("nlg"), about["checkpoint"], "v_prediction")


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", list(nlg.CASES))
def test_nlg_is_the_published_scripts(walked: StableDiffusion, name: str, batch: int) -> None:
    theirs, settings = load_file(nlg.HERE / "outputs.safetensors"), nlg.CASES[name]
    stage = NLG(
        steps=settings["refining_steps"], step_size=settings["step_size"],
        clip_threshold=settings["clip_threshold"] if settings["clip_grads"] else None,
        normalise=settings["normalize_latents"], noise_variance=settings["noise_level"],
        formula=settings["guidance_formula"], gamma=3.0, boundary=settings["boundary_control"], variant="published",
    )
    keys = [RowKey("p", "0", 0, literal=s, place=i, first=batch == 0) for i, s in enumerate(nlg.SEEDS[batch])]
    prompts = [Prompt(text, text) for text in nlg.PROMPTS]
    ours = Method(stage, NoGuidance(), Sampler("dpmsolver++", nlg.STEPS, "linspace")).run(walked, prompts, keys)
    assert distance(ours.initial_noise, theirs[f"{name}.{batch}.noise"]) < CLOSE
    assert distance(ours.latents, theirs[f"{name}.{batch}.latents"]) < CLOSE
    norms = json.loads((nlg.HERE / "outputs.json").read_text())["norms"][name][batch]
    for record, row in zip(ours.records, norms, strict=True):
        assert record["norms"] == pytest.approx(row, rel=1e-4)  # of small differences of larger numbers


@pytest.mark.parametrize("name", list(noise_diffusion.CASES))
def test_noise_diffusion_is_the_published_codes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = load_file(noise_diffusion.HERE / "outputs.safetensors")
    about = json.loads((noise_diffusion.HERE / "outputs.json").read_text())[name]
    code, prediction_type, contrast, candidates = noise_diffusion.CASES[name]
    # The candidates come from the process's generator there, a round's all in one draw.
    generator = torch.Generator().manual_seed(noise_diffusion.CANDIDATE_SEED)
    pools = [
        torch.randn((candidates, 1, 4, 16, 16), generator=generator) for _ in range(noise_diffusion.ROUNDS)
    ]
    monkeypatch.setattr(
        NoiseContext, "draw", lambda ctx, purpose, k: pools[int(purpose.removeprefix("candidate-"))][k]
    )
    stage = NoiseDiffusion(
        noise_diffusion.ROUNDS, candidates, variant="published" if code == "pipeline" else "described"
    )
    method = Method(stage, CFG(7.5), Sampler("ddim", noise_diffusion.STEPS, "leading"), Pattern())
    loaded = model(tmp_path, about["checkpoint"], prediction_type, contrast)
    prompt = Prompt(noise_diffusion.PROMPT, noise_diffusion.PROMPT)
    ours = method.run(loaded, [prompt], [RowKey("p", "0", 0, literal=noise_diffusion.SEED)])
    (record,) = ours.records
    assert record["scores"] == pytest.approx(about["scores"], rel=CLOSE)
    assert record["chosen"] == about["scores"].index(max(about["scores"]))
    assert distance(ours.initial_noise, theirs[f"{name}.{record['chosen']}"]) < CLOSE
    # Every round's noise, chained from the candidates that we took, is theirs.
    noise = theirs[f"{name}.0"]
    for index, (gamma, k) in enumerate(zip(record["gammas"], record["candidates"], strict=True)):
        noise = (1 - gamma) ** 0.5 * noise + gamma**0.5 * pools[index][k]
        assert distance(noise, theirs[f"{name}.{index + 1}"]) < CLOSE
    assert any(record["candidates"])  # not the first of the pool throughout
