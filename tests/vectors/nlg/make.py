"""Runs the authors' refinement on a tiny random checkpoint and keeps what comes out (see README.md).

python -m tests.vectors.nlg.make FOLDER    # FOLDER holds the repository's core_experiments/utils.py
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from tests.vectors import checkpoint

HERE = Path(__file__).parent
PROMPTS = ["a red ring", "two blue stars"]
SEEDS = [[11, 12], [13, 14]]  # of the initial noise, by batch; the first batch meets a fresh scheduler
STEPS = 4  # of sampling
PLAIN = {
    "refining_steps": 3, "step_size": 1.0, "clip_grads": False, "clip_threshold": 1.0, "normalize_latents": False,
    "guidance_formula": False, "add_noise": False, "noise_level": 0.0, "boundary_control": False,
}
CASES = {
    "recommended": PLAIN | {"clip_grads": True, "clip_threshold": 0.5, "normalize_latents": True, "add_noise": True,
                            "noise_level": 0.001},
    "bare": PLAIN | {"step_size": 2.5},
    "tight": PLAIN | {"clip_grads": True, "clip_threshold": 0.02, "step_size": 20.0, "add_noise": True,
                      "noise_level": 0.02},
    "formula": PLAIN | {"guidance_formula": True, "step_size": 0.05, "boundary_control": True},
}


def main(official: str) -> None:
    sys.path.insert(0, official)
    import utils  # type: ignore[import-not-found]

    torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign] # the script is written for float16
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = checkpoint.make(folder, "v_prediction")
        tensors: dict[str, torch.Tensor] = {}
        norms: dict[str, list[list[list[float]]]] = {}
        for name, settings in CASES.items():
            # As load_stable_diffusion of the script, in float32.
            pipe = StableDiffusionPipeline.from_pretrained(made, torch_dtype=torch.float32, local_files_only=True)
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
            utils.set_seed(0)
            norms[name] = []
            for batch, seeds in enumerate(SEEDS):
                noise = torch.cat([
                    torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed)) for seed in seeds
                ])
                with torch.no_grad():
                    refined, lengths = utils.refine_noise(noise, PROMPTS, "cpu", pipe, Namespace(**settings))
                    tensors[f"{name}.{batch}.noise"] = refined.clone()
                    tensors[f"{name}.{batch}.latents"] = pipe(
                        PROMPTS, latents=refined, guidance_scale=0.0, num_inference_steps=STEPS, output_type="latent"
                    ).images
                norms[name].append(np.array(lengths).T.tolist())  # by row, then step
        about = {"checkpoint": checkpoint.sha256(made), "norms": norms}
    save_file(tensors, HERE / "outputs.safetensors")
    (HERE / "outputs.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
