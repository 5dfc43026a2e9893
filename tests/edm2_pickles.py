"""Writes pickles in the layout of EDM2's published networks, from tensors and settings alone, without foreign code."""

import collections
import copyreg
import io
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness import edm2_pickle
from harness.diffusion.edm2_network import Block, EDM2Config, EDM2Network, Fourier, MPConv

CALLED = {EDM2Network: "UNet", Fourier: "MPFourier", MPConv: "MPConv", Block: "Block"}  # here, and in the pickles
NETWORKS: dict[str, dict[str, Any]] = {  # the tiny networks of tests and vectors, by their published settings
    "labels": {"img_resolution": 8, "img_channels": 4, "label_dim": 5, "model_channels": 16, "channel_mult": [1, 2],
               "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8, "dropout": 0.1, "use_fp16": True},
    "no-labels": {"img_resolution": 8, "img_channels": 4, "label_dim": 0, "model_channels": 8, "channel_mult": [1, 2],
                  "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8},
    "pixels": {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "model_channels": 8, "channel_mult": [1, 1],
               "num_blocks": 1, "attn_resolutions": [], "channels_per_head": 8, "logvar_channels": 16},
}


class EasyDict(dict[str, Any]):
    """A dict that is pickled under the name of the official one."""


class Persistent:
    """An object whose class travels as the source text of its module."""

    def __init__(self, name: str, state: Any, source: str = "raise RuntimeError('this text was run')") -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}


def reconstruct(_: object) -> None:
    """Stands for the official function, which runs the source text; only ever named."""
    raise AssertionError("called")


EasyDict.__module__ = "dnnlib.util"
reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


class Writer(pickle._Pickler):
    """Names functions and classes without importing them; `old` writes as Python 3.9 and torch 2.1 did."""

    def __init__(self, file: io.BytesIO, protocol: int, old: bool) -> None:
        super().__init__(file, protocol)
        self.old = old

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Persistent):
            return reconstruct, (obj.meta,)
        if type(obj) in CALLED:
            bare = nn.Module().__dict__
            state = {key: value for key, value in vars(obj).items() if key in bare}
            if self.old:
                state |= {key: collections.OrderedDict(value) for key, value in state.items() if type(value) is dict}
            extra = {"_init_args": (), "_init_kwargs": {}}
            return reconstruct, (Persistent(CALLED[type(obj)], state | extra).meta,)
        if isinstance(obj, EasyDict):
            return copyreg.__newobj__, (EasyDict,), {} if self.old else None, None, iter(obj.items())  # type: ignore[attr-defined]
        return NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = obj.__module__, name or obj.__qualname__
        if self.old:
            module = module.replace("numpy._core", "numpy.core")
        for text in (module, name):
            self.save(text)  # type: ignore[attr-defined]
        self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    dispatch = {  # noqa: RUF012
        **pickle._Pickler.dispatch, types.FunctionType: save_global, types.BuiltinFunctionType: save_global,
    }


def dumps(content: Any, *, protocol: int = 4, old: bool = False) -> bytes:
    """A pickle of anything, official names for what stands for official objects here."""
    file = io.BytesIO()
    Writer(file, protocol, old).dump(content)
    return file.getvalue()


def config(settings: dict[str, Any]) -> EDM2Config:
    """Our configuration of a network of `NETWORKS`."""
    return EDM2Config(
        resolution=settings["img_resolution"], channels=settings["img_channels"], classes=settings["label_dim"],
        width=settings["model_channels"], multipliers=tuple(settings["channel_mult"]), blocks=settings["num_blocks"],
        attention=tuple(settings["attn_resolutions"]), head_width=settings["channels_per_head"],
        dropout=settings.get("dropout", 0), uncertainty_width=settings.get("logvar_channels", 128),
    )


def tensors(settings: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float16 weights by name, the same with every version of torch."""
    rng = np.random.default_rng(seed)
    shapes = edm2_pickle.shapes(config(settings))
    return {
        name: torch.from_numpy(np.array(rng.standard_normal(shapes[name]), np.float16)) for name in sorted(shapes)
    }


def encoder(settings: dict[str, Any]) -> Persistent:
    """What the official training keeps beside a network of these settings."""
    if settings["img_channels"] == 3:
        return Persistent("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}})
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    return Persistent("StabilityVAEEncoder", {
        "_init_args": (), "_init_kwargs": {}, "vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale,
        "bias": np.float32(0) - np.float32([5.81, 3.25, 0.12, -2.15]) * scale, "batch_size": 8, "_vae": None,
    })


def content(settings: dict[str, Any], seed: int = 0, weights: dict[str, torch.Tensor] | None = None) -> EasyDict:
    """What the file of a network holds, ready for `dumps`."""
    network = EDM2Network(config(settings)).half().eval().requires_grad_(False)
    network.load_state_dict(weights or tensors(settings, seed))
    outside = {name: network._modules.pop(name) for name in ("logvar_fourier", "logvar_linear")}
    state = {
        **nn.Module().__dict__, "training": False, "_modules": {"unet": network, **outside}, "sigma_data": 0.5,
        **{key: settings[key] for key in ("img_resolution", "img_channels", "label_dim")}, "use_fp16": True,
        "_init_args": (), "_init_kwargs": dict(settings),
    }
    loss = {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
    return EasyDict(
        encoder=encoder(settings), loss_fn=Persistent("EDM2Loss", loss), ema=Persistent("Precond", state),
        dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", path="images.zip", use_labels=True),
    )


def write(path: Path, name: str = "labels", **options: Any) -> Path:
    """Writes the file of a network of `NETWORKS`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dumps(content(NETWORKS[name]), **options))
    return path
