"""Reference statistics on disk: our own safetensors file, and the formats in which papers publish theirs.

Our file holds `mean` and `covariance` (float64), `features` (float16 or float32, where kept), or only the last; its
header says the preprocessing, the digest of the extractor that made it, the count, and where the images came from.
Published: EDM2's `.pkl` (`fid` and `fd_dinov2`, each with mu and sigma), guided-diffusion's `.npz` (mu, sigma, mu_s,
sigma_s and images), clean-fid's `.npz` (mu and sigma, or `feats`), and bare mu and sigma in an `.npz`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from harness import artifacts, safe_pickle, weights
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.frechet import Moments
from harness.metrics.base import Reference
from harness.registry import nearest

# What is done to an image before the network sees it. Statistics of two of these must not be compared.
PREPROCESSINGS = {
    "tf1-bilinear-299": "TensorFlow 1's bilinear resize to 299 (torch-fidelity, EDM2, guided-diffusion, "
                        "clean-fid's legacy_tensorflow)",
    "clean-299": "Pillow's bicubic resize to 299 in float (clean-fid's default)",
    "pytorch-fid": "torch's bilinear resize to 299 without antialias, scaled to x / 127.5 - 1 (pytorch-fid, "
                   "clean-fid's legacy_pytorch)",
    "torchmetrics-299": "torch's bilinear resize to 299 with antialias (torchmetrics)",
    "dinov2-pil-224": "Pillow's bicubic resize to 224 (dgm-eval)",
    "dinov2-torch-224": "torch's bicubic resize to 224 with antialias, unrounded (EDM2)",
    "clip-336": "centre crop, Pillow's bicubic resize to 336 (CMMD)",
}
EDM2 = {"fid": "tf1-bilinear-299", "fd_dinov2": "dinov2-torch-224"}
CLEAN_FID = {"_clean_": "clean-299", "_legacy_tensorflow_": "tf1-bilinear-299", "_legacy_pytorch_": "pytorch-fid"}


def reference_file(folder: Path) -> Path:
    """The reference beside a feature extractor's weights: `reference.safetensors`."""
    path = folder / "reference.safetensors"
    if not path.is_file():
        raise HarnessError(f"{path} is missing: features of the images to compare with ship beside the weights")
    return path


def named_file(name: str, extractor: str) -> Path:
    """Where `harness reference NAME` keeps what an extractor made of its images."""
    return weights.home() / "references" / name / f"{extractor}.safetensors"


def shipped_file(name: str, extractor: str) -> Path:
    """Where what an extractor made of the images of `builtin:NAME` ships with this package."""
    return Path(str(resources.files("harness"))) / "shapes" / "references" / name / f"{extractor}.safetensors"


def find_reference(name: str, extractor: str, metric: str) -> Path:
    """The file that a metric's parameter `statistics` means: `builtin:NAME` for one that ships, a path, a published one
    in the catalogue of what `harness fetch` gets, or a name given to `harness reference`.

    Raises:
        HarnessError: there is none; the message says how to make it.
    """
    if name.startswith("builtin:"):
        shipped = shipped_file(name.removeprefix("builtin:"), extractor)
        if shipped.is_file():
            return shipped
        known = sorted(path.parent.name for path in shipped.parent.parent.glob(f"*/{extractor}.safetensors"))
        raise HarnessError(
            f"reference {name!r} does not ship with this package for {metric}: {nearest(name.partition(':')[2], known)}"
        )
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if name in artifacts.catalogue():
        return artifacts.file_of(name, ".pkl")
    made = named_file(name, extractor)
    if made.is_file():
        return made
    raise HarnessError(
        f"reference {name!r}: neither a file nor made here ({made}): "
        f"`harness reference {name} --images FOLDER --metric {metric}` makes it of images, or name a published file "
        f"(.pkl of EDM2, .npz of guided-diffusion or clean-fid)"
    )


def write_reference(
    path: Path, features: np.ndarray | None, preprocessing: str, extractor: str = "", *,
    moments: Moments | None = None, told: Mapping[str, str] | None = None,
) -> None:
    """Writes a reference, whole or not at all: features `[N, D]` (float16 or float32), moments, or both.

    `extractor` is the digest of what made the features (`DistributionMetric.extractor_digest`); features of other
    weights are refused later. `told` goes into the header as it is.
    """
    tensors: dict[str, np.ndarray] = {}
    count = 0
    if moments is not None:
        tensors |= {"mean": moments.mean, "covariance": moments.covariance}
        count = moments.count
    if features is not None:
        tensors["features"] = np.ascontiguousarray(features)
        count = len(features)
    header = {**(told or {}), "preprocessing": preprocessing, "extractor": extractor, "count": str(count)}
    write_atomic(path, save(tensors, metadata=header))


def read_reference(
    path: Path, extractor: str | None = None, *, preprocessing: str | None = None, stated: str | None = None
) -> Reference:
    """A reference from a file of ours or of a published format (`.safetensors`, `.pkl`, `.npz`).

    Args:
        extractor: the digest of what makes the features to be compared; a file that tells another is refused.
        preprocessing: the name of theirs; a file made with another is refused.
        stated: the user's word on the file's, where the file does not tell.

    Raises:
        HarnessError: the file is none, or was made otherwise, or tells nothing of its preprocessing.
    """
    reference, made_by = _read(path, weights.sha256_of(path), preprocessing, stated)
    if extractor is not None and made_by not in ("", extractor):
        raise HarnessError(
            f"{path} holds features of other weights ({made_by[:12]}) than those at hand ({extractor[:12]}); "
            f"make it anew: `harness reference`, or python -m harness.metrics.distribution_shapes {path.parent}"
        )
    if preprocessing is not None and reference.preprocessing != preprocessing:
        words = PREPROCESSINGS.get(reference.preprocessing, "")
        raise HarnessError(
            f"{path} was made with the preprocessing {reference.preprocessing!r}{f' ({words})' if words else ''}, "
            f"the metric uses {preprocessing!r}: their statistics cannot be compared. Take the metric of that "
            f"preprocessing, or make a reference for this one with `harness reference`"
        )
    return reference


@lru_cache(maxsize=8)
def _read(path: Path, sha256: str, wanted: str | None, stated: str | None) -> tuple[Reference, str]:
    if stated is not None and stated not in PREPROCESSINGS:
        raise HarnessError(f"preprocessing {stated!r} is not known; expected one of {', '.join(PREPROCESSINGS)}")
    try:
        if path.suffix == ".pkl":
            arrays, told = _edm2(path, wanted)
        elif path.suffix == ".npz":
            arrays, told = _npz(path)
        else:
            arrays, told = _own(path)
        made = told.get("preprocessing") or stated
        if made is None:
            raise HarnessError(
                f"{path} does not tell with which preprocessing it was made. Say so in the metric's parameter "
                f"`statistics_preprocessing`, one of {', '.join(PREPROCESSINGS)}"
            )
        if stated not in (None, made):
            raise HarnessError(f"{path} says that its preprocessing is {made!r}, not {stated!r}")
        return _reference(arrays, made, told, sha256), told.get("extractor", "")
    except HarnessError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise HarnessError(f"{path} is no reference of features [N, D] or of their moments: {error}") from error


def _reference(arrays: Mapping[str, Any], made: str, told: Mapping[str, str], sha256: str) -> Reference:
    features = np.asarray(arrays["features"], np.float32) if "features" in arrays else None
    if "mean" in arrays:
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mean", "covariance"))
    else:
        moments = Moments.of(arrays["features"] if features is None else features)
        mean, covariance = moments.mean, moments.covariance
    count = len(features) if features is not None else int(told.get("count", 0))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"a mean {mean.shape} and a covariance {covariance.shape} do not belong together")
    if features is not None and features.shape[1:] != mean.shape:
        raise ValueError(f"features {features.shape} and a mean {mean.shape} do not belong together")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("it holds values that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-6 * float(np.abs(covariance).max(initial=0))):
        raise ValueError("its covariance is not symmetric")
    return Reference(mean, covariance, count, features, made, sha256)


def _own(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        return arrays, file.metadata() or {}


def _edm2(path: Path, wanted: str | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of the two that the file may hold, the one with the preprocessing that is wanted."""
    content = safe_pickle.load(path)
    if not isinstance(content, dict):
        raise ValueError(f"a dictionary with {' or '.join(EDM2)} was expected, got {type(content).__name__}")
    entries = [name for name in EDM2 if isinstance(content.get(name), dict)]
    if not entries:
        raise ValueError(f"{' or '.join(EDM2)} was expected, found {', '.join(map(str, content)) or 'nothing'}")
    entry = next((name for name in entries if EDM2[name] == wanted), entries[0])
    told = {"preprocessing": EDM2[entry], "count": str(content.get("num_images", 0))}
    return {"mean": content[entry]["mu"], "covariance": content[entry]["sigma"]}, told


def _npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """guided-diffusion's is known by its second, spatial pair of moments; clean-fid's tells its mode in its name."""
    with np.load(path, allow_pickle=False) as file:
        names = {"features": "feats"} if "feats" in file else {"mean": "mu", "covariance": "sigma"}
        arrays = {ours: file[theirs] for ours, theirs in names.items()}
        spatial = "mu_s" in file
    mode = next((made for part, made in CLEAN_FID.items() if part in path.name), None)
    made = "tf1-bilinear-299" if spatial else mode
    return arrays, {"preprocessing": made} if made else {}
