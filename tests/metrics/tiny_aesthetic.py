"""Random layers of the aesthetic predictor in its file's form."""

from pathlib import Path

import torch

SIZES = (1024, 128, 64, 16, 1)
PLACES = {"linear": (0, 2, 4, 6, 7), "relu": (0, 3, 6, 9, 11)}


def write(folder: Path, kind: str = "linear", dimension: int = 64, seed: int = 0) -> Path:
    """A `.pth` file of either kind, for embeddings of a dimension; returns it."""
    generator = torch.Generator().manual_seed(seed)
    state, before = {}, dimension
    for place, after in zip(PLACES[kind], SIZES, strict=True):
        state[f"layers.{place}.weight"] = torch.randn(after, before, generator=generator) * (2 / before) ** 0.5
        state[f"layers.{place}.bias"] = torch.randn(after, generator=generator) * 0.3
        before = after
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.pth"
    torch.save(state, path)
    path.with_name(path.name + ".json").write_text('{"trained": false}')
    return path
