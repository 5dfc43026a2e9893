import math

import pytest
import torch

from harness.diffusion.base import Counter, Sampler
from harness.diffusion.inversion import invert
from harness.diffusion.levels import move
from harness.diffusion.sampling import sample
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from tests.toy import Toy, numbers


def test_the_corrected_formula_and_not_the_misprint() -> None:
    # specs: x0 = 0.3, epsilon = 0.8, from timestep 1 to 21 of SD's schedule; the misprint gives 0.409819.
    toy = Toy(lambda x, t, n: x)
    start, end = toy.alpha_sigma(1), toy.alpha_sigma(21)
    epsilon = torch.tensor(0.8, dtype=torch.float64)
    x = start[0] * 0.3 + start[1] * epsilon
    moved = move(x, epsilon, start, end).item()
    assert moved == pytest.approx(0.409098, abs=1e-6)
    assert moved == pytest.approx(end[0] * 0.3 + end[1] * 0.8, abs=1e-12)
    # the printed form, to be sure that the check can tell them apart
    misprint = end[0] / start[0] * x + start[0] * (end[1] / end[0] - start[1] / start[0]) * epsilon
    assert misprint.item() == pytest.approx(0.409819, abs=1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("native", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "dpmsolver++"])
@pytest.mark.parametrize("steps", [4, 7])  # 7 does not divide 1000: DDIM lands beside its own grid
def test_a_constant_epsilon_is_inverted_exactly(solver: str, native: str, spacing: str, steps: int) -> None:
    constant = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))
    toy = Toy(lambda x, t, n: constant, native)
    conditioning = toy.encode(numbers(1, 1))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    sampler = Sampler(solver, steps, spacing)
    latents = sample(toy, noise, conditioning, NoGuidance(), sampler)
    assert (latents - noise).abs().max() > 1
    back = invert(toy, latents, conditioning, sampler, NoGuidance())
    torch.testing.assert_close(back, noise, atol=2e-3, rtol=1e-4)


def test_the_network_is_asked_at_the_target_timesteps_in_reverse() -> None:
    seen: list[float] = []

    def epsilon(x: torch.Tensor, t: float, n: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return torch.zeros_like(x)

    toy = Toy(epsilon)
    sampler = Sampler("ddim", 4)
    sample(toy, torch.ones(1, 4, 8, 8), toy.encode(numbers(1)), NoGuidance(), sampler)
    forward = list(seen)
    seen.clear()
    invert(toy, torch.ones(1, 4, 8, 8), toy.encode(numbers(1)), sampler, NoGuidance())
    assert forward == [999, 749, 499, 249]
    assert seen == forward[::-1]


def test_more_steps_bring_the_noise_back_better() -> None:
    toy = Toy(lambda x, t, n: torch.tanh(x + n))
    conditioning = toy.encode(numbers(0.5))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    errors = []
    for steps in (5, 20, 100):
        latents = sample(toy, noise, conditioning, NoGuidance(), Sampler("ddim", steps))
        back = invert(toy, latents, conditioning, Sampler("ddim", steps), NoGuidance())
        errors.append((back - noise).norm().item())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("scale", "evaluations"), [(0, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_inversion_costs_one_guided_evaluation_a_step(solver: str, scale: float, evaluations: int) -> None:
    toy = Toy(lambda x, t, n: n)
    toy.counter = Counter(2)
    invert(toy, torch.zeros(2, 4, 8, 8), toy.encode(numbers(1, 2)), Sampler(solver, 5), CFG(scale))
    assert toy.counter.nfe.tolist() == [5 * evaluations] * 2


def test_conversions_between_parameterisations_are_exact() -> None:
    x, prediction = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    for native in ("epsilon", "v_prediction", "sample"):
        toy = Toy(lambda x, t, n: x, native)
        alpha, sigma = toy.alpha_sigma(500)
        epsilon, x0 = toy.to_epsilon(prediction, x, 500), toy.to_x0(prediction, x, 500)
        torch.testing.assert_close(alpha * x0 + sigma * epsilon, x)
        torch.testing.assert_close(toy.to_native(epsilon, x, 500, "epsilon"), prediction)
        torch.testing.assert_close(toy.to_native(x0, x, 500, "x0"), prediction)
        assert math.hypot(alpha, sigma) == pytest.approx(1)
