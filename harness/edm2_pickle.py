"""Networks of EDM2 from the pickles that its authors publish, as plain data: their code is never run.

Such a pickle holds a dict of objects, each with its class's name, the source text of its module and its state. The
text is dropped unseen; of the state, plain values, arrays and the tree of modules are kept. `convert` writes a network
once as safetensors with its configuration; after that the pickle is not needed.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch.overrides import TorchFunctionMode

from harness import safe_pickle
from harness.diffusion.edm2_network import CLASS, WEIGHTS, EDM2Config, EDM2Network
from harness.download import WHERE
from harness.errors import HarnessError
from harness.files import rename, write_atomic, writing
from harness.safe_pickle import Names, Refused, Stateful, Unpickler, is_shape, short
from harness.weights import HUB_ID, sha256_of

VERSION = 6  # of the layout in which objects are kept, the only one published
MAGIC = [119547037146038801333356, 1001]  # with which torch's older format begins
STORAGES = {"HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}
DEPTH, MODULES = 8, 10_000  # more of them are no network of this kind
LEVELS = 8

# Settings by their published name: ours, the published default (none: must be there), and the largest that is believed.
SETTINGS: dict[str, tuple[str, Any, float]] = {
    "img_resolution": ("resolution", None, 1024), "img_channels": ("channels", None, 64),
    "label_dim": ("classes", None, 1_000_000), "model_channels": ("width", 192, 4096),
    "channel_mult": ("multipliers", [1, 2, 3, 4], 64), "num_blocks": ("blocks", 3, 32),
    "attn_resolutions": ("attention", [16, 8], 1024), "channels_per_head": ("head_width", 64, 4096),
    "dropout": ("dropout", 0, 1), "sigma_data": ("sigma_data", 0.5, 1000),
    "logvar_channels": ("uncertainty_width", 128, 4096),
}
FIXED = {  # what the network here does not vary
    "channel_mult_noise": None, "channel_mult_emb": None, "label_balance": 0.5, "concat_balance": 0.5,
    "resample_filter": [1, 1], "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256,
}
# The published encoder of latents: which autoencoder, and the statistics by which its latents are normalised.
ENCODER = {"vae_name": "stabilityai/sd-vae-ft-mse", "raw_mean": [5.81, 3.25, 0.12, -2.15],
           "raw_std": [4.17, 4.62, 3.71, 3.28], "final_mean": 0, "final_std": 0.5}


@dataclass(frozen=True, repr=False)
class Network:
    """What a pickle says of a network: float16 or float32 arrays by parameter, as `EDM2Network` calls them, and the
    content of the config.json to be (`harness.diffusion.edm2_folder` reads it)."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read(path: Path) -> Network:
    """The network in a published pickle, checked to be whole: every tensor that its settings call for, and no other.

    Raises:
        HarnessError: the file is refused (`safe_pickle.load`), or is no whole network of EDM2.
    """
    found = safe_pickle.load(path, _names(), "tensors and the states of EDM2's modules")
    try:
        if not isinstance(found, dict) or not isinstance(found.get("ema"), _Module):
            raise _Wrong("it has no network 'ema'")
        if found["ema"].name != "Precond":
            raise _Wrong(f"its network is a {short(found['ema'].name)}, expected EDM2's 'Precond'")
        config = _config(found["ema"])
        tensors = {name.removeprefix("unet."): tensor for name, tensor in _tensors(found["ema"])}
        _must_fit(config, tensors)
        if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
            raise _Wrong("its tensors are larger than the file")
        return Network({"_class_name": CLASS, **asdict(config), **_latents(found.get("encoder"), config)}, tensors)
    except Exception as error:  # settings and states of strangers can be anything
        why = error if isinstance(error, _Wrong) else f"{type(error).__name__}: {short(str(error))}"
        raise HarnessError(f"{path} is no network of EDM2 that can be used: {why}") from error


def convert(path: Path, folder: Path) -> None:
    """Writes the network of a pickle into a folder, config.json last: without it there is no network there.

    Raises:
        HarnessError: as `read`, or nothing can be written; nothing half written gets its name.
    """
    network = read(path)
    source = {"sha256": sha256_of(path)}
    target, temporary = folder / WEIGHTS, folder / f".{WEIGHTS}.tmp"
    with writing(target, WHERE):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as other files here; the library's own lets no other user read
            whole = {name: np.asarray(tensor, order="C") for name, tensor in network.tensors.items()}  # it needs that
            save_file(whole, temporary, metadata={"format": "pt"})
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            (folder / "config.json").unlink(missing_ok=True)  # of what is replaced
            rename(temporary, target)
        except SafetensorError as error:
            raise HarnessError(f"cannot write {target}: {error}. Free some space, or give another folder with {WHERE}; "
                               f"the same command begins the conversion anew") from error
        finally:
            temporary.unlink(missing_ok=True)
    text = json.dumps({**network.config, "source": source}, indent=2) + "\n"
    write_atomic(folder / "config.json", text.encode(), WHERE)


class _Wrong(Exception):
    """Why what a pickle holds is no network of EDM2."""


class _Dict(dict[Any, Any], Stateful):
    """A dict whose class has another name in the pickle; old versions of Python write an empty state after it."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if state not in (None, {}):
            raise Refused("it gives a state to a dict")


class _Module(Stateful):
    """An object of a class whose code is not looked at: its class's name, and its state."""

    name: Any = "ModuleDict"  # of those that a pickle makes without calling the class
    state: Any = None

    def __init__(self, name: Any = "ModuleDict", state: Any = None) -> None:
        self.name, self.state = name, state

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, key: str) -> dict[Any, Any]:
        """A dict in the state."""
        found = self.state.get(key) if isinstance(self.state, dict) else None
        if not isinstance(found, dict):
            raise _Wrong(f"a {short(self.name)} in it has no dict {key!r}")
        return found


class _Storage:
    """The values of a tensor, one after the other. Their memory belongs to the bytes read, and never moves."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def _names() -> Names:
    """What such a pickle names beside arrays, and what it gets."""

    def persistent(meta: Any) -> _Module:
        if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != VERSION:
            raise Refused(f"it holds an object that is not of version {VERSION} of the published layout")
        return _Module(meta.get("class_name"), meta.get("state"))  # and not its module_src

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        if not isinstance(storage, _Storage) or not is_shape(size) or not is_shape(stride) or not is_shape((offset,)):
            raise Refused("it holds a tensor that is not made of a storage, an offset, a size and a stride")
        values, count = storage.values, math.prod(size)
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=False))
        if len(size) != len(stride) or count > len(values) or (count and offset + last >= len(values)):
            raise Refused(f"it holds a tensor of size {size} and stride {stride} in a storage of {len(values)}")
        steps = [step * values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)

    def parameter(data: Any, *_: Any) -> np.ndarray:
        if not isinstance(data, np.ndarray):
            raise Refused("it holds a parameter that is no tensor")
        return data

    def ordered() -> _Dict:
        return _Dict()

    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent,
        ("torch.nn.modules.container", "ModuleDict"): _Module,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("collections", "OrderedDict"): ordered,
        ("dnnlib.util", "EasyDict"): _Dict,
    }


class _StorageReader(Unpickler):
    """Reads the pickles in which torch wraps the values of a storage."""

    def persistent_load(self, pid: Any) -> tuple[str, int]:
        """The type and the length of a storage."""
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage" or pid[5] is not None:
            raise Refused(f"it holds a storage described as {short(pid)}")
        kind, count = pid[1], pid[4]
        if kind not in tuple(STORAGES.values()) or not is_shape((count,)):
            raise Refused(f"it holds a storage of {short(kind)}")
        return kind, count


def _storage(data: Any) -> _Storage:
    """A storage from what torch's older format makes of it: five pickles (magic number, version, about the machine,
    type and length, key), the length again, the values."""
    if not isinstance(data, bytes):
        raise Refused("it holds a storage that is not made of bytes")
    file = io.BytesIO(data)
    names: Names = {("torch", name): kind for name, kind in STORAGES.items()}
    magic, version, machine, described, _ = (_StorageReader(file, names).load() for _ in range(5))
    if [magic, version] != MAGIC or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("it holds a storage in a format that is not known")
    if not isinstance(described, tuple) or len(described) != 2:
        raise Refused("it holds a storage that is none")
    kind, count = described
    start = file.tell() + 8
    if int.from_bytes(data[start - 8:start], "little") != count or len(data) - start != count * int(kind[-1]):
        raise Refused(f"it holds a storage of {count} numbers of type {kind} in {len(data) - start} bytes")
    return _Storage(np.frombuffer(data, kind, count, start))


def _tensors(top: _Module) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters and buffers of a module and of those in it, by name."""
    waiting, seen = [("", 0, top)], 0
    while waiting:
        prefix, depth, module = waiting.pop()
        seen += 1
        if depth > DEPTH or seen > MODULES:
            raise _Wrong(f"its modules lie more than {DEPTH} deep, or are more than {MODULES:,}")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in module.get(kind).items():
                if tensor is None:
                    continue
                if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
                    raise _Wrong(f"{prefix}{short(name)} is no tensor")
                yield prefix + name, tensor
        for name, inner in module.get("_modules").items():
            if inner is None:
                continue
            if not isinstance(name, str) or not isinstance(inner, _Module):
                raise _Wrong(f"{prefix}{short(name)} is no module")
            waiting.append((f"{prefix}{name}.", depth + 1, inner))


def _config(network: _Module) -> EDM2Config:
    """What the network was made with."""
    given = dict(network.get("_init_kwargs"))
    given.pop("use_fp16", None)
    if network.state.get("_init_args", ()) != ():
        raise _Wrong("it was made with settings that have no names")
    for name, value in FIXED.items():
        if _plain(given.pop(name, value)) != value:
            raise _Wrong(f"it was made with another {name} than {value}")
    values: dict[str, Any] = {}
    for name, (ours, default, largest) in SETTINGS.items():
        value = _plain(given.pop(name, default))
        several, fraction = isinstance(default, list), ours in ("dropout", "sigma_data")
        least = 0 if ours in ("dropout", "classes") else 1e-6
        for item in value if several and isinstance(value, list) and len(value) <= LEVELS else [value]:
            if type(item) not in ((int, float) if fraction else (int,)) or not least <= item <= largest:
                raise _Wrong(f"{name} is {short(value)}, expected {'numbers' if several else 'a number'} up to "
                             f"{largest:,}")
        values[ours] = tuple(value) if several else value
    if given:
        raise _Wrong(f"it was made with settings that are not known here: {short(sorted(map(str, given)))}")
    if not values["multipliers"] or values["resolution"] >> (len(values["multipliers"]) - 1) == 0:
        raise _Wrong("its settings call for more levels than its side can be halved")
    return EDM2Config(**values)


def _plain(value: Any) -> Any:
    """A tuple as the list that may stand in its place."""
    return list(value) if isinstance(value, tuple) else value


class _WithoutMemory(TorchFunctionMode):
    """Random tensors are one number seen many times. (The device "meta" does that too, but takes seconds to load.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.randn, torch.rand):
            return torch.zeros(()).expand(args)
        return func(*args, **(kwargs or {}))


def shapes(config: EDM2Config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a network, without making them."""
    with _WithoutMemory():
        return {name: tuple(value.shape) for name, value in EDM2Network(config).state_dict().items()}


def _must_fit(config: EDM2Config, tensors: dict[str, np.ndarray]) -> None:
    expected = shapes(config)
    for lacking, kind in ((expected.keys() - tensors.keys(), "missing"), (tensors.keys() - expected.keys(), "surplus")):
        if lacking:
            raise _Wrong(f"{len(lacking)} tensors are {kind}, the first is {short(min(lacking))}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise _Wrong(f"{name} has the shape {list(tensor.shape)}, its settings call for {list(expected[name])}")
        if tensor.dtype.str not in ("<f2", "<f4"):
            raise _Wrong(f"{name} is {tensor.dtype}, expected float16 or float32")
        if not np.isfinite(tensor).all():
            raise _Wrong(f"{name} holds values that are not finite")


def _latents(encoder: Any, config: EDM2Config) -> dict[str, Any]:
    """What the network's images are: pixels, or latents of an autoencoder with their statistics.

    A network of 4 channels without an encoder is taken for one of the published latents.
    """
    if encoder is None:
        name, settings = ("StandardRGBEncoder" if config.channels == 3 else "StabilityVAEEncoder"), {}
    elif isinstance(encoder, _Module):
        name, settings = encoder.name, encoder.get("_init_kwargs")
    else:
        name, settings = type(encoder).__name__, {}
    if name == "StandardRGBEncoder" and config.channels == 3:
        return {"vae": None, "latent_mean": [], "latent_std": []}
    told = {**ENCODER, **{key: _plain(value) for key, value in settings.items() if key != "batch_size"}}
    mean, std = told["raw_mean"], told["raw_std"]
    if (
        name != "StabilityVAEEncoder" or told.keys() != ENCODER.keys() or not _numbers(mean, config.channels)
        or not _numbers(std, config.channels) or min(std) <= 0 or (told["final_mean"], told["final_std"]) != (0, 0.5)
        or not isinstance(told["vae_name"], str) or not re.fullmatch(HUB_ID, told["vae_name"])
    ):
        raise _Wrong(f"its encoder is a {short(name)} with settings that are not known here, or not for "
                     f"{config.channels} channels")
    if isinstance(encoder, _Module):
        scale = np.float32(0.5) / np.array(std, np.float32)
        for key, value in (("scale", scale), ("bias", -np.array(mean, np.float32) * scale)):
            held = encoder.state.get(key, value)
            if not isinstance(held, np.ndarray) or held.shape != value.shape or not np.allclose(held, value, 1e-5):
                raise _Wrong(f"its encoder has another {key} than its settings give")
    return {"vae": told["vae_name"], "latent_mean": mean, "latent_std": std}


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(v) in (int, float) for v in value)
