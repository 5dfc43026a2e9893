"""Classifier-free guidance, everywhere or in an interval of the sampling.

Source: Ho and Salimans, arXiv 2207.12598; the interval: Kynkäänniemi et al., arXiv 2404.07724.
"""

from dataclasses import dataclass

from torch import Tensor

from harness.diffusion.base import Step
from harness.guidance.base import COND, UNCOND, Guided, Request
from harness.guidance.interval import Interval, must_be_finite


@dataclass(frozen=True)
class CFG(Interval):
    """`u + scale * (c - u)` of the unconditional and the conditional prediction, in an interval or everywhere.

    Scale 1 is no guidance, scale 0 unconditional sampling; both cost one evaluation.
    """

    scale: float

    version = 1

    @property
    def needs(self) -> frozenset[str]:
        """The unconditional prediction, but for scale 1."""
        return frozenset() if self.scale == 1 else frozenset({"uncond"})

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_finite("scale", self.scale)

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """Both predictions in the interval, the conditional one alone outside it; never one with weight 0."""
        if not self.active(step) or self.scale == 1:
            return (COND,)
        return (UNCOND,) if self.scale == 0 else (UNCOND, COND)

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The guided prediction in the network's native space (the formula is the same in all linear spaces)."""
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        unconditional, conditional = predictions[UNCOND], predictions[COND]
        return Guided(unconditional + self.scale * (conditional - unconditional))
