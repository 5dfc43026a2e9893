"""The plain stage: the noise as it was drawn."""

from dataclasses import dataclass

from harness.noise.base import NoiseContext, Refined


@dataclass(frozen=True)
class Gaussian:
    """Standard normal noise, unchanged."""

    version = 1

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Returns the drawn noise."""
        return Refined(ctx.noise)
