"""The UNets of one model by name: its own, further ones, its own with a LoRA; and attention made the identity."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from torch import Tensor

from harness import flops
from harness.diffusion.folders import LORA_FILE, open_network
from harness.errors import HarnessError


class IdentityAttention:
    """Self-attention whose map is the identity: a token's output is its own value, projected.

    Source: Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv
    2403.17377. A processor in the sense of `diffusers`, for the attention of transformer blocks, which norm and
    add outside of it.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Tokens `[B, L, C]` to tokens, each on its own."""
        projected: Tensor = attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states))) / attn.rescale_output_factor
        return projected


class UNets:
    """UNets that take the same latents and the same conditioning.

    A LoRA is on only while its network is in use: "main" computes exactly what it computes without any LoRA.
    """

    def __init__(self, main: Any) -> None:
        self._main = main.eval().requires_grad_(False)
        self._further: dict[str, Any] = {}
        self._loras: list[str] = []
        self._lora_layers: list[Any] = []
        self._on: str | None = None  # the LoRA that is on
        self._attention: dict[tuple[str, tuple[str, ...]], list[Any]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """"main", then the UNets of their own, then those with a LoRA."""
        return ("main", *self._further, *self._loras)

    @property
    def main(self) -> Any:
        """The model's own UNet, no LoRA on."""
        return self.network("main")

    def add_weights(self, name: str, folder: Path) -> None:
        """A UNet of its own, from the `unet/` of a folder."""
        self._must_be_new(name)
        unet = open_network(UNet2DConditionModel, folder / "unet", torch_dtype=self._main.dtype)
        self._further[name] = unet.to(self._main.device).eval().requires_grad_(False)

    def add_lora(self, name: str, folder: Path) -> None:
        """The model's own UNet with a LoRA on top: the file that `save_lora_weights` of `diffusers` writes."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import get_peft_model_state_dict

        self._must_be_new(name)
        path = folder / LORA_FILE
        try:
            with safe_open(path, framework="pt") as file:
                # Training scripts give linear layers the library's older names and leave convolutions their own; it
                # would go by the first name alone and lose the others.
                states = {
                    key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118
                }
                settings = (file.metadata() or {}).get("lora_adapter_metadata")
            metadata = json.loads(settings) if settings else None
            # The library draws weights before it is given these, and warns of what is checked below.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
                self._main.load_lora_adapter(states, prefix="unet", adapter_name=name, metadata=metadata)
        except Exception as error:  # many kinds; each means that the file does not fit this UNet
            raise HarnessError(
                f"{path}: this LoRA does not fit the model's UNet ({type(error).__name__}: {error})"
            ) from error
        placed = len(get_peft_model_state_dict(self._main, adapter_name=name))
        if placed != len(states):
            raise HarnessError(f"{path}: only {placed} of its {len(states)} weights have a place in the model's UNet")
        self._loras.append(name)
        self._lora_layers = [module for module in self._main.modules() if isinstance(module, BaseTunerLayer)]
        self._main.to(self._main.device).eval()
        self._switch(name)
        self._switch(None)

    def _must_be_new(self, name: str) -> None:
        if name in self.names:
            raise HarnessError(f"the name {name!r} is taken; this model has {', '.join(self.names)}")

    def _switch(self, lora: str | None) -> None:
        if lora == self._on:
            return
        for layer in self._lora_layers:
            if lora is not None and layer.active_adapters != [lora]:
                layer.set_adapter(lora)
            layer.enable_adapters(lora is not None)
        if lora is not None:
            self._main.requires_grad_(False)  # what is switched on was made trainable
        self._on = lora

    def network(self, name: str) -> Any:
        """The UNet `name`, its LoRA on where it is one, until the next call."""
        if name in self._further:
            return self._further[name]
        if name != "main" and name not in self._loras:
            raise HarnessError(f"no network {name!r}: this model has {', '.join(self.names)}")
        self._switch(None if name == "main" else name)
        return self._main

    @contextmanager
    def use(self, name: str, perturbed: tuple[str, ...] = ()) -> Iterator[Any]:
        """The UNet `name`, the self-attention of the layers `perturbed` made the identity meanwhile."""
        unet = self.network(name)
        chosen = self._self_attention(name, unet, perturbed)
        before = [attention.processor for attention in chosen]
        try:
            for attention in chosen:
                attention.processor = IdentityAttention()
            yield unet
        finally:
            for attention, processor in zip(chosen, before, strict=True):
                attention.processor = processor

    def _self_attention(self, name: str, unet: Any, layers: tuple[str, ...]) -> list[Any]:
        if (name, layers) not in self._attention:
            self._attention[name, layers] = self_attention(unet, layers)
        return self._attention[name, layers]

    def flops(self, name: str, shape: tuple[int, ...], inputs: dict[str, Any], gradient: bool = False) -> float:
        """Floating-point operations of one evaluation (`harness.flops`), or of the way back from it to its input.

        Counted on shapes alone (a UNet without weights), so that device and kernels have no part in it;
        `inputs` are the UNet's further arguments as tensors on the device "meta".
        """
        unet = without_weights(self._further.get(name, self._main).config)
        with torch.device("meta"):
            if name in self._loras:
                unet.add_adapter(self._main.peft_config[name], name)
            unet.requires_grad_(False)

            def call(x: Tensor) -> Tensor:
                return unet(x, torch.zeros(1), **inputs).sample  # type: ignore[no-any-return]

            x = torch.empty(shape)
            return flops.of_backward(call, x) if gradient else flops.of_forward(lambda: call(x))


def without_weights(config: Any) -> Any:
    """A UNet of this configuration that has shapes alone."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def self_attention(unet: Any, layers: tuple[str, ...]) -> list[Any]:
    """The self-attention modules of these layers, named as `StableDiffusion.predict` says."""
    known = {
        place: module for place, module in unet.named_modules()
        if isinstance(module, Attention) and not module.is_cross_attention
    }
    chosen: dict[str, Any] = {}
    for layer in layers:
        found = {place: module for place, module in known.items() if place.startswith(_spelt_out(layer))}
        if not found:
            blocks = dict.fromkeys(place.split(".attentions")[0] for place in known)
            raise HarnessError(f"no self-attention under layer {layer!r}; this UNet has {', '.join(blocks)}")
        chosen |= found
    return list(chosen.values())


def _spelt_out(layer: str) -> str:
    """A layer's place in the UNet: "down.block_1.attentions_0" is another spelling of "down_blocks.1.attentions.0"."""
    return layer.replace(".block_", "_blocks.").replace("attentions_", "attentions.")
