"""Tiny random checkpoints in the official on-disk layouts, so that tests meet the real loading code."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

MAX_LENGTH = 16  # tokens of a prompt


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with bytes for words: any text tokenizes, a token a byte."""
    folder.mkdir(parents=True, exist_ok=True)
    # CLIP's byte alphabet: printable bytes stand for themselves, the others follow from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = alphabet + [letter + "</w>" for letter in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


def _text_config(tokenizer: CLIPTokenizer, **change: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH, "projection_dim": 32,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        } | change
    )


def _unet(**change: object) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        **{
            "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32, "attention_head_dim": 4,
        } | change
    )
    # A fresh network nearly ignores its prompt; widening the text makes guidance visible in the image.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                parameter.mul_(6)
    return unet


def _autoencoder(kind: str) -> AutoencoderKL | AutoencoderTiny:
    if kind == "kl":
        return AutoencoderKL(
            block_out_channels=(8, 8, 16), latent_channels=4, norm_num_groups=8, sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=1.077,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )


def _untrained(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "trained": False}, indent=2) + "\n")


def tiny_stable_diffusion(
    folder: str | Path, prediction_type: str = "epsilon", seed: int = 0, autoencoder: str = "kl"
) -> Path:
    """Writes a random Stable Diffusion (64x64 images, latents 4x16x16, under 2 MB) and returns its folder.

    `prediction_type` is "epsilon", or "v_prediction" for a UNet like that of Stable Diffusion 2 (linear
    projections, a head count of its own for each block); `autoencoder` is "kl" or "tiny". The global random
    state is left as it was. `model_index.json` says that the weights are random.
    """
    folder = Path(folder)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    second = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if prediction_type == "v_prediction" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(_text_config(tokenizer))
        unet = _unet(**second)
        vae = _autoencoder(autoencoder)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=_scheduler(prediction_type),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _untrained(folder)
    return folder


def tiny_stable_diffusion_xl(folder: str | Path, turbo: bool = False, zero_null: bool = True, seed: int = 0) -> Path:
    """Writes a random Stable Diffusion XL (64x64 images, latents 4x16x16, under 2 MB) and returns its folder.

    Two text encoders of different widths, a UNet that is told the image's size, and the scheduler configuration
    of the base model, or with `turbo` of its distilled relative.
    """
    folder = Path(folder)
    tokenizers = [tiny_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    tokenizers[1].pad_token = "!"  # as the official second tokenizer has it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = CLIPTextModel(_text_config(tokenizers[0]))
        second = CLIPTextModelWithProjection(
            _text_config(tokenizers[1], hidden_size=48, projection_dim=24, num_hidden_layers=3, hidden_act="gelu")
        )
        unet = _unet(
            cross_attention_dim=32 + 48, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
        vae = _autoencoder("kl")
    # With the settings of other classes that the official file carries.
    scheduler = (EulerAncestralDiscreteScheduler if turbo else EulerDiscreteScheduler).from_config({
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "timestep_spacing": "trailing" if turbo else "leading", "prediction_type": "epsilon",
        "clip_sample": False, "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    })
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=unet, scheduler=scheduler, force_zeros_for_empty_prompt=zero_null, add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _untrained(folder)
    return folder


def tiny_sv3d(folder: str | Path, temporal: bool = False, frames: int = 3, seed: int = 0) -> Path:
    """Writes a random SV3D-U (16x16 frames, latents Fx4x4x4, under 7 MB) and returns its folder.

    The autoencoder is one of stills, as the official SV3D's, or with `temporal` that of Stable Video Diffusion. The
    frames' size must be given when the model is loaded: 16, or another multiple of 8.
    """
    folder = Path(folder)
    blocks: dict[str, object] = {"block_out_channels": (8, 8, 16), "latent_channels": 4, "sample_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNetSpatioTemporalConditionModel(
            sample_size=4, num_frames=frames, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(1, 2), addition_time_embed_dim=256, projection_class_embeddings_input_dim=256,
        )
        with torch.no_grad():
            for name, parameter in unet.named_parameters():  # a fresh network mixes frames and embeddings by half
                if "mix_factor" in name:
                    parameter.normal_()
                if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                    parameter.mul_(6)
        vae: AutoencoderKL | AutoencoderKLTemporalDecoder
        if temporal:
            vae = AutoencoderKLTemporalDecoder(
                down_block_types=("DownEncoderBlock2D",) * 3, **{**blocks, "block_out_channels": (32, 32, 32)}
            )
        else:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=8, **blocks,
            )
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
            patch_size=16, projection_dim=32,
        ))
    pipeline = StableVideoDiffusionPipeline(
        vae=vae, image_encoder=image_encoder, unet=unet, scheduler=EulerDiscreteScheduler(),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _untrained(folder)
    return folder


def tiny_lora(folder: str | Path, checkpoint: str | Path, alpha: int = 8, seed: int = 5) -> Path:
    """Writes a random LoRA (rank 4) of a tiny checkpoint's UNet as `save_lora_weights` does; returns its folder."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(config)
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    return Path(folder)
