"""Classifier-free guidance, everywhere or in an interval of the sampling.

Source: Ho and Salimans, arXiv 2207.12598; the interval: Kynkäänniemi et al., arXiv 2404.07724.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from harness.diffusion.base import Sampler, Step
from harness.guidance.base import COND, UNCOND, Guided, Request

ROUNDING = 1e-9  # 29/100 * 100 is 28.999...: fractions are compared with this much tolerance


@dataclass(frozen=True)
class CFG:
    """`u + scale * (c - u)` of the unconditional and the conditional prediction.

    Scale 1 is no guidance, scale 0 unconditional sampling; both cost one evaluation. At most one interval may
    be given; outside it, only the conditional prediction is made:

    - `sigma: [low, high]`: steps whose noise level sigma/alpha at their start lies in (low, high]; high may be
      null, for no upper end;
    - `steps: [first, last]`: step indices from 0 (noisiest), both inclusive;
    - `fraction: [from, to]`: steps i of N with from <= i/N < to.

    A solver step is guided as a whole: both evaluations of a Heun step follow the step's start.
    """

    scale: float
    sigma: tuple[float, float | None] | None = None
    steps: tuple[int, int] | None = None
    fraction: tuple[float, float] | None = None

    version = 1

    def __post_init__(self) -> None:
        given = [name for name in ("sigma", "steps", "fraction") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give the interval in one way, got {' and '.join(given)}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be a finite number, got {self.scale}")
        for name in given:
            low, high = getattr(self, name)
            if name == "sigma" and high is None:
                high = math.inf
            elif not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"{name}: [{low}, {high}] must hold finite numbers (sigma: null for no upper end)")
            if low > high or (low == high and name != "steps"):
                raise ValueError(f"{name}: [{low}, {high}] is upside down or empty; expected [low, high]")
            if low < 0 or (name == "fraction" and high > 1):
                within = "[0, 1]" if name == "fraction" else "0 and more"
                raise ValueError(f"{name}: [{low}, {high}] must lie within {within}")

    def problems(self, sampler: Sampler) -> list[str]:
        """What makes no sense with this sampler."""
        if self.steps is not None and self.steps[1] >= sampler.steps:
            return [f"steps: [{self.steps[0]}, {self.steps[1]}] goes beyond the sampler's {sampler.steps} steps "
                    f"(0 to {sampler.steps - 1})"]
        return []

    def active(self, step: Step) -> bool:
        """Whether this step is guided."""
        if self.sigma is not None:
            low, high = self.sigma
            return low < step.sigma and (high is None or step.sigma <= high)
        if self.steps is not None:
            return self.steps[0] <= step.index <= self.steps[1]
        if self.fraction is not None:
            place = step.index / step.total + ROUNDING
            return self.fraction[0] <= place < self.fraction[1]
        return True

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
