"""Noise optimisation by inversion stability (arXiv 2407.14041, algorithm 2) against hand-made steps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.diffusion.base import Sampler
from harness.diffusion.inversion import invert
from harness.diffusion.sampling import sample
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, Result
from harness.noise.cosine import cosine
from harness.noise.noise_optimisation import NoiseOptimisation, gradient
from harness.seeding import RowKey, normals
from tests.toy import Toy, numbers

SAMPLER = Sampler("ddim", 5)
D = 4 * 8 * 8


def curved() -> Toy:
    return Toy(lambda x, t, n: torch.tanh(x * (1 + n)))


def optimised(stage: NoiseOptimisation, *texts: float, toy: Toy | None = None) -> Result:
    return Method(stage, NoGuidance(), SAMPLER)(toy or curved(), numbers(*texts))


def rows(count: int) -> Tensor:
    return normals([RowKey("prompts", str(i), 0).generator("noise") for i in range(count)], (4, 8, 8))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_the_closed_form_is_the_finite_difference(seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    noise, inverted, direction = torch.randn(3, 1, 2, 3, 3, generator=random, dtype=torch.float64)
    noise = noise * scale
    found, h = gradient(noise, inverted), 1e-5 * scale
    rise = cosine(noise + h * direction, inverted) - cosine(noise - h * direction, inverted)
    assert (found * direction).sum().item() == pytest.approx(-rise[0] / (2 * h), abs=1e-8 / scale)
    assert (found * noise).sum().item() == pytest.approx(0, abs=1e-12)
    (c,) = cosine(noise, inverted)
    assert found.norm().item() == pytest.approx(math.sqrt(1 - c**2) / noise.norm().item())


def test_the_gradient_holds_in_half_precisions_range() -> None:
    # SDXL's latent: its squared norm is beyond float16
    noise, inverted = 1.1 * torch.randn(2, 1, 4, 128, 128, generator=torch.Generator().manual_seed(1)).half()
    exact = gradient(noise.double(), inverted.double())
    assert gradient(noise, inverted).dtype == torch.float16
    torch.testing.assert_close(gradient(noise, inverted).double(), exact, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradient(noise.float(), inverted.float()).double(), exact, rtol=1e-5, atol=1e-12)


def test_two_steps_by_hand() -> None:
    toy, n0, texts = curved(), rows(2), (0.5, 2.0)
    conditioning = toy.encode(numbers(*texts))

    def trip(n: Tensor) -> Tensor:
        latents = sample(toy, n, conditioning, NoGuidance(), SAMPLER)
        return invert(toy, latents, conditioning, SAMPLER, CFG(1))

    stage = NoiseOptimisation(steps=3, learning_rate=80, learning_rate_size=None, momentum=0.5)
    rates = [40 * (1 + math.cos(math.pi / 3)), 40 * (1 + math.cos(2 * math.pi / 3)), 0]
    assert stage.rates(D) == pytest.approx(rates, abs=1e-12)
    v0 = trip(n0)
    m1 = gradient(n0, v0)
    n1 = n0 - rates[0] * m1
    v1 = trip(n1)
    m2 = 0.5 * m1 + gradient(n1, v1)
    n2 = n1 - rates[1] * m2
    result = optimised(stage, *texts)
    torch.testing.assert_close(result.initial_noise, n2, atol=1e-5, rtol=1e-5)
    curve = np.stack([cosine(n0, v0), cosine(n1, v1), cosine(n2, trip(n2))], axis=1)
    for row, record in enumerate(result.records):
        assert record["cosines"] == pytest.approx(curve[row].tolist(), abs=1e-6)
        assert record["norms"] == pytest.approx([x[row].norm().item() for x in (n0, n1, n2)], rel=1e-6)
    # the last rate is 0, so the latents of the last round trip are the final noise's
    torch.testing.assert_close(result.latents, sample(toy, result.initial_noise, conditioning, NoGuidance(), SAMPLER))


def test_the_cosine_rises_and_the_norm_a_little() -> None:
    result = optimised(NoiseOptimisation(steps=30, learning_rate=3000), 0.5, 2.0, 1.0)
    for record in result.records:
        assert len(record["cosines"]) == len(record["norms"]) == 30
        assert record["cosines"][-1] > record["cosines"][0] + 0.005
        assert record["norms"][0] < record["norms"][-1] < 1.2 * record["norms"][0]


def test_a_constant_epsilon_leaves_nothing_to_do() -> None:
    result = optimised(NoiseOptimisation(steps=5), 1, 2, toy=Toy(lambda x, t, n: torch.full_like(x, 0.3)))
    torch.testing.assert_close(result.initial_noise, rows(2), atol=1e-3, rtol=0)
    for record in result.records:
        assert record["cosines"] == pytest.approx([1] * 5)


def test_the_rate_follows_the_latents_size() -> None:
    paper = NoiseOptimisation()
    assert paper.rates(65_536)[49] == pytest.approx(50)  # half-way of 100 steps
    assert paper.rates(65_536)[-1] == 0
    assert paper.rates(1024)[0] == pytest.approx(paper.rates(65_536)[0] / 64)
    assert NoiseOptimisation(learning_rate=1.6, learning_rate_size=None).rates(1024) == pytest.approx(
        NoiseOptimisation(learning_rate=1.6, learning_rate_size=1024).rates(1024)
    )

    def turned(size: int) -> float:  # the sine of the first step's angle, the noise and its inversion at right angles
        noise, inverted = torch.eye(2, size).view(2, 1, size, 1, 1) * math.sqrt(size)
        return float((paper.rates(size)[0] * gradient(noise, inverted)).norm() / noise.norm())

    assert turned(1024) == pytest.approx(turned(65_536))


def test_no_steps_change_nothing() -> None:
    result, plain = optimised(NoiseOptimisation(steps=0), 1, 2), Method(sampler=SAMPLER)(curved(), numbers(1, 2))
    assert torch.equal(result.initial_noise, plain.initial_noise)
    assert torch.equal(result.latents, plain.latents)
    assert result.records == [{"cosines": [], "norms": []}] * 2
    np.testing.assert_array_equal(result.nfe, plain.nfe)
    measured = optimised(NoiseOptimisation(steps=1), 1, 2)
    assert torch.equal(measured.initial_noise, plain.initial_noise)
    assert torch.equal(measured.latents, plain.latents)
    assert [len(record["cosines"]) for record in measured.records] == [1, 1]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([0.1, 1.0, 2.0]), min_size=1, max_size=3))
def test_a_row_does_not_depend_on_the_other_rows(strangers: list[float]) -> None:
    stage = NoiseOptimisation(steps=3)
    alone, among = optimised(stage, 0.7), optimised(stage, 0.7, *strangers)
    torch.testing.assert_close(among.initial_noise[0], alone.initial_noise[0], atol=1e-5, rtol=1e-5)
    assert among.records[0]["cosines"] == pytest.approx(alone.records[0]["cosines"], abs=1e-6)


@pytest.mark.parametrize(
    ("guidance", "scale", "sampling", "inversion"),
    [(NoGuidance(), 1, 1, 1), (CFG(5.5), 1, 2, 1), (CFG(5.5), 0, 2, 1), (CFG(5.5), 5.5, 2, 2)],
)
def test_cost(guidance: NoGuidance | CFG, scale: float, sampling: int, inversion: int) -> None:
    method = Method(NoiseOptimisation(steps=6, inversion_scale=scale), guidance, Sampler("ddim", 4))
    result = method(curved(), numbers(1, 2))
    np.testing.assert_array_equal(result.nfe, [6 * 4 * (sampling + inversion)] * 2)
    np.testing.assert_array_equal(result.grad_evals, [0, 0])  # the gradient is a formula


@pytest.mark.parametrize(
    "given_", [{"steps": -1}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"learning_rate_size": 0},
               {"momentum": 1}]
)
def test_settings_that_make_no_sense(given_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given_))):
        NoiseOptimisation(**given_)  # type: ignore[arg-type]
