"""Folders of EDM2 networks, one network each: what is in them, what is wrong with them, and the network out of them.

`config.json` holds the fields of `EDM2Config`, `_class_name` "EDM2Network", and how latents become images: `vae` (a Hub
id or `builtin:NAME` whose `vae/`, or whose own root, is an autoencoder; null where the network makes RGB pixels) with
`latent_mean` and `latent_std`, the statistics of the autoencoder's raw latents. `"trained": false` marks random
weights, `source` says what a folder was converted from; any other key is refused. The parameters lie in
`diffusion_pytorch_model.safetensors`, called as `EDM2Network.state_dict()` calls them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from harness import weights as weight_files
from harness.diffusion import folders
from harness.diffusion.edm2_network import CLASS, WEIGHTS, Block, EDM2Config, EDM2Network
from harness.errors import HarnessError
from harness.registry import nearest

VAE = "vae"  # the sub-folder of an autoencoder in a pipeline
KEYS = {field.name for field in fields(EDM2Config)}
IMAGES = ("vae", "latent_mean", "latent_std")
NOTES = ("_class_name", "trained", "source")  # what a folder says of itself; `source` is a conversion's


@dataclass(frozen=True)
class EDM2Settings:
    """The content of a folder's `config.json`."""

    network: EDM2Config
    vae: str | None
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()


def read(folder: Path) -> EDM2Settings:
    """The settings of a folder.

    Raises:
        HarnessError: there is no `config.json`, or it is not one of EDM2, or a key in it is unknown, or a value makes
            no sense.
    """
    path = folder / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HarnessError(f"{path} is missing: expected a folder with config.json and {WEIGHTS} (docs/models.md)"
                           ) from error
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path} cannot be read: {error}") from error
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != CLASS:
        raise HarnessError(f"{path}: _class_name is {kind!r}, expected {CLASS!r}: these are no weights of EDM2")
    known = [*sorted(KEYS), *IMAGES, *NOTES]
    for key in found:
        if key not in known:  # a misspelt key would leave its default, and make other images
            raise HarnessError(f"{path}: unknown key {key!r}: {nearest(key, known)}")
    try:
        network = pydantic.TypeAdapter(EDM2Config).validate_python({key: found[key] for key in KEYS & found.keys()})
        settings = pydantic.TypeAdapter(EDM2Settings).validate_python({
            "network": network, **{key: found[key] for key in IMAGES if key in found},
        })
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise HarnessError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
                           ) from error
    wrong = _wrong(settings)
    if wrong:
        raise HarnessError(f"{path}: {wrong}")
    return settings


def _wrong(settings: EDM2Settings) -> str | None:
    """Why these settings make no network, or no images."""
    network, vae = settings.network, settings.vae
    for key in ("resolution", "channels", "width", "blocks", "head_width", "uncertainty_width"):
        if getattr(network, key) < 1:
            return f"{key} must be at least 1, got {getattr(network, key)}"
    if network.classes < 0:
        return f"classes must be 0 (unconditional) or more, got {network.classes}"
    if not network.multipliers or min(network.multipliers) < 1:
        return f"multipliers must be whole numbers from 1, got {list(network.multipliers)}"
    halvings = 2 ** (len(network.multipliers) - 1)
    if network.resolution % halvings:
        return f"resolution {network.resolution} cannot be halved {len(network.multipliers) - 1} times"
    if vae is None:
        return None if network.channels == 3 else f"channels must be 3 without a vae (RGB), got {network.channels}"
    if not (vae.startswith("builtin:") or re.fullmatch(weight_files.HUB_ID, vae)):
        return f"vae must be a Hub id ('organisation/name'), 'builtin:NAME' or null (RGB pixels), got {vae!r}"
    for key in ("latent_mean", "latent_std"):
        values = getattr(settings, key)
        if len(values) != network.channels or not all(map(math.isfinite, values)):
            return f"{key} must be {network.channels} numbers, one for each channel, got {list(values)}"
    return None if min(settings.latent_std) > 0 else f"latent_std must be above 0, got {list(settings.latent_std)}"


def problems(folder: Path) -> list[str]:
    """What is wrong with a folder, from its configuration and the header of its weights alone."""
    try:
        config = read(folder).network
    except HarnessError as error:
        return [str(error)]
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return [f"{path} is missing (pickled weights are not opened: `harness fetch` converts the published ones)"]
    except (SafetensorError, OSError) as error:
        return [f"{path} is damaged or not whole ({error}); put a good copy in its place"]
    network = without_weights(config)
    uneven = [block.outputs for block in network.modules() if isinstance(block, Block) and block.heads
              and block.outputs % block.heads]
    if uneven:
        return [f"{folder}: {uneven[0]} channels cannot be divided among heads of head_width {config.head_width}"]
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = []
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            found.append(f"{name} is missing")
        elif name not in expected:
            found.append(f"{name} has no place in a network of this config.json")
        elif shapes[name] != expected[name]:
            found.append(f"{name} is of shape {list(shapes[name])}, by config.json it is {list(expected[name])}")
    return [f"{path}: {found[0]} (and {len(found) - 1} further weights do not fit)"] if found else []


def network_problems(folder: Path, other: Path) -> list[str]:
    """Why the network of the folder `other` cannot guide that of `folder`: [] where it can."""
    found = problems(other)
    if found:
        return found
    ours, theirs = read(folder), read(other)
    pairs = {
        "resolution": (ours.network.resolution, theirs.network.resolution),
        "channels": (ours.network.channels, theirs.network.channels),
        "latent_mean": (ours.latent_mean, theirs.latent_mean),
        "latent_std": (ours.latent_std, theirs.latent_std),
    }
    for key, (one, another) in pairs.items():
        if one != another:
            found.append(f"{other} has {key} {_plain(another)}, the model {_plain(one)}: both must take the same "
                         f"latents")
    if theirs.network.classes not in (0, ours.network.classes):
        found.append(f"{other} knows {theirs.network.classes} classes, the model {ours.network.classes}: a guide has "
                     f"the same classes or none")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def without_weights(config: EDM2Config) -> EDM2Network:
    """A network of this configuration that has shapes alone, for inference."""
    with torch.device("meta"):
        return EDM2Network(config).eval().requires_grad_(False)


def open_network(folder: Path, dtype: torch.dtype, device: torch.device) -> EDM2Network:
    """The network of a folder without `problems`, for inference in `dtype`."""
    network = without_weights(read(folder).network)
    network.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), assign=True)
    return network.bake(dtype)


def autoencoder(source: str, fetch: bool = True) -> Path:
    """The folder of the autoencoder that `vae` names.

    Raises:
        HarnessError: there is none, or it is of another kind.
        Lacking: it is not on this machine, and `fetch` is False.
    """
    folder = weight_files.part_of(weight_files.resolve(source, fetch=fetch), VAE)
    try:
        kind = folders.config(folder.parent, folder.name).get("_class_name")
    except (OSError, ValueError) as error:
        raise HarnessError(f"vae {source!r}: {folder}/config.json cannot be read: {error}") from error
    if kind not in folders.AUTOENCODERS:
        raise HarnessError(f"vae {source!r}: {folder} is a {kind!r}, expected {' or '.join(folders.AUTOENCODERS)}")
    return folder
