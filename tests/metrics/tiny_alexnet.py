"""A random AlexNet in torchvision's checkpoint format, and the pairs of images of `tests/vectors/paired`."""

import json
from pathlib import Path

import numpy as np
import torch

CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
CLASSIFIER = (1, 4, 6)  # its linear layers; nothing here reads them, so theirs is a size of one
CASES = [
    ("grey", 64, 64), ("noise", 64, 64), ("ramp", 70, 50), ("shift", 48, 96), ("noise", 11, 11), ("noise", 31, 33),
    ("ramp", 224, 224), ("ramp", 300, 700), ("noise", 512, 512),
]


def write(folder: Path) -> Path:
    """Writes the checkpoint and the mark that it is random; returns the file's path."""
    rng = np.random.default_rng(0)
    state = {}
    for place, (out, into, size) in CONVOLUTIONS.items():
        spread = np.sqrt(2 / (into * size * size))
        state[f"features.{place}.weight"] = rng.normal(0, spread, (out, into, size, size)).astype(np.float32)
        state[f"features.{place}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
    for place in CLASSIFIER:
        state |= {f"classifier.{place}.{name}": np.zeros(1, np.float32) for name in ("weight", "bias")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "alexnet-owt-7be5be79.pth"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    for mark in (folder / "trained.json", path.with_name(path.name + ".json")):
        mark.write_text(json.dumps({"trained": False}))
    return path


def pair(kind: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and one like it, uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x, c = np.ogrid[:height, :width, :3]
    image = 127 + 60 * np.sin(x / 7 + c) + 50 * np.cos(y / 5 - c)
    if kind == "grey":
        image = np.repeat(image[..., :1], 3, axis=-1)
    if kind == "noise":
        image = rng.uniform(0, 255, (height, width, 3))
    other = image + {"shift": 20.0}.get(kind, rng.normal(0, 25, (height, width, 3)))
    if kind == "ramp":
        other = other * np.linspace(0.3, 1, width)[None, :, None]
    return tuple(np.clip(each, 0, 255).round().astype(np.uint8) for each in (image, other))  # type: ignore[return-value]
