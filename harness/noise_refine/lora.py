"""The refiner: a model's own UNet with a LoRA, whose output is zero before the first training step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialised
from torch import Tensor, nn

from harness.diffusion.base import Diffusion
from harness.diffusion.folders import LORA_FILE
from harness.errors import HarnessError
from harness.files import write_atomic

ADAPTER = "refiner"
LAYERS = {  # names of a UNet's modules in diffusers, by the paper's words (section 4)
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    "convolution": ("conv_in", "conv1", "conv2", "conv_shortcut", "conv"),  # the last: up- and downsampling
    "feed-forward": ("ff.net.0.proj", "ff.net.2"),
}
LAST = "conv_out"


def refiner(model: Diffusion, rank: int, layers: Sequence[str]) -> Diffusion:
    """The model once more, its UNet with a fresh LoRA of scale 1 (alpha = rank), trainable, in float32.

    It shares every other weight with `model`. The LoRA always has the UNet's last convolution, and begins with
    what cancels it (a convolution to C channels has rank C), so that the refiner predicts zero, but for that
    layer's bias, which no plain LoRA can reach; all other layers begin as a LoRA does, changing nothing. So the
    noise `x + refiner(x)` begins as x, whatever the network predicts, and the file stays a plain LoRA.

    Raises:
        HarnessError: a model without such a UNet, or a rank below the latent's channels.
    """
    if not hasattr(getattr(model, "unet", None), "add_adapter"):
        raise HarnessError(f"family {model.family!r} has no UNet of the diffusers library that could take a LoRA")
    channels = model.latent_shape[0]
    if rank < channels:
        raise HarnessError(f"lora.rank must be at least {channels}, the latent's channels, got {rank}: with less the "
                           f"refiner cannot begin at zero")
    from peft import LoraConfig

    other = copy.deepcopy(model, {id(weight): weight for weight in _weights(model)})
    unet: Any = other.unet  # type: ignore[attr-defined]
    targets = sorted({LAST, *(name for layer in layers for name in LAYERS[layer])})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same beginning on every process
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), ADAPTER)
    for parameter in parameters(other):
        parameter.data = parameter.data.float()
    last = unet.get_submodule(LAST)
    with torch.no_grad():
        last.lora_A[ADAPTER].weight[:channels] = last.base_layer.weight.float()
        last.lora_B[ADAPTER].weight[:, :channels, 0, 0] = -torch.eye(channels)
    return other


def _weights(model: Diffusion) -> list[Tensor]:
    modules = [part for part in (*vars(model).values(), model.unet) if isinstance(part, nn.Module)]  # type: ignore[attr-defined]
    return [weight for module in modules for weight in (*module.parameters(), *module.buffers())]


def parameters(model: Diffusion) -> list[nn.Parameter]:
    """The LoRA's own weights, in order."""
    return [p for name, p in model.unet.named_parameters() if "lora_" in name]  # type: ignore[attr-defined]


def save(model: Diffusion, folder: Path) -> None:
    """Writes `pytorch_lora_weights.safetensors` in float16, as `save_lora_weights` of the pipelines does.

    Without a record of the LoRA's configuration, which other versions of PEFT may refuse: names and shapes say all,
    since alpha is the rank.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.unet, adapter_name=ADAPTER)  # type: ignore[attr-defined]
    weights = {f"unet.{name}": weight.half().cpu().contiguous() for name, weight in state.items()}
    write_atomic(folder / LORA_FILE, serialised(weights, metadata={"format": "pt"}))
