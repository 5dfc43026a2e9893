"""Runs the authors' script and their later pipeline on a tiny random checkpoint (see README.md).

python -m tests.vectors.noise_diffusion.make SCRIPT PIPELINE    # folders with run.py and utils.py, and with the
                                                                 # pipeline_stable_diffusion_nd.py of the later commit
"""

import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from tests.vectors import checkpoint
from tests.vectors.noise_diffusion.judge import value

HERE = Path(__file__).parent
PROMPT = "a book on the sofa"
SEED, CANDIDATE_SEED = 33, 2026
ROUNDS, STEPS = 3, 4
# Which code on which checkpoint: (code, prediction type, contrast of the decoder, candidates).
CASES = {
    "script": ("script", "epsilon", 1.0, 6),
    "script-v": ("script", "v_prediction", 1.0, 6),
    "pipeline": ("pipeline", "epsilon", 0.25, 50),  # 50 is fixed in its code; it does not cut pixels off
}


class Judge:
    """Called as t2v_metrics.VQAScore: images and texts to a 1 x 1 matrix. Keeps its answers."""

    def __init__(self, **_: Any) -> None:
        self.model = Namespace(model=torch.nn.Identity())
        self.values: list[float] = []
        self.extremes: list[float] = []

    def __call__(self, images: Tensor, texts: list[str]) -> Tensor:
        found = value(images).view(1, 1)
        self.values.append(found.item())
        self.extremes += [images.min().item(), images.max().item()]
        return found


def script(made: Path, judge: Judge, candidates: int) -> list[Tensor]:
    """The noise of every round, by run.py of the older commit."""
    stub = sys.modules.setdefault("t2v_metrics", ModuleType("t2v_metrics"))
    import run  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]

    utils.AutoTokenizer = CLIPTokenizer
    stub.VQAScore = lambda **_: judge  # type: ignore[attr-defined]
    noises = []

    def generate(*given: Any, **settings: Any) -> Any:
        with torch.no_grad():
            found = utils.generate_img(*given, **settings | {"size": 128})  # 16 latent pixels, at the script's 8 : 1
        noises.append(found[2][0].clone())
        return found

    run.generate_img = generate
    torch.manual_seed(CANDIDATE_SEED)
    run.main(Namespace(
        prompt=PROMPT, seeds=[SEED], sd_version=str(made), vqa_model="pattern", result_root=".", device="cpu",
        num_candidate_noises=candidates, num_denoising_steps=STEPS, max_epoch=ROUNDS,
    ))
    return noises


def pipeline(made: Path, judge: Judge, candidates: int) -> list[Tensor]:
    """The noise of every round, by the pipeline of the later commit."""
    from pipeline_stable_diffusion_nd import StableDiffusionNDPipeline  # type: ignore[import-not-found]

    pipe = StableDiffusionNDPipeline.from_pretrained(made, local_files_only=True)
    pipe.init_vqa_model(judge, "cpu")
    pipe.vae.requires_grad_(False)
    noises: list[Tensor] = []
    step = pipe.scheduler.step

    def watched(prediction: Tensor, t: Tensor, latents: Tensor, **settings: Any) -> Any:
        if t == pipe.scheduler.timesteps[0] and not latents.requires_grad:
            noises.append(latents.clone())
        return step(prediction, t, latents, **settings)

    pipe.scheduler.step = watched
    torch.manual_seed(CANDIDATE_SEED)
    pipe(PROMPT, height=64, width=64, num_inference_steps=STEPS, optimization_epoch=ROUNDS,
         generator=torch.Generator().manual_seed(SEED))
    return noises


def main(*official: str) -> None:
    sys.path[:0] = official
    torch.set_num_threads(1)
    about: dict[str, Any] = {}
    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # both write pictures into the current folder
        for name, (code, prediction_type, contrast, candidates) in CASES.items():
            made = checkpoint.make(Path(folder) / name, prediction_type, contrast)
            judge = Judge()
            for index, noise in enumerate((script if code == "script" else pipeline)(made, judge, candidates)):
                tensors[f"{name}.{index}"] = noise.contiguous()
            about[name] = {
                "checkpoint": checkpoint.sha256(made), "scores": judge.values,
                "pixels": [min(judge.extremes), max(judge.extremes)],
            }
    save_file(tensors, HERE / "outputs.safetensors")
    (HERE / "outputs.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:]))
