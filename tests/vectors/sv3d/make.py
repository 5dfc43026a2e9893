"""Writes layout.json and outputs.safetensors with the official code (see README.md).

    python -m tests.vectors.sv3d.make FOLDER    # FOLDER holds Stability-AI's generative-models
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.vectors.sv3d import inputs
from tests.vectors.sv3d.tiny_file import tensor, tree

HERE = Path(__file__).parent
TINY_CLIP = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 48, "heads": 1, "layers": 1},
}


def config(official: Path, tiny: bool) -> Any:
    """sv3d_u.yaml without what cannot run here (xformers, checkpoints), shrunk where `tiny`."""
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    read = OmegaConf.load(official / "scripts" / "sampling" / "configs" / "sv3d_u.yaml")
    params = read.model.params
    del params.ckpt_path, params.sampler_config
    unet, embedders = params.network_config.params, params.conditioner_config.params.emb_models
    unet.spatial_transformer_attn_type, unet.use_checkpoint = "softmax", False
    clip = embedders[0].params.open_clip_embedding_config.params
    clip.version = None  # not downloaded
    autoencoders = (
        embedders[1].params.encoder_config.params.ddconfig, params.first_stage_config.params.decoder_config.params
    )
    for vae in autoencoders:
        vae.attn_type = "vanilla"
    if not tiny:
        clip.init_device = "meta"
    else:
        unet.model_channels, unet.channel_mult, unet.attention_resolutions = 64, [1, 1, 2], [1, 2]
        unet.context_dim, clip.arch = TINY_CLIP["embed_dim"], "tiny"
        for vae in autoencoders:
            vae.ch, vae.ch_mult = 32, [1, 2]
    return read.model


def engine(official: Path, tiny: bool, temporal: bool = False) -> Any:
    from sgm.util import instantiate_from_config  # type: ignore[import-not-found]

    made = config(official, tiny)
    if temporal:  # as svd.yaml
        decoder = made.params.first_stage_config.params.decoder_config
        decoder.target = "sgm.modules.autoencoding.temporal_ae.VideoDecoder"
        decoder.params.video_kernel_size = [3, 1, 1]
    return instantiate_from_config(made)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def fill(model: nn.Module) -> None:
    model.load_state_dict({key: tensor(key, shape) for key, shape in shapes(model).items()})
    model.eval()


@torch.no_grad()
def outputs(model: Any, temporal: Any) -> dict[str, Tensor]:
    """What the official parts make of `inputs`."""
    clips, frames = inputs.CLIPS, inputs.FRAMES
    picture, latents = inputs.picture(), inputs.latents()
    flat = latents.flatten(0, 1)
    unet = model.model.diffusion_model(
        inputs.unet_sample().flatten(0, 1),
        timesteps=inputs.timesteps().repeat_interleave(frames),
        context=inputs.context().repeat_interleave(frames, 0),
        y=model.conditioner.embedders[2](inputs.augmentation()).repeat_interleave(frames, 0),
        num_video_frames=frames,
        image_only_indicator=torch.zeros(clips, frames),
    )
    return {
        "unet": unet.unflatten(0, (clips, frames)),
        "clip": model.conditioner.embedders[0](picture),
        "encoded": model.conditioner.embedders[1](picture),
        "decoded": model.first_stage_model.decode(flat),
        "decoded-temporal": temporal.first_stage_model.decode(flat, timesteps=frames),
    }


def main(official: str) -> None:
    sys.path.insert(0, official)
    open_clip.factory._MODEL_CONFIGS["tiny"] = TINY_CLIP
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        model, temporal = engine(Path(official), True), engine(Path(official), True, temporal=True)
        with torch.device("meta"):
            published = engine(Path(official), False)
    layouts = {"tiny": shapes(model), "tiny-temporal": shapes(temporal), "sv3d_u": shapes(published)}
    for each in (model, temporal):
        fill(each)
    found = outputs(model, temporal)
    (HERE / "layout.json").write_text(
        json.dumps({name: tree(each) for name, each in layouts.items()}, separators=(",", ":")) + "\n"
    )
    save_file({name: value.contiguous() for name, value in found.items()}, HERE / "outputs.safetensors")
    for name, each in layouts.items():
        print(name, len(each), "keys", sum(torch.Size(shape).numel() for shape in each.values()), "weights")
    for name, value in found.items():
        print(name, list(value.shape), float(value.std()))


if __name__ == "__main__":
    main(sys.argv[1])
