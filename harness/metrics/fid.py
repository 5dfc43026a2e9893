"""Fréchet Inception Distance (Heusel et al. 2017, arXiv:1706.08500), a name for each resize that is in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.metrics.distances import Frechet
from harness.metrics.inception import Inception, antialiased_resize, clean_resize


@dataclass(frozen=True)
class FID(Frechet, Inception):
    """With TensorFlow's resize: torch-fidelity, EDM2, guided-diffusion, clean-fid's `legacy_tensorflow`."""

    name: ClassVar[str] = "fid"


@dataclass(frozen=True)
class FIDTorchmetrics(FID):
    """With the antialiased bilinear resize that torchmetrics defaults to."""

    name: ClassVar[str] = "fid-torchmetrics"
    extractor: ClassVar[str] = "inception-torchmetrics"
    preprocessing: ClassVar[str] = "torchmetrics-299"
    resize = staticmethod(antialiased_resize)


@dataclass(frozen=True)
class FIDClean(FID):
    """With the resize that clean-fid defaults to (Parmar et al. 2022, arXiv:2104.11222)."""

    name: ClassVar[str] = "fid-clean"
    extractor: ClassVar[str] = "inception-clean"
    preprocessing: ClassVar[str] = "clean-299"
    resize = staticmethod(clean_resize)
