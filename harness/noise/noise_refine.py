"""NoiseRefine: a network trained for it turns the initial noise into one that needs no guidance.

Source: Ahn et al., "A Noise is Worth Diffusion Guidance", arXiv 2412.03895. The network is the model's own with a
LoRA, which `harness train noise-refine` makes (harness/noise_refine).
"""

from dataclasses import dataclass

from harness.diffusion.base import Step
from harness.diffusion.sampling import evaluate
from harness.guidance.base import Request
from harness.noise.base import NoiseContext, Refined

TIMESTEP = 999  # the last of training: nothing but noise


@dataclass(frozen=True)
class NoiseRefine:
    """`x + refiner(x, 999, prompt)`: one evaluation of a second network, then sampling as it is, without guidance.

    What is added is the network's output as it comes, whatever the model predicts; a LoRA begins its training with
    an output of zero (`harness.noise_refine.lora`). The refiner always sees t = 999, as in its training: with
    leading spacing, whose first step lies lower (951 of 20 steps), it still refines for a start at 999.

    Attributes:
        network: the refiner's name in the model block, `networks: {refiner: {lora: FOLDER}}`.
    """

    network: str = "refiner"

    version = 1
    needs = frozenset({"network"})
    needs_timesteps = True

    @property
    def needs_networks(self) -> tuple[str, ...]:
        """The model's further networks that this stage asks for."""
        return (self.network,)

    def __call__(self, ctx: NoiseContext) -> Refined:
        """Refines every row; records `shift`, the norm of what was added relative to the noise's own."""
        alpha, sigma = ctx.model.alpha_sigma(TIMESTEP)
        last = Step(index=0, total=1, sigma=sigma / alpha, timestep=TIMESTEP)
        request = Request("network", network=self.network)
        shift = evaluate(ctx.model, ctx.noise, last, ctx.conditioning, (request,))[request]
        relative = shift.flatten(1).norm(dim=1) / ctx.noise.flatten(1).norm(dim=1)
        return Refined(ctx.noise + shift, [{"shift": value} for value in relative.tolist()])
