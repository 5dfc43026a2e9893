"""Folders in the layout of `diffusers`: what is in them, what is wrong with them, and networks out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open

from harness.errors import HarnessError

AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
LORA_FILE = "pytorch_lora_weights.safetensors"
FAMILIES = {None: "stable_diffusion", "text_time": "stable_diffusion_xl"}  # by the UNet's addition_embed_type
# The noise that a timestep stands for, and what a prediction means: the same for all networks of a model.
SCHEDULE = {"prediction_type": "epsilon", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "rescale_betas_zero_snr": False}


def config_file(part: str) -> str:
    """The name of a part's configuration file."""
    if part.startswith("tokenizer"):
        return "tokenizer_config.json"
    return "scheduler_config.json" if part == "scheduler" else "config.json"


def config(folder: Path, part: str) -> dict[str, Any]:
    """A part's configuration."""
    found: dict[str, Any] = json.loads((folder / part / config_file(part)).read_text())
    tiny = part == "vae" or found.get("_class_name") == "AutoencoderTiny"
    if tiny and "block_out_channels" not in found:  # AutoencoderTiny's own name for it
        found["block_out_channels"] = found.get("decoder_block_out_channels", [64] * 4)
    return found


def factor(vae_config: Any) -> int:
    """Image pixels a latent pixel, along a side."""
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def default_size(unet_config: Any, vae_config: Any) -> int:
    """The side of the images that a UNet was made for, in pixels."""
    side = unet_config["sample_size"]
    return int(side if isinstance(side, int) else side[0]) * factor(vae_config)


def problems(folder: Path, family: str, encoders: tuple[str, ...], size: int | None) -> list[str]:
    """What is wrong with a folder as a model of `family` with these text encoders, from its small files alone."""
    try:
        kind = FAMILIES.get(config(folder, "unet").get("addition_embed_type"))
    except (OSError, ValueError):
        kind = family  # said below
    if kind != family:
        known = f"that of {kind}: use 'family: {kind}'" if kind else "of a kind that is not known here"
        return [f"unet/ is not that of a {family} model, but {known}"]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    networks = ("unet", "vae", *encoders)
    found, configs = read(folder, networks, (*tokenizers, "scheduler"))
    solver = str(configs.get("scheduler", {}).get("_class_name", ""))
    if "FlowMatch" in solver or solver.startswith("EDM"):
        found.append(f"scheduler/ is a {solver}: expected one of a variance-preserving model, such as DDIMScheduler")
    if set(networks) <= set(configs):
        found += _shape_problems(configs, encoders, size)
    return found


def read(
    folder: Path, networks: tuple[str, ...], others: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What is missing or unreadable of these parts of a folder, and the configurations of the rest."""
    found, configs = [], {}
    for part in (*networks, *others):
        try:
            configs[part] = config(folder, part)
        except FileNotFoundError:
            found.append(f"{part}/{config_file(part)} is missing: expected the folder layout of the diffusers library")
        except (OSError, ValueError) as error:
            found.append(f"{part}/{config_file(part)} cannot be read: {error}")
    for part in networks:
        if part in configs and not list((folder / part).glob("*.safetensors")):
            found.append(f"{part}/ holds no .safetensors file (pickled weights are not opened)")
    return found, configs


def _shape_problems(configs: dict[str, dict[str, Any]], encoders: tuple[str, ...], size: int | None) -> list[str]:
    unet, vae = configs["unet"], configs["vae"]
    found = []
    if vae.get("_class_name") not in AUTOENCODERS:
        return [f"vae/ is a {vae.get('_class_name')!r}: expected {' or '.join(AUTOENCODERS)}"]
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        found.append(f"unet/ takes {channels} channels, but the autoencoder's latents have {latent} "
                     f"(inpainting and depth models are not text-to-image models)")
    context, width = unet.get("cross_attention_dim", 1280), sum(configs[e].get("hidden_size", 512) for e in encoders)
    if context != width:
        found.append(f"unet/ attends to states {context} wide, but {'/ and '.join(encoders)}/ give {width}")
    if unet.get("time_cond_proj_dim") is not None:
        found.append("unet/ was distilled to take the guidance scale as an input (time_cond_proj_dim), which it is "
                     "not given here")
    pixels = factor(vae)
    if size is not None and (size < pixels or size % pixels):
        below = max(size // pixels, 1) * pixels
        found.append(f"size: images of {size} pixels cannot be made, the side must be a multiple of {pixels}; "
                     f"the nearest are {below} and {below + pixels} (the default is {default_size(unet, vae)})")
    return found


def unet_problems(folder: Path, other: Path) -> list[str]:
    """Why the UNet of the folder `other` cannot stand beside that of `folder`: [] where it can."""
    try:
        ours, theirs = config(folder, "unet"), config(other, "unet")
        own = config(folder, "scheduler")
        further = config(other, "scheduler") if (other / "scheduler").is_dir() else own
    except (OSError, ValueError) as error:
        return [f"a configuration file of {other} or {folder} cannot be read ({error}): expected folders in the layout "
                f"of the diffusers library"]
    found = []
    if not list((other / "unet").glob("*.safetensors")):
        found.append(f"{other}/unet holds no .safetensors file (pickled weights are not opened)")
    for key in ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type",
                "addition_time_embed_dim", "projection_class_embeddings_input_dim", "time_cond_proj_dim"):
        if ours.get(key) != theirs.get(key):
            found.append(f"{other}/unet has {key} {theirs.get(key)!r}, the model's own UNet {ours.get(key)!r}: both "
                         f"must take the same latents and conditioning")
    for key, default in SCHEDULE.items():
        if own.get(key, default) != further.get(key, default):
            found.append(f"{other}/scheduler has {key} {further.get(key, default)!r}, the model's own "
                         f"{own.get(key, default)!r}: both must mean the same by a timestep and a prediction")
    return found


def lora_problems(folder: Path) -> list[str]:
    """Why a folder gives no LoRA of a UNet: [] where it does."""
    path = folder / LORA_FILE
    if not path.is_file():
        return [f"{path} is missing: expected what `StableDiffusionPipeline.save_lora_weights` writes"]
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        return [f"{path} is damaged or not whole ({error}); put a good copy in its place"]
    others = sorted({name.split(".")[0] for name in names} - {"unet"})
    if others:
        return [f"{path} has weights for {', '.join(others)}: expected names that begin with 'unet.' alone "
                f"(a network shares the model's text encoders)"]
    return [] if names else [f"{path} holds no weights"]


def open_network(cls: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A network with all its weights from safetensors, never partly random."""
    plain = [path for path in folder.glob("*.safetensors") if ".fp16" not in path.name]
    try:
        network, report = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
            variant=None if plain else "fp16", **dtype,
        )
    except Exception as error:  # the libraries raise many kinds for a damaged file; each means the same here
        raise HarnessError(
            f"{folder}: the weights cannot be read ({type(error).__name__}: {error}). "
            f"The file is damaged or of another model; fetch it again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise HarnessError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]!r}")
    return network
