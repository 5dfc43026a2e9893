"""A benchmark harness for the initial noise and the guidance of diffusion models.

The three calls below are the notebook's face; no Ray is needed for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.diffusion.base import Diffusion
    from harness.method import Method
    from harness.metrics.base import Metric

__version__ = "0.1.0"


def load_model(family: str, weights: str, **settings: Any) -> Diffusion:
    """A diffusion model: `load_model("stable_diffusion", "a Hub id or a folder", device="cuda")`.

    `settings` are those of `Diffusion.load`: revision, dtype, device, size, networks.
    """
    from harness import registry

    return registry.load("model", family).load(weights, **settings)  # type: ignore[attr-defined, no-any-return]


def load_method(**parts: Any) -> Method:
    """A method: `load_method(noise={"nlg": {"steps": 20}}, guidance={"cfg": {"scale": 7.5}}, sampler={...})`."""
    from harness.method import load_method

    return load_method(**parts)


def load_metric(name: str, **parameters: Any) -> Metric:
    """A metric, opened: `load_metric("clipscore-shapes").score(images, prompts)`."""
    from harness.metrics.load import load_metric

    return load_metric(name, **parameters)
