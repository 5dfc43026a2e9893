"""Reference statistics on disk: features in one safetensors file, its preprocessing in the header."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.errors import HarnessError
from harness.frechet import Moments
from harness.metrics.base import Reference
from harness.weights import sha256_of


def reference_file(folder: Path) -> Path:
    """The reference beside a feature extractor's weights: `reference.safetensors`."""
    path = folder / "reference.safetensors"
    if not path.is_file():
        raise HarnessError(f"{path} is missing: features of the images to compare with ship beside the weights")
    return path


def write_reference(path: Path, features: np.ndarray, preprocessing: str, extractor: str = "") -> None:
    """Keeps features `[N, D]` (float16 or float32) with a word on how they were made.

    `extractor` is the SHA-256 of the weights that made them; features of other weights are refused later.
    """
    told = {"preprocessing": preprocessing, "extractor": extractor}
    save_file({"features": np.ascontiguousarray(features)}, path, metadata=told)


def read_reference(path: Path, extractor: str | None = None) -> Reference:
    """A reference with the moments of its features.

    Raises:
        HarnessError: the file is none, or other weights than `extractor` (a SHA-256) made it.
    """
    reference, made_by = _read(path, sha256_of(path))
    if extractor is not None and made_by not in ("", extractor):
        raise HarnessError(
            f"{path} holds features of other weights ({made_by[:12]}) than those beside it ({extractor[:12]}); "
            f"make it anew: python -m harness.metrics.distribution_shapes {path.parent}"
        )
    return reference


@lru_cache(maxsize=8)
def _read(path: Path, sha256: str) -> tuple[Reference, str]:
    try:
        with safe_open(path, framework="np") as file:
            features = np.asarray(file.get_tensor("features"), np.float32)
            told = file.metadata() or {}
        moments = Moments.of(features)
        made = told.get("preprocessing", "")
        reference = Reference(moments.mean, moments.covariance, moments.count, features, made, sha256)
        return reference, told.get("extractor", "")
    except (OSError, SafetensorError, ValueError) as error:
        raise HarnessError(f"{path} is no reference of features [N, D]: {error}") from error
