import pytest
import torch

from harness.diffusion.base import Counter, Sampler, Step
from harness.diffusion.sampling import guided, sample
from harness.guidance.base import COND, UNCOND, Guided
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from tests.toy import Toy, numbers


def active(guidance: CFG, steps: int) -> list[int]:
    return [i for i in range(steps) if guidance.active(Step(i, steps, sigma=10.0 - i, timestep=999))]


def test_intervals() -> None:
    assert active(CFG(5), 4) == [0, 1, 2, 3]
    assert active(CFG(5, steps=(1, 2)), 4) == [1, 2]  # both inclusive
    assert active(CFG(5, steps=(2, 2)), 4) == [2]
    assert active(CFG(5, sigma=(7, 9)), 4) == [1, 2]  # 9 is in, 7 is not
    assert active(CFG(5, sigma=(8, None)), 4) == [0, 1]
    assert active(CFG(5, fraction=(0.25, 0.75)), 20) == list(range(5, 15))
    assert active(CFG(5, fraction=(0, 1)), 7) == list(range(7))


@pytest.mark.parametrize(("first", "steps"), [(29, 50), (57, 100), (15, 22), (7, 25)])
def test_a_fraction_that_floating_point_makes_too_large_still_counts(first: int, steps: int) -> None:
    assert active(CFG(5, fraction=(first / steps, 1)), steps)[0] == first
    assert active(CFG(5, fraction=(0, first / steps)), steps)[-1] == first - 1


def test_a_fraction_that_was_computed_may_be_a_last_bit_off() -> None:
    assert 0.1 + 0.2 > 3 / 10
    assert active(CFG(5, fraction=(0.1 + 0.2, 0.7 + 0.1)), 10) == [3, 4, 5, 6, 7]
    assert 0.7 + 0.1 < 8 / 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": (5.0, 0.3)}, "upside down"),
        ({"sigma": (5.0, 5.0)}, "upside down or empty"),
        ({"steps": (7, 3)}, "upside down"),
        ({"steps": (-1, 3)}, "0 and more"),
        ({"fraction": (0.5, 1.5)}, r"within \[0, 1\]"),
        ({"sigma": (0.3, float("inf"))}, "finite"),
        ({"sigma": (0.3, 5.0), "steps": (1, 2)}, "in one way, got sigma and steps"),
    ],
)
def test_intervals_that_make_no_sense(settings: dict[str, tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CFG(5, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        CFG(float("nan"))


def test_steps_beyond_the_sampler_are_a_problem() -> None:
    assert CFG(5, steps=(0, 19)).problems(Sampler(steps=20)) == []
    assert "0 to 19" in CFG(5, steps=(0, 20)).problems(Sampler(steps=20))[0]


@pytest.mark.parametrize(
    ("fraction", "near"), [((0.41, 0.42), "1/4 and 2/4"), ((0.8, 1), "3/4"), ((0.25, 0.3), None), ((0, 1e-3), None)]
)
def test_a_fraction_without_a_step_is_a_problem(fraction: tuple[float, float], near: str | None) -> None:
    found = CFG(5, fraction=fraction).problems(Sampler(steps=4))
    assert [text.partition("; ")[2] for text in found] == ([f"the nearest: {near}"] if near else [])


@pytest.mark.parametrize(
    ("sigma", "near"),
    [((70, 75), "21.1 and 80"), ((80, 100), "80"), ((100, None), "80"), ((0, 0.001), "0.002"),
     ((0.002, 1), "0.002 and 2"), ((75, 80), None), ((21, None), None), ((0, 0.002), None)],
)
def test_noise_levels_without_a_step_are_a_problem(sigma: tuple[float, float | None], near: str | None) -> None:
    found = CFG(5, sigma=sigma).guides_nowhere([80, 21.1, 2, 0.002])
    assert (found or "").partition("80 down to 0.002; ")[2] == (f"the nearest: {near}" if near else "")


@pytest.mark.parametrize(
    ("solver", "guidance", "nfe"),
    [
        ("ddim", NoGuidance(), 20),
        ("ddim", CFG(1), 20),
        ("ddim", CFG(0), 20),
        ("ddim", CFG(5), 40),
        ("ddim", CFG(5, steps=(5, 14)), 30),
        ("ddim", CFG(5, fraction=(0.25, 0.75)), 30),
        ("dpmsolver++", CFG(5, steps=(0, 0)), 21),
        ("heun", NoGuidance(), 39),
        ("heun", CFG(5), 78),
        ("heun", CFG(5, steps=(5, 14)), 39 + 20),  # 2N - 1, and two for every guided step
        ("heun", CFG(5, steps=(18, 19)), 39 + 3),  # the last step has one evaluation
    ],
)
def test_what_is_not_requested_is_not_computed(solver: str, guidance: CFG | NoGuidance, nfe: int) -> None:
    toy = Toy(lambda x, t, n: n)
    toy.counter = Counter(3)
    sample(toy, torch.zeros(3, 4, 8, 8), toy.encode(numbers(1, 2, 3)), guidance, Sampler(solver, 20))
    assert toy.counter.nfe.tolist() == [nfe] * 3


def test_an_interval_of_noise_levels_is_decided_at_the_steps_start() -> None:
    toy = Toy(lambda x, t, n: n)
    schedule = toy.schedule(Sampler("heun", 20))
    guidance = CFG(5, sigma=(0.28, 5.42))
    for step in schedule.evaluations:
        inside = 0.28 < step.sigma <= 5.42
        assert guidance.requests(step, step.sigma) == ((UNCOND, COND) if inside else (COND,))
    # an upper end that is exactly a step's level takes this step in, as a lower end it leaves it out
    level = schedule.evaluations[8].sigma
    assert CFG(5, sigma=(0, level)).active(schedule.evaluations[8])
    assert not CFG(5, sigma=(level, 1000)).active(schedule.evaluations[8])


@pytest.mark.parametrize("native", ["epsilon", "v_prediction", "sample"])
def test_the_scale_is_that_of_the_difference(native: str) -> None:
    toy = Toy(lambda x, t, n: n, native)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = toy.schedule(Sampler("ddim", 10)).evaluations[3]
    answer = guided(toy, x, step, toy.encode(numbers(2)), CFG(7.5))
    epsilon = toy.to_epsilon(answer.prediction, x, step.timestep)
    torch.testing.assert_close(epsilon, torch.full_like(x, 15.0))  # 0 + 7.5 * (2 - 0)


def test_a_guidance_may_answer_in_epsilon_or_x0_with_a_second_prediction() -> None:
    class InEpsilon(NoGuidance):
        def combine(self, predictions, x, step):  # type: ignore[no-untyped-def]
            return Guided(torch.full_like(x, 0.5), "epsilon", renoise=torch.full_like(x, 0.25))

    toy = Toy(lambda x, t, n: n, "v_prediction")
    x = torch.ones(1, 4, 8, 8)
    step = toy.schedule(Sampler("ddim", 10)).evaluations[3]
    answer = guided(toy, x, step, toy.encode(numbers(2)), InEpsilon())
    assert answer.renoise is not None
    torch.testing.assert_close(toy.to_epsilon(answer.prediction, x, step.timestep), torch.full_like(x, 0.5))
    torch.testing.assert_close(toy.to_epsilon(answer.renoise, x, step.timestep), torch.full_like(x, 0.25))
