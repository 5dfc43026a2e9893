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


def write_reference(path: Path, features: np.ndarray, preprocessing: str) -> None:
    """Keeps features `[N, D]` (float16 or float32) with a word on how they were made."""
    save_file({"features": np.ascontiguousarray(features)}, path, metadata={"preprocessing": preprocessing})


def read_reference(path: Path) -> Reference:
    """A reference with the moments of its features. Raises HarnessError for a file that is none."""
    return _read(path, sha256_of(path))


@lru_cache(maxsize=8)
def _read(path: Path, sha256: str) -> Reference:
    try:
        with safe_open(path, framework="np") as file:
            features = np.asarray(file.get_tensor("features"), np.float32)
            preprocessing = (file.metadata() or {}).get("preprocessing", "")
        moments = Moments.of(features)
        return Reference(moments.mean, moments.covariance, moments.count, features, preprocessing, sha256)
    except (OSError, SafetensorError, ValueError) as error:
        raise HarnessError(f"{path} is no reference of features [N, D]: {error}") from error
