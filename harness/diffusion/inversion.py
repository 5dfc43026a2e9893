"""DDIM inversion: clean latents back to the noise that the sampler would have started from.

Eq. 2 of "Not All Noises Are Created Equally" (arXiv 2407.14041) with its misprint corrected (the factor
before the bracket is sqrt(abar_t)), written out here because the inverse scheduler of `diffusers` clips by
default and reads its coefficients a step off when it is given the wrong end of a step.
"""

import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler
from harness.diffusion.sampling import guided
from harness.guidance.base import Guidance


def invert(
    model: Diffusion, latents: Tensor, conditioning: Conditioning, sampler: Sampler, guidance: Guidance
) -> Tensor:
    """Clean latents to noise, both float32 `[B, C, H, W]`, on the sampler's own grid in reverse.

    Every step goes from where the sampler's step arrived back to where it started; the network is asked at
    the target timestep, but sees the latent before the step (it cannot see the one after). With a network
    whose epsilon is constant, this undoes a DDIM or Euler run exactly. Costs one guided evaluation a solver
    step, whatever the solver.
    """
    schedule = model.schedule(sampler)
    first_evaluations = {step.index: step for step in reversed(schedule.evaluations)}
    x = latents.float()
    for index in reversed(range(len(schedule.arrivals))):
        step = first_evaluations[index]
        native = guided(model, x, step, conditioning, guidance).prediction
        x = model.invert_step(x, native, schedule.arrivals[index], step)
    # Euler and Heun start from sigma_max * noise without the signal's share: their x_T is a little smaller.
    scale = schedule.network_input(schedule.start(torch.ones(1)), 0).item()
    return x / scale
