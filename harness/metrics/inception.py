"""Features of the Inception network that FID is defined by: TensorFlow's of 2015-12-05, converted by torch-fidelity.

Its blocks are torch-fidelity's (`feature_extractor_inceptionv3.py`), which differ from torchvision's in their pooling.
What is published under its name differs in the resize to 299 x 299 pixels, and numbers of one must not be compared
with those of another; so each resize is an extractor of its own.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import feature_extractor_inceptionv3 as blocks
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics.clip import must_fit, stills
from harness.metrics.feature_metric import FeatureMetric
from harness.weights import sha256_of

SIZE = 299  # pixels, of the network's input
CHUNK = 32  # images a forward pass
HEAD = ("fc.weight", "fc.bias")  # of the checkpoint: the classifier after the features


def tensorflow_resize(images: Tensor) -> Tensor:
    """uint8 `[N, 3, H, W]` to float `[N, 3, 299, 299]` in 0 ... 255 as TensorFlow 1 does: bilinear, no antialias,
    pixel i at i · H / 299 without the shift of half a pixel."""
    return interpolate_bilinear_2d_like_tensorflow1x(  # type: ignore[no-any-return]
        images.float(), size=(SIZE, SIZE), align_corners=False
    )


def antialiased_resize(images: Tensor) -> Tensor:
    """The same sizes, bilinear with antialias, as torchmetrics does."""
    return functional.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


def clean_resize(images: Tensor) -> Tensor:
    """The same sizes, as clean-fid does: Pillow's bicubic (which has an antialias), a channel at a time in float,
    cut off at 0 and 255, not rounded."""
    channels = images.float().cpu().numpy().reshape(-1, *images.shape[2:])
    done = [np.asarray(Image.fromarray(c, "F").resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in channels]
    resized = np.stack(done).clip(0, 255).reshape(*images.shape[:2], SIZE, SIZE)
    return torch.from_numpy(resized).to(images.device)


@dataclass(frozen=True)
class Inception(FeatureMetric):
    """A metric on the 2048 features of the last pooling layer, the resize being TensorFlow's."""

    only_stills: ClassVar[bool] = True
    extractor: ClassVar[str] = "inception"
    preprocessing: ClassVar[str] = "tf1-bilinear-299"
    resize = staticmethod(tensorflow_resize)

    weights: str = "inception-2015-12-05"

    def open(self, device: str = "cpu") -> None:
        """Loads the network, or finds it loaded by another metric."""
        path = artifacts.file_of(self.weights, ".pth")
        object.__setattr__(self, "_network", _opened(path, device, sha256_of(path)))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[B, 1, H, W, 3]` to float32 `[B, 2048]`."""
        model: nn.Sequential = self.loaded("_network")
        device = next(model.parameters()).device
        shown = stills(images, self.name)
        found = [np.zeros((0, 2048), np.float32)]
        for first in range(0, len(shown), CHUNK):
            part = np.ascontiguousarray(shown[first : first + CHUNK])
            pixels = self.resize(torch.from_numpy(part).permute(0, 3, 1, 2).to(device))
            found.append(model((pixels - 128) / 128).cpu().numpy())
        return np.concatenate(found)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """The classifier's 1008 logits without its bias, float64 `[N, 1008]`, of features `[N, 2048]`.

        Without, as in the original Inception Score, whose code read them before the bias was added.
        """
        path = artifacts.file_of(self.weights, ".pth")
        return np.asarray(features.astype(np.float64) @ _classifier(path, sha256_of(path)).T)


def network() -> nn.Sequential:
    """The layers up to the last pooling, named as in the checkpoint, weights not yet set."""
    conv, a, c = blocks.BasicConv2d, blocks.InceptionA, blocks.InceptionC
    return nn.Sequential(OrderedDict(
        Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
        Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
        Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        MaxPool_1=nn.MaxPool2d(kernel_size=3, stride=2),
        Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
        MaxPool_2=nn.MaxPool2d(kernel_size=3, stride=2),
        Mixed_5b=a(192, pool_features=32),
        Mixed_5c=a(256, pool_features=64),
        Mixed_5d=a(288, pool_features=64),
        Mixed_6a=blocks.InceptionB(288),
        Mixed_6b=c(768, channels_7x7=128),
        Mixed_6c=c(768, channels_7x7=160),
        Mixed_6d=c(768, channels_7x7=160),
        Mixed_6e=c(768, channels_7x7=192),
        Mixed_7a=blocks.InceptionD(768),
        Mixed_7b=blocks.InceptionE_1(1280),
        Mixed_7c=blocks.InceptionE_2(2048),
        AvgPool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
    ))


@lru_cache(maxsize=2)
def _opened(path: Path, device: str, sha256: str) -> nn.Sequential:
    state = _read(path)
    with torch.device("meta"):
        model = network()
    try:
        layers = {key: value for key, value in state.items() if key not in HEAD}
        fit = model.load_state_dict(layers, strict=False, assign=True)
    except RuntimeError as error:
        raise HarnessError(f"{path} is a checkpoint of another network: {error}") from error
    must_fit(path, [*fit.missing_keys, *(key for key in HEAD if key not in state)], fit.unexpected_keys)
    return model.requires_grad_(False).eval().to(device)


@lru_cache(maxsize=2)
def _classifier(path: Path, sha256: str) -> np.ndarray:
    """`fc.weight`, float64 `[1008, 2048]`."""
    state = _read(path)
    must_fit(path, [key for key in HEAD if key not in state], [])
    return np.asarray(state["fc.weight"].double().numpy())


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, floating ones in float32."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    except (OSError, ValueError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(f"{path} is no checkpoint of the Inception network that can be opened: {reason}") from error
