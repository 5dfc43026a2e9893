"""SSIM, the structural similarity of two images (Wang et al. 2004, IEEE TIP 13(4))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.ndimage import correlate1d

from harness.metrics.base import PairedMetric

WINDOW = 11  # pixels; the paper's circular-symmetric Gaussian window
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class SSIM(PairedMetric):
    """-1 to 1 (the same image), higher is better: the mean over pixels, then over the channels R, G, B.

    Only windows that lie wholly inside the image count, local variances divide by the weights' sum (population
    covariance), nothing is scaled down. Equals scikit-image's with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False` and piq's with `downsample=False`; torchmetrics mirrors the border and counts it.
    """

    name: ClassVar[str] = "ssim"
    version: ClassVar[int] = 1

    def compare(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The similarity of each pair, in float64. Raises ValueError where an image is smaller than the window."""
        height, width = images.shape[1:3]
        if min(height, width) < WINDOW:
            raise ValueError(f"ssim needs images of at least {WINDOW} x {WINDOW} pixels, got {width} x {height}")
        return np.array([ssim(a, b) for a, b in zip(images, references, strict=True)], np.float64)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The SSIM of two images `[H, W, 3]` with values 0 to 255."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mx, my = _windowed(x), _windowed(y)
    vx, vy = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my
    covariance = _windowed(x * y) - mx * my
    luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1)
    structure = (2 * covariance + C2) / (vx + vy + C2)
    return float((luminance * structure).mean())


def _windowed(x: np.ndarray) -> np.ndarray:
    """The Gaussian mean of every window inside `[H, W, 3]`."""
    edge = WINDOW // 2
    weights = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    down = correlate1d(x, weights, axis=0)[edge:-edge]
    return np.asarray(correlate1d(down, weights, axis=1)[:, edge:-edge])
