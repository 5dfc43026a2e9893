"""A random Inception in torch-fidelity's file format. Its sizes are fixed by the code that reads it, so it is not
tiny: 96 MB, from a seed in under a second. And images to show it."""

import math
from pathlib import Path

import numpy as np
import torch

from harness.metrics.inception import network


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors, named as in the checkpoint; features differ from image to image, logits enough for a score."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(1)
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = 1 + 0.1 * drawn.abs()
        elif len(shape) == 1:
            found[name] = 0.1 * drawn
        else:  # He et al. 2015
            found[name] = drawn * math.sqrt(2 / math.prod(shape[1:]))
    found["fc.weight"] = torch.randn(1008, 2048, generator=generator) / 4
    found["fc.bias"] = torch.randn(1008, generator=generator)
    return found


def write(folder: Path, seed: int = 0) -> Path:
    """The file, with the mark of random weights beside it; returns its path."""
    path = folder / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(tensors(seed), path)
    path.with_name(path.name + ".json").write_text('{"trained": false}')
    return path


def pictures(count: int, seed: int) -> np.ndarray:
    """uint8 `[count, 1, 64, 64, 3]`: 8 x 8 blocks of random colours, some images duller and some brighter."""
    rng = np.random.RandomState(seed)
    blocks = rng.randint(0, 256, (count, 1, 8, 8, 3)) * rng.rand(count, 1, 1, 1, 3) + 60 * rng.rand(count, 1, 1, 1, 1)
    return np.asarray(blocks.clip(0, 255).repeat(8, axis=2).repeat(8, axis=3), dtype=np.uint8)
