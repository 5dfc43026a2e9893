"""What the tests of scorers that read image and prompt together share."""

import numpy as np
import torch

from harness.metrics.base import SampleMetric
from harness.prompts import Prompt


def slope_error(metric: SampleMetric, images: np.ndarray, prompts: list[Prompt], step: float) -> float:
    """How far the gradient is from a central difference along it, relative to its length."""
    x = (torch.from_numpy(images).double() / 255 * 0.9 + 0.05).requires_grad_()  # away from the ends of [0, 1]
    values = metric.differentiable(x, prompts)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert torch.isfinite(gradient).all()
    lengths = gradient.flatten(1).norm(dim=1)
    assert lengths.min() > 0
    towards = gradient / lengths[:, None, None, None, None] * step
    with torch.no_grad():
        across = metric.differentiable(x + towards, prompts) - metric.differentiable(x - towards, prompts)
    return float((across / (2 * step) / lengths - 1).abs().max())
