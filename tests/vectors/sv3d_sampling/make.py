"""Runs the authors' sampler, guiders, conditioner and picture preparation, and keeps the numbers (see README.md).

python -m tests.vectors.sv3d_sampling.make FOLDER    # FOLDER holds github.com/Stability-AI/generative-models
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.vectors.sv3d_sampling import parts

HERE = Path(__file__).parent
SMALL = 40  # pixels of the prepared pictures; the script's are 576
SGM = "sgm.modules.diffusionmodules"
FRAMES = (1, 2, 5, 14, 21)


class Pooled(torch.nn.Module):
    """Stands for the autoencoder and for CLIP: block means of a picture."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def guiders() -> dict[str, dict[str, list[float]]]:
    from sgm.modules.diffusionmodules.guiders import LinearPredictionGuider, TrianglePredictionGuider

    classes = {"triangle": TrianglePredictionGuider, "linear": LinearPredictionGuider}
    return {
        f"{name}-{scale}-{least}": {
            str(frames): cls(max_scale=scale, num_frames=frames, min_scale=least).scale[0].tolist()
            for frames in FRAMES
        }
        for name, cls in classes.items() for scale, least in ((2.5, 1.0), (6.0, 1.5))
    }


def sampler_of(case: dict[str, Any], frames: int) -> Any:
    from sgm.modules.diffusionmodules.sampling import EulerEDMSampler

    names = {"triangle": "TrianglePredictionGuider", "linear": "LinearPredictionGuider"}
    guider: dict[str, Any] = {"target": f"{SGM}.guiders.VanillaCFG", "params": {"scale": case["scale"]}}
    if case["shape"]:
        params = {"max_scale": case["scale"], "num_frames": frames}
        guider = {"target": f"{SGM}.guiders.{names[case['shape']]}", "params": params}
    return EulerEDMSampler(
        num_steps=case["steps"], device="cpu", guider_config=guider,
        discretization_config={"target": f"{SGM}.discretizer.EDMDiscretization", "params": {"sigma_max": 700.0}},
    )


def sampled(case: dict[str, Any]) -> torch.Tensor:
    from sgm.modules.diffusionmodules.denoiser import Denoiser
    from sgm.modules.diffusionmodules.wrappers import OpenAIWrapper

    sampler = sampler_of(case, parts.FRAMES)
    denoiser = Denoiser({"target": f"{SGM}.denoiser_scaling.VScalingWithEDMcNoise"})
    formula = parts.Formula()

    class Frames(torch.nn.Module):
        """The authors' layout, a row a frame, around the formula."""

        def forward(self, x: Any, timesteps: Any, context: Any, y: Any, num_video_frames: int, **_: Any) -> Any:
            def clips(rows: Any) -> Any:
                return rows.reshape(-1, num_video_frames, *rows.shape[1:])

            answer = formula(clips(x), clips(timesteps)[:, 0], clips(context)[:, 0], clips(y)[:, 0])[0]
            return answer.flatten(0, 1)

    network = OpenAIWrapper(Frames())
    given = parts.tensors()

    def frames(value: torch.Tensor) -> torch.Tensor:
        return value[:, None].expand(-1, parts.FRAMES, *value.shape[1:]).flatten(0, 1).clone()

    vector = torch.zeros(parts.CLIPS * parts.FRAMES, 1)
    cond = {"crossattn": frames(given["embedding"]), "concat": frames(given["picture"]), "vector": vector}
    uc = {key: torch.zeros_like(value) for key, value in cond.items()}

    def call(x: torch.Tensor, sigma: torch.Tensor, c: dict[str, torch.Tensor]) -> Any:
        return denoiser(network, x, sigma, c, num_video_frames=parts.FRAMES,
                        image_only_indicator=torch.zeros(2 * parts.CLIPS, parts.FRAMES))

    latents = sampler(call, given["noise"].flatten(0, 1).clone(), cond=cond, uc=uc)
    return latents.reshape(parts.CLIPS, parts.FRAMES, *parts.LATENT)


@torch.no_grad()
def whole(official: str) -> dict[str, torch.Tensor]:
    """A picture to frames by the whole engine with the tiny weights of `tests.vectors.sv3d`, as the script does it."""
    import open_clip

    from tests.vectors.sv3d import make as tiny

    open_clip.factory._MODEL_CONFIGS["tiny"] = tiny.TINY_CLIP
    engine = tiny.engine(Path(official), True)
    tiny.fill(engine)
    picture = torch.from_numpy(np.array(parts.small_picture())).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    noise, frames = parts.whole_noise(), parts.WHOLE_SHAPE[0]
    batch = {
        "cond_frames_without_noise": picture, "cond_frames": picture + 1e-5 * parts.picture_noise()[None],
        "cond_aug": torch.full((frames,), 1e-5),
    }
    c, uc = engine.conditioner.get_unconditional_conditioning(
        batch, batch_uc={key: value.clone() for key, value in batch.items()},
        force_uc_zero_embeddings=["cond_frames", "cond_frames_without_noise"],
    )
    for each in (c, uc):
        for key in ("crossattn", "concat"):
            each[key] = each[key].repeat_interleave(frames, dim=0)

    def call(x: torch.Tensor, sigma: torch.Tensor, given: dict[str, torch.Tensor]) -> Any:
        return engine.denoiser(engine.model, x, sigma, given, num_video_frames=frames,
                               image_only_indicator=torch.zeros(2, frames))

    latents = sampler_of(parts.WHOLE, frames)(call, noise[0].clone(), cond=c, uc=uc)
    return {"whole.latents": latents, "whole.frames": ((engine.decode_first_stage(latents) + 1) / 2).clamp(0, 1)}


def conditioned() -> dict[str, torch.Tensor]:
    """The conditioner of sv3d_u.yaml, whose networks are `Pooled`, on one picture."""
    from sgm.modules import GeneralConditioner

    pooled = {"target": "tests.vectors.sv3d_sampling.make.Pooled"}
    encoders = "sgm.modules.encoders.modules"
    conditioner = GeneralConditioner([
        {"is_trainable": False, "input_key": "cond_frames_without_noise",
         "target": f"{encoders}.FrozenOpenCLIPImagePredictionEmbedder",
         "params": {"n_cond_frames": 1, "n_copies": 1, "open_clip_embedding_config": pooled}},
        {"is_trainable": False, "input_key": "cond_frames",
         "target": f"{encoders}.VideoPredictionEmbedderWithEncoder",
         "params": {"n_cond_frames": 1, "n_copies": 1, "is_ae": True, "encoder_config": pooled}},
        {"is_trainable": False, "input_key": "cond_aug", "target": f"{encoders}.ConcatTimestepEmbedderND",
         "params": {"outdim": 256}},
    ])
    picture = parts.waves(32)
    batch = {"cond_frames_without_noise": picture, "cond_frames": picture, "cond_aug": torch.full((3,), 1e-5)}
    c, uc = conditioner.get_unconditional_conditioning(
        batch, batch_uc={key: value.clone() for key, value in batch.items()},
        force_uc_zero_embeddings=["cond_frames", "cond_frames_without_noise"],
    )
    found = {f"cond.{key}": value for key, value in c.items()} | {f"uncond.{key}": value for key, value in uc.items()}
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def prepared(script: str, picture: Image.Image) -> torch.Tensor:
    """The lines of the authors' script between opening a picture with transparency and the model's input."""
    import cv2

    rest = script.split("# resize object in frame")[1]
    lines, _, _ = rest.partition("        else:\n            with Image.open")
    place = {"np": np, "cv2": cv2, "Image": Image, "image": picture, "image_frame_ratio": None}
    exec(textwrap.dedent(" " * 12 + "pass\n" + lines.replace("(576, 576)", f"({SMALL}, {SMALL})")), place)
    return torch.from_numpy(np.array(place["input_image"]))


def main(official: str) -> None:
    sys.path.insert(0, official)
    from sgm.modules.diffusionmodules.denoiser_scaling import VScalingWithEDMcNoise
    from sgm.modules.diffusionmodules.discretizer import EDMDiscretization

    torch.set_num_threads(1)
    script = (Path(official) / "scripts/sampling/simple_video_sample.py").read_text()
    tensors = {f"latents.{name}": sampled(case) for name, case in parts.settings().items()}
    tensors |= {f"picture.{name}": prepared(script, picture) for name, picture in parts.drawn().items()}
    tensors |= conditioned() | whole(official)
    levels = torch.tensor([700.0, 30.0, 1.0, 0.05, 0.002])
    about = {
        "guiders": guiders(),
        "sigmas": EDMDiscretization(sigma_max=700.0)(50).tolist(),
        "scalings": {"sigma": levels.tolist(), "c": [c.tolist() for c in VScalingWithEDMcNoise()(levels)]},
    }
    save_file(tensors, HERE / "outputs.safetensors")
    (HERE / "outputs.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
