"""Random weights for a file in the layout of the official `sv3d_u.safetensors`, by a rule that needs no official code.

The keys and shapes of the tiny file are kept in layout.json, as the official classes have them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.identity import seed64

HERE = Path(__file__).parent


def layout(name: str) -> dict[str, list[int]]:
    """Shapes by key: `tiny` (that of the vectors), `tiny-temporal` (with a temporal decoder) or `sv3d_u` (published).

    They are kept as a tree, `{"a": {"b": [2, 3]}}` for `a.b`.
    """
    return dict(_flat(json.loads((HERE / "layout.json").read_text())[name], ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, list[int]]]:
    found = []
    for key, value in tree.items():
        found += [(prefix + key, value)] if isinstance(value, list) else _flat(value, f"{prefix}{key}.")
    return found


def tree(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What `layout` reads."""
    root: dict[str, Any] = {}
    for key, shape in shapes.items():
        *branches, leaf = key.split(".")
        place = root
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = list(shape)
    return root


def tensor(key: str, shape: Sequence[int]) -> Tensor:
    """The random weight of a key: float32, scaled so that activations keep their size, norms near one."""
    drawn = torch.randn(list(shape), generator=torch.Generator().manual_seed(seed64(f"sv3d/{key}")))
    if len(shape) >= 2:
        fan_in = shape[0] if key.endswith(".proj") else math.prod(shape[1:])
        return drawn / math.sqrt(fan_in)
    if key.endswith("weight"):  # of a norm
        return 1 + 0.2 * drawn
    return drawn if key.endswith("mix_factor") else 0.2 * drawn


def write(path: Path, name: str = "tiny") -> Path:
    """Writes a file of the layout `name` and returns its path."""
    save_file({key: tensor(key, shape) for key, shape in layout(name).items()}, path)
    return path
