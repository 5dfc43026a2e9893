"""Stable Diffusion 1.x and 2.x, and any model in their on-disk layout.

The numbers follow `StableDiffusionPipeline` of `diffusers` (tests/diffusion/test_parity.py); the differences
are that the solver's state stays float32 whatever the network's dtype, that prompts are encoded one by one, and
that images are decoded a few at a time, so that a large micro-batch needs no more memory than these (never in
tiles, whose seams would show).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from harness import flops
from harness import weights as weight_files
from harness.diffusion import folders
from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule
from harness.diffusion.edm import discrete_levels, discrete_schedule
from harness.diffusion.levels import NoiseLevels
from harness.diffusion.schedules import SOLVERS, build_scheduler
from harness.diffusion.unets import UNets, self_attention, without_weights
from harness.errors import HarnessError
from harness.prompts import Prompt
from harness.quiet import quiet
from harness.registry import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEPT_TEXTS = 512  # encoded prompts kept on the device
DECODED_PIXELS = 2 * 1024 * 1024  # of all images that are decoded together


class StableDiffusion(Diffusion):
    """Text to image with one CLIP text encoder, one UNet and one autoencoder."""

    family = "stable_diffusion"
    version = 1
    samplers = tuple(SOLVERS)
    requests: ClassVar[frozenset[str]] = frozenset({"cond", "uncond", "perturbed", "network"})
    network_kinds: ClassVar[tuple[str, ...]] = ("weights", "lora")
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    # The pipeline mends scheduler configurations of 2022 in this way.
    mended: ClassVar[dict[str, Any]] = {"steps_offset": 1}

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler_config: dict[str, Any],
        *, size: int | None = None, device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = unet.dtype
        self.unets = UNets(unet.to(self.device))
        self.vae = vae.to(self.device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler_config = {**scheduler_config, **self.mended}
        scheduler = build_scheduler(self.scheduler_config, Sampler("ddim", 1))
        self.native = str(scheduler.config.prediction_type)
        self.levels = NoiseLevels(scheduler.alphas_cumprod)
        self.size = size or folders.default_size(unet.config, vae.config)
        side = self.size // folders.factor(vae.config)
        self.latent_shape = (unet.config.in_channels, side, side)
        self._texts: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

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
    ) -> Self:
        """Opens a local folder, a Hub id or `builtin:NAME`. `size` is the image's side in pixels.

        `networks` are further UNets of the same latents and conditioning by name: `{"weights": FOLDER}` for one of
        its own, from the folder's `unet/`, or `{"lora": FOLDER}` for the main one with a LoRA switched on, from
        the folder's `pytorch_lora_weights.safetensors`; a Hub id, with its `revision`, or `builtin:NAME` as well.

        Raises:
            HarnessError: the weights are missing, corrupt or of another family, or cannot make this size.
        """
        if dtype not in DTYPES:
            raise HarnessError(f"unknown dtype {dtype!r}: {nearest(str(dtype), list(DTYPES))}")
        folder = weight_files.resolve(weights, revision)
        found = cls._folder_problems(folder, size)
        if found:
            raise HarnessError("\n".join(f"{folder}: {problem}" for problem in found))
        with quiet():
            model = cls(**cls._parts(folder, DTYPES[dtype]), size=size, device=device)
            for name, block in (networks or {}).items():
                model._add_network(folder, name, block)
        model.trained = weight_files.is_trained(folder)
        return model

    @classmethod
    def _parts(cls, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
        """What `__init__` takes, opened."""
        vae_config = folders.config(folder, "vae")
        vae_class = folders.AUTOENCODERS[vae_config["_class_name"]]
        return {
            "unet": folders.open_network(UNet2DConditionModel, folder / "unet", torch_dtype=dtype),
            "vae": folders.open_network(vae_class, folder / "vae", torch_dtype=cls._vae_dtype(vae_config, dtype)),
            "text_encoder": folders.open_network(CLIPTextModel, folder / "text_encoder", dtype=dtype),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            "scheduler_config": folders.config(folder, "scheduler"),
        }

    @classmethod
    def _vae_dtype(cls, vae_config: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        return dtype

    def _add_network(self, folder: Path, name: str, block: dict[str, Any]) -> None:
        kinds = [kind for kind in self.network_kinds if block.get(kind) is not None]
        if len(kinds) != 1 or not block.keys() <= {"weights", "lora", "revision"}:
            raise HarnessError(f"networks.{name}: expected 'weights' or 'lora', and 'revision' if need be, got {block}")
        kind, = kinds
        network = weight_files.resolve(block[kind], block.get("revision"))
        found = self.network_problems(folder, kind, network)
        if found:
            raise HarnessError("\n".join(f"networks.{name}: {problem}" for problem in found))
        if kind == "weights":
            self.unets.add_weights(name, network)
        else:
            self.unets.add_lora(name, network)
        self.networks = self.unets.names

    @classmethod
    def problems(cls, folder: Path, size: int | None, sampler: Sampler) -> list[str]:
        """What a benchmark asks that these weights cannot do, found from the configuration files alone."""
        found = cls._folder_problems(folder, size)
        try:
            cls.step_levels(folder, sampler)
        except HarnessError as error:
            found.append(str(error))
        except (OSError, ValueError):
            pass  # the missing or unreadable file is among the problems already
        return found

    @classmethod
    def step_levels(cls, folder: Path | None, sampler: Sampler) -> list[float]:
        """The noise level at which each solver step starts, found from the scheduler's configuration."""
        if folder is None:
            return []
        return discrete_levels({**folders.config(folder, "scheduler"), **cls.mended}, sampler)

    @classmethod
    def network_problems(cls, folder: Path, kind: str, network: Path) -> list[str]:
        """What is wrong with a further network, found from the small files alone."""
        return folders.unet_problems(folder, network) if kind == "weights" else folders.lora_problems(network)

    @classmethod
    def layer_problems(cls, folder: Path, layers: tuple[str, ...]) -> list[str]:
        """Which of these layers have no self-attention to perturb, found from the configuration alone."""
        try:
            self_attention(without_weights(folders.config(folder, "unet")), layers)
        except HarnessError as error:
            return [str(error)]
        return []

    @classmethod
    def _folder_problems(cls, folder: Path, size: int | None) -> list[str]:
        return folders.problems(folder, cls.family, cls.text_encoders, size)

    @property
    def unet(self) -> Any:
        """The main UNet."""
        return self.unets.main

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to the text encoder's last hidden states, `text` `[B, L, D]`; the null prompt is "".

        Each text is encoded alone, so that its last bits depend on no other text and on no earlier batch.
        """
        null = self._null()
        texts = [self._encoded(prompt.text) for prompt in prompts]
        tensors = {key: torch.stack([states[key] for states in texts]) for key in null}
        nulls = {key: states.expand_as(tensors[key]) for key, states in null.items()}
        return Conditioning(tensors, nulls, torch.arange(len(prompts)))

    def _encoded(self, text: str) -> dict[str, Tensor]:
        """One text's row of the conditioning, kept for the next time."""
        if text in self._texts:
            self._texts.move_to_end(text)
        else:
            self._texts[text] = self._encode(text)
            if len(self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        return self._texts[text]

    @torch.no_grad()
    def _encode(self, text: str) -> dict[str, Tensor]:
        tokens = tokenize(self.tokenizer, text)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return {"text": self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0][0]}

    def _null(self) -> dict[str, Tensor]:
        """The null prompt's row of the conditioning."""
        return self._encoded("")

    def _inputs(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The conditioning as the UNet takes it."""
        return {"encoder_hidden_states": tensors["text"]}

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """One UNet evaluation a row, in the network's native parameterisation and in x's dtype.

        `perturbed` names the layers whose self-attention is made the identity, as `diffusers` does for perturbed-
        attention guidance: "mid", "down_blocks.1", "up_blocks.1.attentions.0" (or "down.block_1", ...), each with
        all that lies below it.

        Raises:
            HarnessError: a layer or a network that this model does not have.
        """
        with self.unets.use(network, perturbed) as unet:
            if self.counter is not None:
                self.counter.add(network, conditioning.rows)
            prediction: Tensor = unet(
                x.to(self.dtype), timestep, **self._inputs(conditioning.tensors), return_dict=False
            )[0]
        return prediction.to(x.dtype)

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar) at a timestep, in double precision."""
        return self.levels.alpha_sigma(timestep)

    def schedule(self, sampler: Sampler) -> Schedule:
        """A fresh solver for one batch."""
        return discrete_schedule(self, self.scheduler_config, self.levels, sampler)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to images, uint8 `[B, 1, H, W, 3]` on the CPU, rounded as the pipeline does."""
        images = self.decode_differentiable(latents).float().cpu().numpy()
        rounded: np.ndarray = (images * 255).round().astype(np.uint8)
        return rounded

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Clean latents to images, float `[B, 1, H, W, 3]` in [0, 1], gradients kept."""
        if self.counter is not None:
            self.counter.add_decoded(len(latents))
        together = max(1, DECODED_PIXELS // self.size**2)
        images = torch.cat([self._decoded(rows) for rows in latents.split(together)])
        return (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).unsqueeze(1)

    def _decoded(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return images

    def flops_per_evaluation(self, network: str = "main") -> float:
        """Floating-point operations of one row's evaluation (`harness.flops`)."""
        return self._kept(network, False, lambda: self._unet_flops(network, gradient=False))

    def flops_per_gradient(self, network: str = "main") -> float:
        """Of one row's way back through the network to its input."""
        return self._kept(network, True, lambda: self._unet_flops(network, gradient=True))

    def flops_per_decode(self, gradient: bool = False) -> float:
        """Of decoding one row, or of the way back from the image to the latents."""
        return self._kept("/decoder", gradient, lambda: self._decoder_flops(gradient))

    def flops_per_text(self) -> float:
        """Of encoding one prompt, padded to the encoder's length as all are."""
        return self._kept("/text", False, lambda: flops.of_forward(lambda: self._encode("")))

    def _unet_flops(self, network: str, gradient: bool) -> float:
        one = self.encode([Prompt("", "")]).tensors
        inputs = self._inputs({key: torch.empty(value.shape, device="meta") for key, value in one.items()})
        return self.unets.flops(network, (1, *self.latent_shape), inputs, gradient)

    def _decoder_flops(self, gradient: bool) -> float:
        """On shapes alone, as those of the UNets."""
        with torch.device("meta"), quiet():
            vae = type(self.vae).from_config(self.vae.config).eval().requires_grad_(False)
            latents = torch.empty(1, *self.latent_shape)

            def call(x: Tensor) -> Tensor:
                return vae.decode(x, return_dict=False)[0]  # type: ignore[no-any-return]

            return flops.of_backward(call, latents) if gradient else flops.of_forward(lambda: call(latents))


def tokenize(tokenizer: Any, text: str) -> Any:
    """One text's tokens, padded and cut to the encoder's length, int64 `[1, L]`."""
    return tokenizer(
        [text], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
