"""The deterministic EDM sampler: its grid against the paper's numbers, its order, diffusers, inversion."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.diffusion.base import Conditioning, Sampler, Step
from harness.diffusion.edm import EDMSchedule, Grid, discrete_levels, karras_grid
from harness.diffusion.inversion import invert
from harness.diffusion.levels import NoiseLevels
from harness.diffusion.sampling import sample
from harness.diffusion.schedules import build_scheduler
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from tests.toy import SD_SCHEDULE, Exploding, Toy, numbers

# The grids that arXiv 2404.07724 samples EDM2 and SDXL on, 32 steps each; its printed interval ends are among them.
EDM2_GRID = """80.0000 66.9309 55.7362 46.1864 38.0749 31.2164 25.4454 20.6141 16.5914 13.2612 10.5212 8.2816 6.4637
4.9991 3.8287 2.9015 2.1739 1.6086 1.1743 0.8446 0.5977 0.4154 0.2830 0.1886 0.1226 0.0774 0.0474 0.0279 0.0158 0.0085
0.0043 0.0020"""
SDXL_GRID = """14.6146 13.4145 12.2819 11.2149 10.2117 9.2700 8.3882 7.5641 6.7958 6.0814 5.4190 4.8064 4.2419 3.7233
3.2489 2.8166 2.4244 2.0705 1.7528 1.4693 1.2182 0.9975 0.8052 0.6393 0.4980 0.3792 0.2809 0.2013 0.1384 0.0902 0.0547
0.0300"""
NAMES = ("euler", "heun")
LEVELS = NoiseLevels(build_scheduler(SD_SCHEDULE, Sampler()).alphas_cumprod)


@pytest.mark.parametrize(("ends", "rho", "expected"), [((0.002, 80), 7, EDM2_GRID), ((0.03, 14.6146), 3, SDXL_GRID)])
def test_the_grids_are_the_papers(ends: tuple[float, float], rho: float, expected: str) -> None:
    assert [f"{level:.4f}" for level in karras_grid(32, *ends, rho)] == expected.split()


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(2, 80), low=st.floats(1e-3, 1), factor=st.floats(1.5, 1e4), rho=st.floats(1, 20))
def test_a_grid_falls_from_end_to_end(steps: int, low: float, factor: float, rho: float) -> None:
    grid = karras_grid(steps, low, low * factor, rho)
    assert len(grid) == steps
    assert all(a > b for a, b in pairwise(grid))
    assert (grid[0], grid[-1]) == (low * factor, low)  # themselves, without a last bit of rounding


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True).map(sorted), more=st.integers(1, 20),
    rho=st.floats(0.5, 20), off=st.sampled_from([1 - 1e-12, 1.0, 1 + 1e-12]),
)
def test_bounds_that_are_levels_choose_the_steps_between(ends: list[int], more: int, rho: float, off: float) -> None:
    """However they were computed: the step at the upper bound is guided, that at the lower is not."""
    (first, last), steps = ends, ends[1] + more
    grid = karras_grid(steps, 0.002, 80, rho)
    interval = CFG(2, sigma=(grid[last] * off, grid[first] * off))
    assert [i for i, level in enumerate(grid) if interval.active(Step(i, steps, level, level))] == [*range(first, last)]


@pytest.mark.parametrize("rho", [3, 5, 7, 9])
def test_an_interval_that_ends_at_an_end_of_the_grid(rho: float) -> None:
    grid = karras_grid(2, 0.002, 80, rho)
    assert [CFG(2, sigma=(0.28, 80)).active(Step(i, 2, level, level)) for i, level in enumerate(grid)] == [True, False]
    assert not CFG(2, sigma=(0.002, 80)).active(Step(1, 2, grid[1], grid[1]))


def run(model: Toy, noise: Tensor, name: str = "heun", steps: int = 8, **grid: Any) -> Tensor:
    sampler = Sampler(name, steps, **grid)
    return sample(model, noise, model.encode(numbers(*[1.0] * len(noise))), NoGuidance(), sampler)


def start(rows: int = 2) -> Tensor:
    return torch.randn((rows, 4, 8, 8), generator=torch.Generator().manual_seed(3))


def gaussian(x: Tensor, sigma: float, _: Tensor) -> Tensor:
    """The epsilon of data with a standard deviation of 0.5, for which the flow's end is known."""
    return x * sigma / (0.25 + sigma**2)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_solvers_order(name: str, order: int) -> None:
    """From sigma_max to sigma_min alone: there x(sigma) = x(sigma_max) * sqrt((0.25 + sigma^2) / (0.25 + sigma_max^2)).

    The last step, Euler's to 0, is undone by the known solution at sigma_min.
    """
    low, high, errors = 0.5, 20.0, []
    for steps in (40, 80):
        model = Exploding(gaussian, "sample")
        schedule = model.schedule(Sampler(name, steps, sigma_min=low, sigma_max=high))
        noise, state = start(), schedule.start(start())
        for i, step in enumerate(schedule.evaluations):
            if step.index == steps - 1:
                break
            epsilon = gaussian(state, step.timestep, state)
            state = schedule.advance(model.to_native(epsilon, state, step.timestep, "epsilon"), state, i)
        exact = noise.double() * high * math.sqrt((0.25 + low**2) / (0.25 + high**2))
        errors.append(float((state - exact).norm() / exact.norm()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_the_last_step_is_eulers_alone() -> None:
    """It arrives at 0, where there is no slope: one step gives the denoised image itself."""
    model = Exploding(lambda x, sigma, _: (x - 3.0) / sigma, "sample")  # D = 3 everywhere
    schedule = model.schedule(Sampler("heun", 4))
    assert [step.index for step in schedule.evaluations] == [0, 0, 1, 1, 2, 2, 3]
    torch.testing.assert_close(run(model, start(), steps=1), torch.full((2, 4, 8, 8), 3.0))
    torch.testing.assert_close(run(model, start(), steps=4), torch.full((2, 4, 8, 8), 3.0))


def test_both_evaluations_of_a_step_follow_where_it_starts() -> None:
    model = Exploding(gaussian, "sample")
    schedule = model.schedule(Sampler("heun", 32))
    levels = karras_grid(32, 0.002, 80, 7)
    assert [step.sigma for step in schedule.evaluations[34:36]] == [levels[17]] * 2
    assert [step.timestep for step in schedule.evaluations[34:36]] == levels[17:19]
    by_steps, by_sigma = CFG(2, steps=(17, 22)), CFG(2, sigma=(0.19, 1.61))
    guided = [step.index for step in schedule.evaluations if len(by_steps.requests(step, step.sigma)) == 2]
    assert guided == sorted([*range(17, 23)] * 2)
    assert guided == [s.index for s in schedule.evaluations if len(by_sigma.requests(s, s.sigma)) == 2]


@pytest.mark.parametrize(("precision", "dtype"), [(None, torch.float64), ("float32", torch.float32)])
def test_the_state_is_of_the_precision_and_the_latents_are_float32(precision: Any, dtype: torch.dtype) -> None:
    model, seen = Exploding(gaussian, "sample"), []

    def look(step: Step, state: Tensor) -> None:
        seen.append(state.dtype)

    conditioning: Conditioning = model.encode(numbers(1, 1))
    sampler = Sampler("heun", 3, precision=precision)
    latents = sample(model, start(), conditioning, NoGuidance(), sampler, on_step=look)
    assert set(seen) == {dtype}
    assert latents.dtype == torch.float32


@pytest.mark.parametrize("native", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "cls"), [("heun", HeunDiscreteScheduler), ("euler", EulerDiscreteScheduler)])
def test_stable_diffusion_samples_as_diffusers_does_with_rho_7(name: str, cls: Any, native: str) -> None:
    """With an epsilon that does not look at the timestep, which the library finds by another interpolation.

    Relative to the norm 2e-5: the library's noise levels are of float32.
    """
    def bent(x: Tensor, timestep: float, _: Tensor) -> Tensor:
        return torch.tanh(x) * 0.8 + 0.1

    model, noise = Toy(bent, native), start()
    scheduler = cls.from_config({**SD_SCHEDULE, "prediction_type": native}, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    state = noise * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(state, t)
        sigma = float(scheduler.sigmas[scheduler.step_index])
        alpha = 1 / math.hypot(1, sigma)
        epsilon = bent(x, 0, x)
        predicted = epsilon if native == "epsilon" else (epsilon - sigma * alpha * x) / alpha
        state = scheduler.step(predicted, t, state, return_dict=False)[0]
    ours = run(model, noise, name, 12, rho=7)
    assert float((ours - state).norm() / state.norm()) < 2e-5


@settings(max_examples=50, deadline=None)
@given(place=st.floats(0, 999))
def test_the_timestep_of_a_noise_level_is_the_exact_inverse(place: float) -> None:
    assert LEVELS.timestep(LEVELS.ratio(place)) == pytest.approx(place, abs=1e-9)


def test_timesteps_lie_close_to_those_of_diffusers() -> None:
    """It interpolates the logarithm of the noise level; between two timesteps that is another place, by 0.1 at most."""
    schedule = Toy(gaussian).schedule(Sampler("euler", 12, rho=7))
    scheduler = EulerDiscreteScheduler.from_config(SD_SCHEDULE, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    theirs = scheduler.timesteps.double().tolist()
    assert [step.timestep for step in schedule.evaluations] == pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "native"), [(Toy, "epsilon"), (Toy, "v_prediction"), (Exploding, "epsilon"), (Exploding, "sample")]
)
def test_a_constant_epsilon_is_inverted_exactly(kind: type[Toy], native: str, name: str) -> None:
    model, noise = kind(lambda x, sigma, n: 0.3 * n, native), start()
    sampler = Sampler(name, 9, rho=7)
    conditioning = model.encode(numbers(1, -2))
    latents = sample(model, noise, conditioning, NoGuidance(), sampler)
    back = invert(model, latents, conditioning, sampler, NoGuidance())
    torch.testing.assert_close(back, noise, rtol=0, atol=2e-5)


def test_inversion_with_a_constant_image_has_a_closed_form() -> None:
    """D = 3: each step multiplies the distance from it by 1 + (sigma_start - sigma_arrival) / sigma_start."""
    model = Exploding(lambda x, sigma, _: (x - 3.0) / sigma, "sample")
    sampler = Sampler("heun", 6)
    latents = start()
    levels = [*karras_grid(6, 0.002, 80, 7), 0.0]
    factor = math.prod(2 - after / before for before, after in pairwise(levels))
    expected = ((latents.double() - 3) * factor + 3) / 80
    back = invert(model, latents, model.encode(numbers(1, 1)), sampler, NoGuidance())
    torch.testing.assert_close(back.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0}, "rho must be a number above 0"), ({"rho": -1}, "rho must be a number above 0"),
        ({"sigma_min": 2, "sigma_max": 1, "rho": 7}, "sigma_min must be below sigma_max, got 2 and 1"),
        ({"sigma_min": math.nan}, "sigma_min must be a number above 0"),
    ],
    ids=str,
)
def test_a_grid_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler("heun", 8, **change)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Sampler("ddim", 8, rho=7), "sampled by heun or euler, not by 'ddim'"),
        (Sampler("dpmsolver++", 8, rho=7), "sampled by heun or euler, not by 'dpmsolver"),
        (Sampler("heun", 8, "leading", rho=7), "spacing 'leading' means nothing here"),
        (Sampler("heun", 8, rho=3, sigma_max=80), "noise level 80 lies outside of what the model was trained with"),
        (Sampler("heun", 8, rho=3, sigma_min=0.002), "noise level 0.002 lies outside"),
        (Sampler("heun", 8, rho=3, sigma_min=20), "sigma_min must be below sigma_max, got 20 and 14.6"),
        (Sampler("heun", 8, rho=1e-3), r"rho 0\.001 gives noise levels that do not fall from 14\.6146 .* usual are 7"),
        (Sampler("heun", 8, sigma_min=0.03), "sigma_min means nothing without rho"),
        (Sampler("euler", 8, precision="float64"), "precision means nothing without rho"),
    ],
    ids=str,
)
def test_what_stable_diffusion_cannot_sample_is_said(sampler: Sampler, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        discrete_levels(SD_SCHEDULE, sampler)
    with pytest.raises(HarnessError, match=message):
        Toy(gaussian).schedule(sampler)


@pytest.mark.parametrize("rho", [1e-300, 0.005, 1e17])
def test_a_rho_whose_levels_do_not_fall_is_refused(rho: float) -> None:
    """Powers that are too large, and roots that are all 1."""
    (problem,) = Exploding.sampler_problems(Sampler("heun", 4, rho=rho))
    assert problem.startswith(f"sampler: rho {rho:g} gives noise levels that do not fall from 80 to 0.002 in floating")
    with pytest.raises(HarnessError, match="do not fall"):
        EDMSchedule(Exploding(gaussian, "sample"), Sampler("heun", 4, rho=rho), Grid())


@pytest.mark.parametrize("rho", [0.1, 0.25, 0.3])
def test_with_a_small_rho_all_levels_are_sampled(rho: float) -> None:
    assert Exploding.sampler_problems(Sampler("heun", 4, rho=rho)) == []
    assert torch.isfinite(run(Exploding(gaussian, "sample"), start(), steps=4, rho=rho)).all()


def test_a_guidance_that_renoises_is_refused() -> None:
    schedule = EDMSchedule(Exploding(gaussian, "sample"), Sampler("heun", 4), Grid())
    with pytest.raises(HarnessError, match="re-noises"):
        schedule.advance(start(), start(), 0, start())
