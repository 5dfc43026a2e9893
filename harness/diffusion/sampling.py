"""The sampling loop, the same for every family, and the evaluations that a guidance asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Step
from harness.errors import HarnessError
from harness.guidance.base import UNCOND, Guidance, Guided, Request

OnStep = Callable[[Step, Tensor], Tensor | None]


def evaluate(
    model: Diffusion, x: Tensor, step: Step, conditioning: Conditioning, requests: Sequence[Request]
) -> dict[Request, Tensor]:
    """The requested predictions in the network's native space, each `[B, C, H, W]` as `x`, and no others.

    Conditional and unconditional predictions of one network run as one doubled batch, unconditional rows
    first, as the pipelines of `diffusers` do it. A family may have a second network for the unconditional ones.

    Raises:
        HarnessError: a kind of prediction or a network that the model does not have.
    """
    calls: dict[tuple[str, tuple[str, ...]], list[Request]] = {}
    for request in sorted(dict.fromkeys(requests), key=lambda request: request.kind != "uncond"):
        if request.kind not in model.requests or request.network not in model.networks:
            known = ", ".join(sorted(model.requests)) + "; networks: " + ", ".join(model.networks)
            raise HarnessError(f"family {model.family!r} cannot give {request} (it gives {known})")
        network = model.unconditional if request == UNCOND else request.network
        if network not in model.networks:
            raise HarnessError(no_unconditional(model.family, network))
        calls.setdefault((network, request.layers), []).append(request)
    given: dict[Request, Tensor] = {}
    for (network, layers), together in calls.items():
        parts = [conditioning.unconditional if r.kind == "uncond" else conditioning for r in together]
        batch = parts[0] if len(parts) == 1 else Conditioning.cat(parts)
        rows = x if len(parts) == 1 else torch.cat([x] * len(parts))
        predictions = model.predict(rows, step.timestep, batch, network, layers)
        given.update(zip(together, predictions.chunk(len(parts)), strict=True))
    return given


def no_unconditional(family: str, network: str) -> str:
    """What to say of a model without the network that its family asks for unconditional predictions."""
    return (f"family {family!r} gives unconditional predictions by a second network, {network!r}, which this model "
            f"does not have: add 'networks: {{{network}: {{weights: FOLDER}}}}' to its block")


def no_timesteps(part: object, family: str) -> str:
    """What to say of a part of a method that asks for a timestep of training where there are none."""
    variant = getattr(part, "variant", None)
    what = type(part).__name__ + (f" with 'variant: {variant}'" if variant else "")
    return f"{what} works at a timestep of the model's training, which family {family!r} does not have"


def guided(model: Diffusion, x: Tensor, step: Step, conditioning: Conditioning, guidance: Guidance) -> Guided:
    """The guided prediction at network input `x`, in the network's native space."""
    requests = guidance.requests(step, step.sigma)
    answer = guidance.combine(evaluate(model, x, step, conditioning, requests), x, step)
    if answer.space in ("native", model.native):
        return Guided(answer.prediction, "native", answer.renoise)
    renoise = answer.renoise
    return Guided(
        model.to_native(answer.prediction, x, step.timestep, answer.space),
        "native",
        None if renoise is None else model.to_native(renoise, x, step.timestep, answer.space),
    )


def sample(
    model: Diffusion,
    noise: Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    sampler: Sampler,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Noise to clean latents, both float32 `[B, C, H, W]`; the state's precision is the schedule's own and never
    the network's.

    `on_step(step, state)` is called before every evaluation with the solver's state and may return another.
    """
    schedule = model.schedule(sampler)
    state = schedule.start(noise)
    for i, step in enumerate(schedule.evaluations):
        if on_step is not None:
            changed = on_step(step, state)
            state = state if changed is None else changed
        x = schedule.network_input(state, i)
        answer = guided(model, x, step, conditioning, guidance)
        state = schedule.advance(answer.prediction, state, i, answer.renoise)
    return state.float()
