"""Best of N by a judge: the baseline that spends on plain resampling what another method spends on searching."""

from dataclasses import dataclass, field

from harness.noise.base import NoiseContext, Refined
from harness.noise.choice import Best, positive, try_all
from harness.registry import HOW


@dataclass(frozen=True)
class BestOfN:
    """The candidate noise whose image the judge likes best.

    Costs N * T * g evaluations in all; the winner's latents are handed on.

    Attributes:
        candidates: N; candidate 0 is the row's own noise.
        together: candidates that make one batch, where a micro-batch alone does not fill the device.
    """

    candidates: int = 8
    together: int = field(default=1, metadata=HOW)

    version = 1
    needs_judge = True

    def __post_init__(self) -> None:
        positive(candidates=self.candidates, together=self.together)

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Chooses for every row; records all scores and the chosen candidate. Where a score is NaN it loses."""
        best = Best(highest=ctx.required_judge.higher_is_better)
        candidates = map(ctx.candidate, range(self.candidates))
        try_all(ctx, best, candidates, self.together, lambda noise, latents: ctx.score(latents))
        return Refined(best.noise, best.records(), best.latents)
