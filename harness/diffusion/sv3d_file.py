"""The official single file of SV3D-U as a folder in the layout of `diffusers` (`sv3d_names` says what goes where)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.diffusion.sv3d_names import EMBEDDED, NOT_USED, UNET, Part, Shapes, as_weight, clip, unet, vae
from harness.download import WHERE, must_fit
from harness.errors import HarnessError
from harness.files import write_atomic, writing
from harness.metrics.clip_pixels import MEAN, STD
from harness.weights import is_trained, sha256_of

FILE = "sv3d_u.safetensors"
OTHERS = {  # how wide the label embedding is in the models of the same layout
    768: "Stable Video Diffusion (told frames a second and motion)",
    1280: "SV3D-P (told elevations and azimuths)",
}
PICKLED = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin, new and old; a safetensors file may as well
INDEX = "model_index.json"


def convert(path: Path, folder: Path) -> None:
    """Writes the model in the file `path` as `folder`, whose model_index.json comes last: with it the folder is whole.

    Tensors are mapped from the file, not read into memory; their dtype stays. Configurations follow from the shapes.

    Raises:
        HarnessError: the file is a pickle, damaged, of another model (which one, where that is known), or lacks keys or
            has others; or the disk has no room for as much again. Nothing is written.
        StoreError: the folder cannot be written.
    """
    with _opened(path) as file:
        found = parts({key: file.get_slice(key).get_shape() for key in file.keys()}, path)  # noqa: SIM118
        must_fit(folder, path.stat().st_size, str(folder), WHERE, "written")
        with writing(folder, WHERE):
            (folder / INDEX).unlink(missing_ok=True)
        for part in found:
            _write(part, file, folder / part.folder)
    _describe(found, folder, path)


def _opened(path: Path) -> Any:
    """The file, its header read."""
    pickled = f"{path} is a pickle, which could run code when opened: expected {FILE}"
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise HarnessError(pickled)
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and _begins_as_a_pickle(path):
            raise HarnessError(pickled) from error
        raise HarnessError(f"{path} is no whole safetensors file ({error}): get it again from where it came") from error


def _begins_as_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLED)


def parts(shapes: Shapes, path: Path) -> list[Part]:
    """The networks of a file with these keys and shapes, each of which has its place.

    Raises:
        HarnessError: as `convert`; it names `path`.
    """
    try:
        return _parts(shapes, path)
    except KeyError as error:
        raise HarnessError(
            f"{path} is not whole: it lacks the key {error.args[0]!r}; get it again from where it came"
        ) from error
    except (IndexError, ValueError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        raise HarnessError(f"{path}: the shapes of its weights do not fit together ({error}); expected {FILE}"
                           ) from error


def _parts(shapes: Shapes, path: Path) -> list[Part]:
    _must_be_sv3d_u(shapes, path)
    found = [unet(shapes), vae(shapes), clip(shapes)]
    wanted = {source for part in found for source in part.sources.values()}
    lacking = sorted(wanted - shapes.keys())
    surplus = sorted(key for key in shapes.keys() - wanted if not key.startswith(NOT_USED))
    if lacking or surplus:
        told = " and ".join(
            f"{what} {len(keys)} keys (first {', '.join(map(repr, keys[:3]))})"
            for what, keys in (("lacks", lacking), ("has besides", surplus)) if keys
        )
        raise HarnessError(f"{path} is not whole, or not SV3D-U: it {told}; expected the keys of {FILE}")
    for part in found:
        for name, weight in part.network.state_dict().items():
            source = part.sources[name]
            if as_weight(name, torch.empty(list(shapes[source]), device="meta")).shape != weight.shape:
                raise HarnessError(
                    f"{path}: {source!r} has the shape {list(shapes[source])}, which does not fit the other keys "
                    f"({part.folder}/ wants {list(weight.shape)} as {name!r}); expected {FILE}"
                )
    return found


def _must_be_sv3d_u(shapes: Shapes, path: Path) -> None:
    """Tells apart what a person may have at hand."""
    if not any(key.startswith(UNET) for key in shapes):
        raise HarnessError(
            f"{path} has no keys that begin with {UNET!r} (its first is {min(shapes, default=None)!r}): expected "
            f"{FILE} as Stability publishes it; a folder in the layout of the diffusers library needs no conversion"
        )
    if not any(key.startswith(UNET) and ".time_stack." in key for key in shapes):
        raise HarnessError(f"{path} is a model of still images, its UNet has no temporal layers: expected {FILE}")
    width = shapes.get(f"{UNET}label_emb.0.0.weight", [0, 0])[1]
    if width != EMBEDDED:
        raise HarnessError(
            f"{path} is {OTHERS.get(width, 'a model that is not known here')}: its label embedding is {width} wide, "
            f"that of SV3D-U {EMBEDDED}; expected {FILE}"
        )


def _write(part: Part, file: Any, folder: Path) -> None:
    """Writes a network's folder, whole or not at all, in the place of an earlier one."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(folder, WHERE):
        try:
            temporary.mkdir(parents=True)
            config = temporary / "config.json"
            config.write_text(json.dumps(part.config, indent=2) + "\n")
            weights = temporary / part.weights
            save_file(
                {name: as_weight(name, file.get_tensor(source)).contiguous() for name, source in part.sources.items()},
                weights, metadata={"format": "pt"},
            )
            weights.chmod(config.stat().st_mode)  # the library's files are their owner's alone
            with weights.open("rb") as written:
                os.fsync(written.fileno())
            shutil.rmtree(folder, ignore_errors=True)  # of a conversion that was broken off
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well


def _describe(found: list[Part], folder: Path, path: Path) -> None:
    """Writes the files without weights, as `StableVideoDiffusionPipeline` of `diffusers` has them."""
    index: dict[str, Any] = {
        "_class_name": "StableVideoDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "source": {"sha256": sha256_of(path)},
    }
    for part in found:
        cls = type(part.network)
        index[part.folder] = [cls.__module__.partition(".")[0], cls.__name__]
    if not is_trained(path):
        index["trained"] = False
    side = next(part.network.config.image_size for part in found if part.folder == "image_encoder")
    files: dict[str, dict[str, Any]] = {
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
            "do_center_crop": False, "do_rescale": True, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
            "resample": 3,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "sigma_min": 0.002,
            "sigma_max": 700.0, "use_karras_sigmas": True, "timestep_type": "continuous", "timestep_spacing": "leading",
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
        },
        INDEX: index,
    }
    for name, content in files.items():
        write_atomic(folder / name, (json.dumps(content, indent=2) + "\n").encode(), WHERE)
