import math

import pytest
import torch

from harness.diffusion.base import Sampler
from harness.diffusion.schedules import SOLVERS, DiffusersSchedule, build_scheduler
from harness.errors import HarnessError
from tests.toy import SD_SCHEDULE


def schedule(name: str = "ddim", steps: int = 10, spacing: str = "trailing") -> DiffusersSchedule:
    return DiffusersSchedule(SD_SCHEDULE, Sampler(name, steps, spacing))


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_starts_at_the_noisiest_level_and_falls(name: str) -> None:
    made = schedule(name)
    assert made.evaluations[0].timestep == 999
    assert made.evaluations[0].sigma == pytest.approx(14.6146, abs=1e-4)  # specs: NLG section 2, SD 1.x and 2.x
    sigmas = [step.sigma for step in made.evaluations]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(arrival < start for start, arrival in zip(made.starts, made.arrivals, strict=True))
    assert all(step.total == 10 for step in made.evaluations)


def test_both_evaluations_of_a_heun_step_carry_its_index_and_its_starting_level() -> None:
    made = schedule("heun", 4)
    assert [step.index for step in made.evaluations] == [0, 0, 1, 1, 2, 2, 3]
    assert len({step.sigma for step in made.evaluations}) == 4
    assert made.evaluations[1].sigma == made.evaluations[0].sigma
    assert made.evaluations[1].timestep == made.evaluations[2].timestep  # but the network is asked there


def test_the_networks_input_is_variance_preserving_for_every_solver() -> None:
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in SOLVERS:
        made = schedule(name)
        assert made.network_input(made.start(noise), 0).std().item() == pytest.approx(1, abs=0.02)


def test_a_grid_that_the_library_rounds_into_nonsense_is_refused() -> None:
    for name in SOLVERS:
        with pytest.raises(HarnessError, match="no valid grid of 61 steps"):
            schedule(name, 61)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Sampler("dimm"), "did you mean 'ddim'"),
        (Sampler(spacing="trail"), "did you mean 'trailing'"),
        (Sampler(steps=1001), "1001 steps"),
    ],
)
def test_an_unknown_sampler_is_refused_with_the_nearest_known(sampler: Sampler, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        build_scheduler(SD_SCHEDULE, sampler)


def test_leftovers_of_another_configuration_do_not_reach_the_solver() -> None:
    config = {**SD_SCHEDULE, "use_karras_sigmas": True, "clip_sample": True, "algorithm_type": "sde-dpmsolver++",
              "timestep_spacing": "leading"}
    made = {name: build_scheduler(config, Sampler(name, 10)) for name in SOLVERS}
    for scheduler in made.values():
        assert scheduler.timesteps[0] == 999
        assert not scheduler.config.get("use_karras_sigmas", False) or scheduler is made["ddim"]  # knows no such thing
    assert not made["ddim"].config.clip_sample
    assert not made["heun"].config.clip_sample
    assert made["dpmsolver++"].config.algorithm_type == "dpmsolver++"


@pytest.mark.parametrize("native", ["epsilon", "v_prediction", "sample"])
def test_renoising_with_the_prediction_itself_is_the_plain_step(native: str) -> None:
    config = {**SD_SCHEDULE, "prediction_type": native}
    state, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = DiffusersSchedule(config, Sampler("ddim", 10)).advance(prediction, state, 0)
    again = DiffusersSchedule(config, Sampler("ddim", 10)).advance(prediction, state, 0, renoise=prediction)
    torch.testing.assert_close(again, plain, atol=2e-4, rtol=1e-4)
    with pytest.raises(HarnessError, match="ddim"):
        DiffusersSchedule(config, Sampler("euler", 10)).advance(prediction, state, 0, renoise=prediction)


def test_levels_between_timesteps_are_interpolated_as_the_euler_scheduler_does() -> None:
    made = schedule("euler", 7, "linspace")
    assert any(step.timestep != int(step.timestep) for step in made.evaluations)
    for step, sigma in zip(made.evaluations, made.scheduler.sigmas.tolist(), strict=False):
        assert step.sigma == pytest.approx(sigma, rel=1e-5)
        alpha, sd = made.levels.alpha_sigma(step.timestep)
        assert math.hypot(alpha, sd) == pytest.approx(1)
        assert sd / alpha == pytest.approx(sigma, rel=1e-5)
