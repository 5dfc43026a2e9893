"""Guidance in an interval of the sampling alone.

Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
Diffusion Models", arXiv 2404.07724.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.diffusion.base import Sampler, Step
from harness.diffusion.levels import ROUNDING


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The steps at which a guidance guides; at the others it is the conditional prediction alone.

    At most one of these may be given; without any, every step is guided:

    - `sigma: [low, high]`: steps whose noise level sigma/alpha at their start lies in (low, high]; high may be
      null, for no upper end;
    - `steps: [first, last]`: step indices from 0 (noisiest), both inclusive;
    - `fraction: [from, to]`: steps i of N with from <= i/N < to.

    Levels and fractions that agree to 1e-9 are equal: a bound that is a level of the grid is one, however rounded.
    A solver step is guided as a whole: both evaluations of a Heun step follow the step's start.
    """

    sigma: tuple[float, float | None] | None = None
    steps: tuple[int, int] | None = None
    fraction: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("sigma", "steps", "fraction") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give the interval in one way, got {' and '.join(given)}")
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
        total = sampler.steps
        if self.fraction is not None and not any(self.active(Step(i, total, math.nan, math.nan)) for i in range(total)):
            near = _nearest([i / total for i in range(total)], self.fraction[0])
            return [f"fraction: [{self.fraction[0]}, {self.fraction[1]}] holds none of the sampler's {total} steps; "
                    f"the nearest: " + " and ".join(f"{round(place * total)}/{total}" for place in near)]
        return []

    def guides_nowhere(self, levels: Sequence[float]) -> str | None:
        """What to say where a sampler whose steps start at these noise levels is guided at none of them by `sigma`."""
        if self.sigma is None or any(self.active(Step(i, len(levels), level, 0)) for i, level in enumerate(levels)):
            return None
        low, high = self.sigma
        near = " and ".join(f"{level:.6g}" for level in _nearest(levels, low))
        return (f"sigma: [{low}, {'null' if high is None else high}] holds none of the noise levels at which the "
                f"sampler's {len(levels)} steps start, {levels[0]:.6g} down to {levels[-1]:.6g}; the nearest: {near}")

    def active(self, step: Step) -> bool:
        """Whether this step is guided."""
        if self.sigma is not None:
            low, high = self.sigma
            return low * (1 + ROUNDING) < step.sigma and (high is None or step.sigma <= high * (1 + ROUNDING))
        if self.steps is not None:
            return self.steps[0] <= step.index <= self.steps[1]
        if self.fraction is not None:
            place = step.index / step.total + ROUNDING  # 29/100 * 100 is 28.999...
            return self.fraction[0] <= place < self.fraction[1]
        return True


def _nearest(places: Sequence[float], low: float) -> list[float]:
    """Of places outside an interval from `low` the last below it and the first above it, where there are such."""
    below, above = [place for place in places if place <= low], [place for place in places if place > low]
    return [*([max(below)] if below else []), *([min(above)] if above else [])]


def must_be_finite(name: str, value: float) -> None:
    """Raises ValueError for a scale that is no number or infinite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
