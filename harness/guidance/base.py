"""Guidance: which predictions to ask for at a step, and how to combine them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.diffusion.base import Step


@dataclass(frozen=True)
class Request:
    """One prediction that a guidance may ask for.

    `kind` is "cond", "uncond", "perturbed" (conditional, self-attention of `layers` made the identity) or
    "network" (conditional, by the second network `network`).
    """

    kind: str
    layers: tuple[str, ...] = ()
    network: str = "main"


COND = Request("cond")
UNCOND = Request("uncond")


@dataclass(frozen=True)
class Guided:
    """A combined prediction and the space it is meant in ("native", "epsilon" or "x0").

    `renoise`, in the same space, replaces the prediction where the solver adds noise back (CFG++).
    """

    prediction: Tensor
    space: str = "native"
    renoise: Tensor | None = None


class Guidance(Protocol):
    """A frozen dataclass with these two methods. What is not requested is not computed.

    Optional: attributes `version` (int), `needs` (kinds of prediction that it asks for, "cond" apart),
    `needs_networks` (names of further networks), `needs_layers` (names of layers to perturb) and `needs_frames`
    (bool: rows must be clips), so that a model without them is refused when the benchmark is read; and
    `problems(sampler)`, a list of what makes no sense with that sampler.
    """

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """The predictions wanted at this step."""
        ...

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The guided prediction from the requested ones, each `[B, C, H, W]`, at network input `x`."""
        ...
