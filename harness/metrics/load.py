"""Metrics by name: built through the registry, identified by a digest, opened on a device."""

from __future__ import annotations

from typing import Any

from harness import registry
from harness.errors import HarnessError
from harness.identity import digest
from harness.metrics.base import Metric


def load_metric(name: str, *, device: str = "cpu", **parameters: Any) -> Metric:
    """A metric ready to score: `load_metric("clipscore-shapes", device="cuda")`.

    Raises:
        HarnessError: unknown name or parameter, or weights that are not on this machine (the message says how
            to get them).
    """
    metric: Metric = registry.build("metric", name, parameters)
    missing = metric.missing()
    if missing is not None:
        raise HarnessError(f"metric {name!r}: {missing}")
    metric.open(device)
    return metric


def metric_identity(name: str, metric: Metric) -> dict[str, Any]:
    """What decides a metric's values: name, version, parameters, content of weights, preprocessing.

    A parameter that `content()` tells by its content (`weights`, a place) is left out, so that the same weights in
    another folder are the same metric.
    """
    identity = registry.identity_of("metric", name, metric)
    content = metric.content()
    parameters = {key: value for key, value in identity["parameters"].items() if key not in content}
    return {**identity, "parameters": parameters, "content": content}


def metric_digest(name: str, metric: Metric) -> str:
    """The digest that score rows and table records carry: of `metric_identity`."""
    return digest(metric_identity(name, metric))


def higher_is_better(name: str) -> bool:
    """A metric's direction by its name; True of one that only a paper has."""
    try:
        return bool(registry.load("metric", name).higher_is_better)  # type: ignore[attr-defined]
    except HarnessError:
        return True
