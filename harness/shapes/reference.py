"""Reference statistics of the shapes world: features of ground-truth renders of the held-out prompts.

Kept beside the vision tower as ``shapes-clip/reference.safetensors`` with ``mean`` [128] and ``covariance`` [128, 128]
(float64, unbiased) over all renders and ``features`` [1000, 128] (float32 values stored as float16) of evenly spread
ones: projected image embeddings of ``shapes-clip``, not normalised. The file's metadata says how they were made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.shapes.evaluate import WEIGHTS, image_features, reference_images

NUMBER, KEPT = 4800, 1000


@torch.no_grad()
def features(images: NDArray[np.uint8], weights: str | Path = WEIGHTS / "shapes-clip") -> NDArray[np.float32]:
    """Projected, unnormalised image embeddings float32 [n, 128] of uint8 images [n, 64, 64, 3]."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(weights).float().eval()
    rows = []
    for i in range(0, len(images), 100):
        pixels = torch.from_numpy(images[i : i + 100]).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows.append(image_features(model, pixels, unit=False).numpy())
    return np.concatenate(rows)


def write_reference(weights: str | Path = WEIGHTS / "shapes-clip", number: int = NUMBER) -> Path:
    """Compute and write the reference file beside the tower; returns its path."""
    from safetensors.numpy import save_file

    x = features(reference_images(number), weights).astype(np.float64)
    tensors: dict[str, Any] = {
        "mean": x.mean(0),
        "covariance": np.cov(x, rowvar=False),
        "features": x[np.linspace(0, len(x) - 1, KEPT).round().astype(int)].astype(np.float16),
    }
    model_hash = hashlib.sha256((Path(weights) / "model.safetensors").read_bytes()).hexdigest()
    about = {
        "n": len(x),
        "images": "harness.shapes.evaluate.reference_images: renders of the 240 shapes prompts in turn",
        "extractor": "shapes-clip, projected image embeddings, not normalised, float32",
        "model_sha256": model_hash,
        "preprocessing": "64x64 uint8 RGB, value / 127.5 - 1; no resizing",
    }
    path = Path(weights) / "reference.safetensors"
    save_file(tensors, path, metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    return path
