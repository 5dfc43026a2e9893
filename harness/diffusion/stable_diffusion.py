"""Stable Diffusion 1.x and 2.x, and any model in their on-disk layout.

The numbers follow `StableDiffusionPipeline` of `diffusers` (tests/diffusion/test_parity.py); the differences
are that the solver's state stays float32 whatever the network's dtype, and that prompts are encoded one by one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from harness import weights as weight_files
from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule
from harness.diffusion.schedules import SOLVERS, DiffusersSchedule, NoiseLevels, build_scheduler
from harness.errors import HarnessError
from harness.prompts import Prompt
from harness.registry import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
KEPT_TEXTS = 512  # encoded prompts kept on the device


class StableDiffusion(Diffusion):
    """Text to image with one CLIP text encoder, one UNet and one autoencoder."""

    family = "stable_diffusion"
    version = 1
    samplers = tuple(SOLVERS)
    requests: ClassVar[frozenset[str]] = frozenset({"cond", "uncond"})

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler_config: dict[str, Any],
        *, size: int | None = None, device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = unet.dtype
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.vae = vae.to(self.device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        # The pipeline mends configurations of 2022 in the same way.
        self.scheduler_config = {**scheduler_config, "steps_offset": 1}
        scheduler = build_scheduler(self.scheduler_config, Sampler("ddim", 1))
        self.native = str(scheduler.config.prediction_type)
        self.levels = NoiseLevels(scheduler.alphas_cumprod)
        self.size = size or _default_size(unet.config, vae.config)
        side = self.size // _factor(vae.config)
        self.latent_shape = (unet.config.in_channels, side, side)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._flops: float | None = None

    @classmethod
    def load(
        cls,
        weights: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        size: int | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
    ) -> StableDiffusion:
        """Opens a local folder, a Hub id or `builtin:NAME`. `size` is the image's side in pixels.

        Raises:
            HarnessError: the weights are missing, corrupt or of another family, or cannot make this size.
        """
        if dtype not in DTYPES:
            raise HarnessError(f"unknown dtype {dtype!r}: {nearest(str(dtype), list(DTYPES))}")
        if networks:
            raise HarnessError(f"family {cls.family!r} takes no further networks, got {', '.join(networks)}")
        folder = weight_files.resolve(weights, revision)
        found = _folder_problems(folder, size)
        if found:
            raise HarnessError("\n".join(f"{folder}: {problem}" for problem in found))
        vae_class = AUTOENCODERS[_config(folder, "vae")["_class_name"]]
        with _no_progress_bars():
            model = cls(
                _open(UNet2DConditionModel, folder / "unet", torch_dtype=DTYPES[dtype]),
                _open(vae_class, folder / "vae", torch_dtype=DTYPES[dtype]),
                _open(CLIPTextModel, folder / "text_encoder", dtype=DTYPES[dtype]),
                CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
                _config(folder, "scheduler"),
                size=size, device=device,
            )
        model.trained = weight_files.is_trained(folder)
        return model

    @classmethod
    def problems(cls, folder: Path, size: int | None, sampler: Sampler) -> list[str]:
        """What a benchmark asks that these weights cannot do, found from the configuration files alone."""
        found = _folder_problems(folder, size)
        try:
            config = json.loads((folder / "scheduler" / CONFIGS["scheduler"]).read_text())
            build_scheduler({**config, "steps_offset": 1}, sampler)
        except HarnessError as error:
            found.append(str(error))
        except (OSError, ValueError):
            pass  # the missing or unreadable file is among the problems already
        return found

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to the text encoder's last hidden states, `text` `[B, L, D]`; the null prompt is "".

        Each text is encoded alone, so that its last bits depend on no other text and on no earlier batch.
        """
        text = torch.stack([self._encode(prompt.text) for prompt in prompts])
        null = self._encode("").expand_as(text)
        return Conditioning({"text": text}, {"text": null}, torch.arange(len(prompts)))

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        if text in self._texts:
            self._texts.move_to_end(text)
            return self._texts[text]
        tokens = self.tokenizer(
            [text], padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        )
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0][0]
        self._texts[text] = states
        if len(self._texts) > KEPT_TEXTS:
            self._texts.popitem(last=False)
        return states

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """One UNet evaluation a row, in the network's native parameterisation and in x's dtype.

        Raises:
            HarnessError: `perturbed` layers or a second network, which this family does not have.
        """
        if perturbed or network not in self.networks:
            raise HarnessError(f"family {self.family!r} has neither perturbed layers nor a network {network!r}")
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        prediction: Tensor = self.unet(
            x.to(self.dtype), timestep, encoder_hidden_states=conditioning.tensors["text"], return_dict=False
        )[0]
        return prediction.to(x.dtype)

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar) at a timestep, in double precision."""
        return self.levels.alpha_sigma(timestep)

    def schedule(self, sampler: Sampler) -> Schedule:
        """A fresh solver for one batch."""
        return DiffusersSchedule(self.scheduler_config, sampler)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to images, uint8 `[B, 1, H, W, 3]` on the CPU, rounded as the pipeline does."""
        images = self.decode_differentiable(latents).float().cpu().numpy()
        rounded: np.ndarray = (images * 255).round().astype(np.uint8)
        return rounded

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Clean latents to images, float `[B, 1, H, W, 3]` in [0, 1], gradients kept."""
        scaled = latents.to(self.dtype) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).unsqueeze(1)

    def flops_per_evaluation(self, network: str = "main") -> float:
        """Floating-point operations of one row's evaluation: convolutions, products of matrices, attention.

        Counted on shapes alone (a UNet without weights), so that device and kernels have no part in it.
        """
        if self._flops is None:
            with torch.device("meta"):
                unet = UNet2DConditionModel.from_config(self.unet.config)
                x = torch.empty(1, *self.latent_shape)
                length, width = self.tokenizer.model_max_length, self.unet.config.cross_attention_dim
                counter = FlopCounterMode(display=False)
                with torch.no_grad(), counter:
                    unet(x, torch.zeros(1), encoder_hidden_states=torch.empty(1, length, width))
            self._flops = float(counter.get_total_flops())
        return self._flops


def _factor(vae_config: Any) -> int:
    """Image pixels a latent pixel, along a side."""
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def _default_size(unet_config: Any, vae_config: Any) -> int:
    side = unet_config["sample_size"]
    return int(side if isinstance(side, int) else side[0]) * _factor(vae_config)


def _config(folder: Path, part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / part / CONFIGS[part]).read_text())
    if part == "vae" and "block_out_channels" not in config:  # AutoencoderTiny's own name for it
        config["block_out_channels"] = config.get("decoder_block_out_channels", [64] * 4)
    return config


def _folder_problems(folder: Path, size: int | None) -> list[str]:
    """What is wrong with a folder as a Stable Diffusion, from its small files; [] when all is well."""
    found, configs = [], {}
    for part, name in CONFIGS.items():
        try:
            configs[part] = _config(folder, part)
        except FileNotFoundError:
            found.append(f"{part}/{name} is missing: expected the folder layout of the diffusers library")
        except (OSError, ValueError) as error:
            found.append(f"{part}/{name} cannot be read: {error}")
    for part in ("unet", "vae", "text_encoder"):
        if part in configs and not list((folder / part).glob("*.safetensors")):
            found.append(f"{part}/ holds no .safetensors file (pickled weights are not opened)")
    if {"unet", "vae", "text_encoder"} <= set(configs):
        found += _shape_problems(configs, size)
    return found


def _shape_problems(configs: dict[str, dict[str, Any]], size: int | None) -> list[str]:
    unet, vae = configs["unet"], configs["vae"]
    found = []
    if vae.get("_class_name") not in AUTOENCODERS:
        return [f"vae/ is a {vae.get('_class_name')!r}: expected {' or '.join(AUTOENCODERS)}"]
    if unet.get("addition_embed_type") == "text_time":
        return ["unet/ is that of Stable Diffusion XL: use the family stable_diffusion_xl"]
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        found.append(f"unet/ takes {channels} channels, but the autoencoder's latents have {latent} "
                     f"(inpainting and depth models are not text-to-image models)")
    context, width = unet.get("cross_attention_dim", 1280), configs["text_encoder"].get("hidden_size", 512)
    if context != width:
        found.append(f"unet/ attends to states {context} wide, but text_encoder/ gives {width}")
    factor = _factor(vae)
    if size is not None and (size < factor or size % factor):
        below = max(size // factor, 1) * factor
        found.append(f"size: images of {size} pixels cannot be made, the side must be a multiple of {factor}; "
                     f"the nearest are {below} and {below + factor} (the default is {_default_size(unet, vae)})")
    return found


def _open(cls: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A network with all its weights from safetensors, never partly random."""
    plain = [path for path in folder.glob("*.safetensors") if ".fp16." not in path.name]
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


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """The libraries' own bars would run through a worker's log."""
    libraries = (diffusers_logging, transformers_logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was in zip(libraries, shown, strict=True):
            if was:
                library.enable_progress_bar()
