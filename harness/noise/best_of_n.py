"""Best of N by a judge: the baseline that spends on plain resampling what another method spends on searching."""

from dataclasses import dataclass

import numpy as np

from harness.errors import HarnessError
from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import Best


@dataclass(frozen=True)
class BestOfN:
    """The candidate noise whose image the judge likes best.

    Costs N * T * g evaluations in all; the winner's latents are handed on.

    Attributes:
        candidates: N; candidate 0 is the row's own noise.
    """

    candidates: int = 8

    version = 1
    needs_judge = True

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Chooses for every row; records all scores and the chosen candidate. Where a score is NaN it loses."""
        if ctx.judge is None:
            raise HarnessError("best_of_n needs a judge: name a metric that scores each image")
        best = Best(highest=ctx.judge.higher_is_better)
        for k in range(self.candidates):
            noise = ctx.candidate(k)
            latents = ctx.sample(noise)
            scores = np.asarray(ctx.judge.score(ctx.model.decode(latents), ctx.prompts).values, dtype=np.float64)
            if scores.shape != (len(noise),):
                raise HarnessError(f"judge {ctx.judge.name!r} gave scores {scores.shape} for {len(noise)} images")
            best.offer(noise, latents, scores)
        return Refined(best.noise, best.records(), best.latents)
