"""LPIPS: how different two images look, from AlexNet's features (Zhang et al. 2018, CVPR; version 0.1)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics.base import PairedMetric
from harness.registry import HOW
from harness.weights import sha256_of

# AlexNet's five convolutions: place in torchvision's `features`, output channels, stride, padding, whether the
# features before it are max-pooled. Each ReLU after one is a tap.
LAYERS = (
    (0, 64, 4, 2, False), (3, 192, 1, 2, True), (6, 384, 1, 1, True), (8, 256, 1, 1, False), (10, 256, 1, 1, False),
)
SMALLEST = 31  # pixels a side: what is left after the second pooling is one pixel
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in [-1, 1]
EPSILON = 1e-10


@dataclass(frozen=True)
class LPIPS(PairedMetric):
    """0 (the same image) upwards, in practice to about 1; lower is better. Both images are taken at the size that they
    come in, which is one: the harness brings a prompt's own picture to the sample's (`harness.images.decode`).

    `weights` is torchvision's AlexNet (ImageNet); the linear heads are those of version 0.1 of the `lpips` package,
    as torchmetrics ships them. Equals `lpips.LPIPS(net="alex")`; torchmetrics' epsilon differs by less than 1e-6
    for features of usual size.
    """

    name: ClassVar[str] = "lpips"
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = False

    weights: str = "alexnet"
    batch: int = field(default=16, metadata=HOW)

    def artifacts(self) -> dict[str, str]:
        """The trunk."""
        return {"weights": self.weights}

    def content(self) -> dict[str, Any]:
        """The hashes of trunk and heads."""
        return super().content() | {"heads": sha256_of(_heads_file())}

    def open(self, device: str = "cpu") -> None:
        """Loads trunk and heads."""
        trunk, heads = _trunk(artifacts.file_of(self.weights, ".pth")), _load(_heads_file())
        object.__setattr__(self, "_trunk", {name: tensor.to(device) for name, tensor in trunk.items()})
        object.__setattr__(
            self, "_heads", [heads[f"lin{i}.model.1.weight"].to(device) for i in range(len(LAYERS))]
        )

    @torch.no_grad()
    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The distance of each pair, computed in float32. Raises ValueError where an image is too small."""
        height, width = images.shape[1:3]
        if min(height, width) < SMALLEST:
            raise ValueError(f"lpips needs images of at least {SMALLEST} x {SMALLEST} pixels, got {width} x {height}")
        heads: list[Tensor] = self.loaded("_heads")
        both = zip(heads, self._taps(images), self._taps(references), strict=True)
        parts = [functional.conv2d((_unit(a) - _unit(b)) ** 2, head).mean(dim=(1, 2, 3)) for head, a, b in both]
        return np.asarray(torch.stack(parts).sum(dim=0).double().cpu().numpy())

    def _taps(self, images: np.ndarray) -> Iterator[Tensor]:
        """The features of uint8 `[N, H, W, 3]` after each ReLU."""
        trunk: dict[str, Tensor] = self.loaded("_trunk")
        device = trunk["features.0.weight"].device
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        for place, _, stride, padding, pooled in LAYERS:
            if pooled:
                x = functional.max_pool2d(x, 3, 2)
            weight, bias = trunk[f"features.{place}.weight"], trunk[f"features.{place}.bias"]
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            yield x


def _unit(x: Tensor) -> Tensor:
    """Features of length 1 at every pixel."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)


def _trunk(path: Path) -> dict[str, Tensor]:
    """The convolutions of torchvision's AlexNet checkpoint; its classifier is not needed.

    Raises:
        HarnessError: no checkpoint, or one of another network.
    """
    state = {name: tensor for name, tensor in _load(path).items() if not name.startswith("classifier.")}
    sizes = (11, 5, 3, 3, 3)
    wanted: dict[str, tuple[int, ...]] = {}
    before = 3
    for (place, channels, *_), size in zip(LAYERS, sizes, strict=True):
        wanted |= {f"features.{place}.weight": (channels, before, size, size), f"features.{place}.bias": (channels,)}
        before = channels
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise HarnessError(
            f"{path} is not torchvision's AlexNet: missing, surplus or of another shape: {', '.join(wrong[:6])}"
        )
    return {name: tensor.float() for name, tensor in state.items()}


def _heads_file() -> Path:
    """`alex.pth` of LPIPS 0.1, found without importing the package that ships it."""
    package = find_spec("torchmetrics")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"


def _load(path: Path) -> dict[str, Tensor]:
    """A file of named tensors. Raises HarnessError where it is none."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(f"{path} is no PyTorch checkpoint that can be opened: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise HarnessError(f"{path} holds no named tensors")
    return state
