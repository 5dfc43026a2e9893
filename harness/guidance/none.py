"""No guidance: the conditional prediction as it is."""

from dataclasses import dataclass

from torch import Tensor

from harness.diffusion.base import Step
from harness.guidance.base import COND, Guided, Request


@dataclass(frozen=True)
class NoGuidance:
    """Plain conditional sampling, one evaluation a denoiser call."""

    version = 1

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """The conditional prediction alone."""
        return (COND,)

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The conditional prediction, unchanged."""
        return Guided(predictions[COND])
