"""Tiny random checkpoints in the official on-disk layouts, so that tests meet the real loading code."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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


def tiny_stable_diffusion(
    folder: str | Path, prediction_type: str = "epsilon", seed: int = 0, autoencoder: str = "kl"
) -> Path:
    """Writes a random Stable Diffusion (64x64 images, latents 4x16x16, under 2 MB) and returns its folder.

    `prediction_type` is "epsilon" or "v_prediction"; `autoencoder` is "kl" or "tiny". The global random
    state is left as it was. `model_index.json` says that the weights are random.
    """
    folder = Path(folder)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=MAX_LENGTH, projection_dim=32,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32, attention_head_dim=4,
        )
        # A fresh network nearly ignores its prompt; widening the text makes guidance visible in the image.
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                    parameter.mul_(6)
        if autoencoder == "kl":
            vae = AutoencoderKL(
                block_out_channels=(8, 8, 16), latent_channels=4, norm_num_groups=8, sample_size=64,
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            )
        else:
            vae = AutoencoderTiny(
                encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16),
                num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=1.077,
            )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "trained": False}, indent=2) + "\n")
    return folder
