"""Distances of a cell's images to ground-truth renders, in shapes-clip features: Fréchet distance and CMMD.

Neither is FID or CMMD of natural images; the names say so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.errors import HarnessError
from harness.frechet import Moments
from harness.metrics import clip
from harness.metrics.base import DistributionMetric, Reference
from harness.metrics.distances import Frechet, GaussianMMD
from harness.metrics.reference import find_reference, read_reference, reference_file, shipped_file, write_reference
from harness.registry import HOW
from harness.weights import content_digest, is_trained, sha256_of


@dataclass(frozen=True)
class _ShapesCLIP(DistributionMetric):
    """What both have in common: the features (projected embeddings, not normalised) and the reference."""

    only_stills: ClassVar[bool] = True
    extractor: ClassVar[str] = "shapes-clip"
    preprocessing: ClassVar[str] = "shapes-clip"
    version: ClassVar[int] = 1

    weights: str = "builtin:shapes-clip"
    # A file, or a name given to `harness reference`; none: the renders that ship. Known by its content.
    statistics: str | None = field(default=None, metadata=HOW)

    def missing(self) -> str | None:
        """What keeps the weights or the reference from being opened."""
        try:
            clip.preprocessing(clip.locate(self.weights))
            self.reference()
        except HarnessError as error:
            return str(error)
        return None

    def extractor_content(self) -> dict[str, Any]:
        """The hash of the weights' folder, and the processor's settings."""
        folder = clip.locate(self.weights)
        return {"weights": content_digest(folder), "preprocessing": clip.preprocessing(folder)}

    @property
    def extractor_digest(self) -> str:
        """The hash of the model alone: the reference that ships lies in its folder."""
        return sha256_of(clip.model_file(clip.locate(self.weights)))

    @property
    def trained(self) -> bool:
        """False where the weights say that they are random."""
        return self.missing() is not None or is_trained(clip.locate(self.weights))

    def open(self, device: str = "cpu") -> None:
        """Loads the CLIP, or finds it loaded by another metric."""
        object.__setattr__(self, "_clip", clip.opened(clip.locate(self.weights), device))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Projected image embeddings, float32 `[B, D]`, not normalised."""
        shown = clip.stills(images, self.name)
        return np.asarray(self.loaded("_clip").images(shown).cpu().numpy(), np.float32)

    def reference(self) -> Reference:
        """The features of ground-truth renders that ship, or those that the parameter names."""
        if self.statistics is None:
            path = reference_file(clip.locate(self.weights))
        else:
            path = find_reference(self.statistics, self.extractor, self.name)
        return read_reference(path, self.extractor_digest)


@dataclass(frozen=True)
class FrechetShapesCLIP(Frechet, _ShapesCLIP):
    """The Fréchet distance."""

    name: ClassVar[str] = "fd-shapes-clip"


@dataclass(frozen=True)
class CMMDShapesCLIP(GaussianMMD, _ShapesCLIP):
    """The MMD with CMMD's kernel."""

    name: ClassVar[str] = "cmmd-shapes-clip"


def make_reference(weights: str = "builtin:shapes-clip", images: np.ndarray | None = None) -> Path:
    """Writes the reference beside a shapes-clip: features (float16) of ground-truth renders, uint8 `[N, 64, 64, 3]`.

    Without `images`, of `harness.shapes.evaluate.reference_images()`. To be called whenever the weights change.
    """
    folder = clip.locate(weights)
    if images is None:
        from harness.shapes.evaluate import reference_images

        images = reference_images()
    features = clip.opened(folder, "cpu").images(images).numpy().astype(np.float16)
    path = folder / "reference.safetensors"
    said = f"projected image embeddings, not normalised, of {len(images)} ground-truth renders"
    write_reference(path, features, said, sha256_of(clip.model_file(folder)))
    return path


def make_class_reference(number: int = 18_000) -> Path:
    """Writes the reference `builtin:shapes-classes`: moments of the features of fresh renders, the 36 classes in turn.

    The renders are none of those that the class-conditional models learn from (another seed).
    """
    from harness.shapes.classes import REFERENCE_SEED, class_images

    folder = clip.locate("builtin:shapes-clip")
    tower = clip.opened(folder, "cpu")
    images = (image for _, image in class_images(number, REFERENCE_SEED))
    features = [tower.images(np.stack(part)).numpy() for part in iter(lambda: list(islice(images, 500)), [])]
    path = shipped_file("shapes-classes", FrechetShapesCLIP.extractor)
    said = f"projected image embeddings, not normalised, of {number} renders of the shapes classes"
    moments = Moments.of(np.concatenate(features))
    write_reference(path, None, said, sha256_of(clip.model_file(folder)), moments=moments)
    return path


if __name__ == "__main__":
    print(make_reference(sys.argv[1] if len(sys.argv) > 1 else "builtin:shapes-clip"))
    print(make_class_reference())
