"""Autoguidance: away from what a weaker version of the model predicts for the same prompt.

Source: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507. The guider
`AutoGuidance` of `diffusers` is another thing: its weak prediction drops layers of the same network and is made
from the *unconditional* inputs.
"""

from dataclasses import dataclass

from torch import Tensor

from harness.diffusion.base import Step
from harness.guidance.base import COND, Guided, Request
from harness.guidance.interval import Interval, must_be_finite


@dataclass(frozen=True)
class Autoguidance(Interval):
    """`weak + scale * (c - weak)`: both predictions conditional, the weak one by another network of the model.

    Scale 1 is no guidance, scale 0 the weak network alone; both cost one evaluation.

    Attributes:
        scale: w of the paper.
        network: the weak network's name in the model block.
    """

    scale: float
    network: str

    version = 1
    needs = frozenset({"network"})

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_finite("scale", self.scale)
        if self.network == "main":
            raise ValueError("network: 'main' is the model itself; name the weak network of the model block")

    @property
    def needs_networks(self) -> tuple[str, ...]:
        """The weak network."""
        return (self.network,)

    @property
    def _weak(self) -> Request:
        return Request("network", network=self.network)

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """Both networks in the interval, the model's own alone outside it; never one with weight 0."""
        if not self.active(step) or self.scale == 1:
            return (COND,)
        return (self._weak,) if self.scale == 0 else (self._weak, COND)

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The guided prediction in the networks' native space (the formula is the same in all linear spaces)."""
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        weak, conditional = predictions[self._weak], predictions[COND]
        return Guided(weak + self.scale * (conditional - weak))
