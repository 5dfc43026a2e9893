"""Where each weight of the library's networks stands in the official single file of SV3D-U, and their configurations.

Source of the file's layout: `sv3d_u.yaml` of Stability-AI's generative-models. Its parts:

- `model.diffusion_model.`: the spatio-temporal UNet;
- `conditioner.embedders.0.open_clip.model.visual.`: open_clip's ViT-H/14, which sees the picture;
- `conditioner.embedders.1.encoder.`: the autoencoder whose encoder turns the picture into latents;
- `first_stage_model.decoder.`: what turns latents into frames, a decoder of still images as published; a temporal one,
  as Stable Video Diffusion has, is mapped as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.open_clip.model.visual."
ENCODER = "conditioner.embedders.1.encoder."
DECODER = "first_stage_model.decoder."
NOT_USED = (  # what the official classes hold beside: CLIP's text side, and the halves of autoencoders that stand idle
    *(f"conditioner.embedders.0.open_clip.model.{name}" for name in (
        "positional_embedding", "text_projection", "logit_scale", "token_embedding.", "ln_final.")),
    f"{ENCODER}decoder.", f"{ENCODER}post_quant_conv.", "first_stage_model.encoder.",
)
EMBEDDED = 256  # width in which SV3D-U is told the strength of the noise on the picture, and nothing else
HEAD, CLIP_HEAD = 64, 80  # channels of an attention head: `num_head_channels`, and open_clip's `head_width` of ViT-H/14
Shapes = Mapping[str, Sequence[int]]
Names = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]  # patterns, and what each becomes

_RESIDUAL: Names = [  # the layers of a residual block of the UNet, and of a temporal one of the decoder
    (r"^norm1\.", "in_layers.0."),
    (r"^conv1\.", "in_layers.2."),
    (r"^time_emb_proj\.", "emb_layers.1."),
    (r"^norm2\.", "out_layers.0."),
    (r"^conv2\.", "out_layers.3."),
    (r"^conv_shortcut\.", "skip_connection."),
]


@dataclass(frozen=True)
class Part:
    """One network: its class of the library, and where each of its weights stands in the file."""

    folder: str
    weights: str  # name of the file
    network: Any  # on the meta device: shapes alone
    sources: dict[str, str]  # name in the library -> key in the file
    config: str  # the network's configuration file


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})


def unet(shapes: Shapes) -> Part:
    """The spatio-temporal UNet of a file with these shapes.

    Raises:
        KeyError: the file lacks a key by which its configuration is told.
    """
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    blocks = _count(shapes, f"{UNET}input_blocks.")
    ends = [n for n in range(blocks) if f"{UNET}input_blocks.{n}.0.op.weight" in shapes] + [blocks]
    layers = ends[0] - 1  # after the first convolution
    lasts = [f"{UNET}input_blocks.{end - 1}." for end in ends]  # of each level, but for what halves its size
    attends = [f"{last}1.norm.weight" in shapes for last in lasts]
    channels = [shapes[f"{last}0.out_layers.3.weight"][0] for last in lasts]
    config = {
        "sample_size": 72,  # 576 pixels
        "in_channels": first[1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "down_block_types": [f"{'CrossAttn' if each else ''}DownBlockSpatioTemporal" for each in attends],
        "up_block_types": [f"{'CrossAttn' if each else ''}UpBlockSpatioTemporal" for each in attends[::-1]],
        "block_out_channels": channels,
        "addition_time_embed_dim": EMBEDDED,
        "projection_class_embeddings_input_dim": EMBEDDED,
        "layers_per_block": layers,
        "cross_attention_dim": shapes[f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "num_attention_heads": [max(width // HEAD, 1) for width in channels],
        "num_frames": 21,
    }
    with torch.device("meta"):
        network = UNetSpatioTemporalConditionModel.from_config(config)

    def down(found: re.Match[str]) -> str:
        level, kind, layer = int(found[1]), found[2], int(found[3])
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op."
        return f"input_blocks.{1 + level * (layers + 1) + layer}.{int(kind == 'attentions')}."

    def up(found: re.Match[str]) -> str:
        level, kind, layer = int(found[1]), found[2], int(found[3])
        if kind == "upsamplers":
            return f"output_blocks.{level * (layers + 1) + layers}.{1 + attends[-1 - level]}.conv."
        return f"output_blocks.{level * (layers + 1) + layer}.{int(kind == 'attentions')}."

    names: Names = [
        (r"^down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(?:conv\.)?", down),
        (r"^up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(?:conv\.)?", up),
        (r"^mid_block\.resnets\.0\.", "middle_block.0."),
        (r"^mid_block\.attentions\.0\.", "middle_block.1."),
        (r"^mid_block\.resnets\.1\.", "middle_block.2."),
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"^time_embedding\.", "time_embed."),
        (r"^add_embedding\.", "label_emb.0."),
        (r"\bspatial_res_block\.(.*)", lambda found: _named(found[1], _RESIDUAL)),
        (r"\btemporal_res_block\.(.*)", lambda found: f"time_stack.{_named(found[1], _RESIDUAL)}"),
        (r"\btemporal_transformer_blocks\.", "time_stack."),
        (r"\blinear_1\.", "0."),
        (r"\blinear_2\.", "2."),
    ]
    return Part("unet", "diffusion_pytorch_model.safetensors", network, _sources(network, names, lambda name: UNET),
                network.to_json_string())


def vae(shapes: Shapes) -> Part:
    """The encoder of the picture and the decoder of the frames as one autoencoder. Raises KeyError as `unet`."""
    temporal = any(key.startswith(DECODER) and ".time_stack." in key for key in shapes)
    levels = _count(shapes, f"{ENCODER}encoder.down.")
    config: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "block_out_channels": [
            shapes[f"{ENCODER}encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)
        ],
        "layers_per_block": _count(shapes, f"{ENCODER}encoder.down.0.block."),
        "latent_channels": shapes[f"{DECODER}conv_in.weight"][1],
        "sample_size": 576,
        "scaling_factor": 0.18215,  # `scale_factor`; the picture's own latents are not scaled
    }
    if not temporal:  # the first stage has a decoder and nothing before it
        config |= {"up_block_types": ["UpDecoderBlock2D"] * levels, "use_post_quant_conv": False}
    with torch.device("meta"):
        network = (AutoencoderKLTemporalDecoder if temporal else AutoencoderKL).from_config(config)
    names: Names = [
        (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
        (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"\bup_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}."),
        (r"\bmid_block\.resnets\.(\d)\.", lambda found: f"mid.block_{int(found[1]) + 1}."),
        (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
        (r"\bresnets\.", "block."),
        (r"\bupsamplers\.0\.", "upsample."),
        (r"\bgroup_norm\.", "norm."),
        (r"\bto_([qkv])\.", r"\1."),
        (r"\bto_out\.0\.", "proj_out."),
        (r"\bconv_norm_out\.", "norm_out."),
        (r"\btime_conv_out\.", "conv_out.time_mix_conv."),
        (r"\bspatial_res_block\.", ""),
        (r"\btime_mixer\.", ""),
        (r"\btemporal_res_block\.(.*)", lambda found: f"time_stack.{_named(found[1], _RESIDUAL)}"),
        (r"\bconv_shortcut\.", "nin_shortcut."),
        (r"^decoder\.", ""),
    ]
    sources = _sources(network, names, lambda name: DECODER if name.startswith("decoder.") else ENCODER)
    return Part("vae", "diffusion_pytorch_model.safetensors", network, sources, network.to_json_string())


def clip(shapes: Shapes) -> Part:
    """The vision tower of CLIP. Raises KeyError as `unet`."""
    width, patch = shapes[f"{CLIP}conv1.weight"][0], shapes[f"{CLIP}conv1.weight"][-1]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{CLIP}transformer.resblocks.0.mlp.c_fc.weight"][0],
        projection_dim=shapes[f"{CLIP}proj"][1],
        num_hidden_layers=_count(shapes, f"{CLIP}transformer.resblocks."),
        num_attention_heads=max(width // CLIP_HEAD, 1),
        image_size=patch * math.isqrt(shapes[f"{CLIP}positional_embedding"][0] - 1),
        patch_size=patch,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(config)
    names: Names = [
        (r"^vision_model\.", ""),
        (r"^embeddings\.class_embedding", "class_embedding"),
        (r"^embeddings\.patch_embedding\.", "conv1."),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^pre_layrnorm\.", "ln_pre."),
        (r"^post_layernorm\.", "ln_post."),
        (r"^visual_projection\.weight", "proj"),
        (r"^encoder\.layers\.", "transformer.resblocks."),
        (r"\bself_attn\.[qkv]_proj\.", "attn.in_proj_"),
        (r"\bself_attn\.", "attn."),
        (r"\blayer_norm(\d)\.", r"ln_\1."),
        (r"\bmlp\.fc1\.", "mlp.c_fc."),
        (r"\bmlp\.fc2\.", "mlp.c_proj."),
    ]
    return Part("image_encoder", "model.safetensors", network, _sources(network, names, lambda name: CLIP),
                config.to_json_string())


def _sources(network: nn.Module, names: Names, prefix: Callable[[str], str]) -> dict[str, str]:
    return {name: prefix(name) + _named(name, names) for name in network.state_dict()}


def _named(name: str, names: Names) -> str:
    """A name of the library in the words of the file: every rule that fits, in order."""
    for pattern, official in names:
        name = re.sub(pattern, official, name)
    return name


def as_weight(name: str, value: Tensor) -> Tensor:
    """A tensor of the file as the weight `name` of the library."""
    split = re.search(r"self_attn\.([qkv])_proj\.", name)
    if split:  # one matrix in the file
        return value.chunk(3)["qkv".index(split[1])]
    if name == "visual_projection.weight":
        return value.T
    if re.search(r"mid_block\.attentions\.0\.to_\w+\.(0\.)?weight$", name) and value.ndim == 4:  # a 1 x 1 convolution
        return value[:, :, 0, 0]
    return value
