"""NoiseRefine's stage on a model with two networks whose predictions are formulas."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.diffusion.base import Conditioning, Sampler
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, load_method
from harness.noise.noise_refine import NoiseRefine
from tests.toy import Epsilon, Toy, numbers


class TwoNetworks(Toy):
    """The toy with a further network, whose native prediction is `refine(x, timestep, n)`."""

    requests: ClassVar[frozenset[str]] = frozenset({"cond", "uncond", "network"})

    def __init__(self, refine: Epsilon, native: str = "epsilon", name: str = "refiner") -> None:
        super().__init__(lambda x, t, n: torch.tanh(x * (1 + n)), native)
        self.refine = refine
        self.networks = ("main", name)

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        if network == "main":
            return super().predict(x, timestep, conditioning, network, perturbed)
        assert self.counter is not None
        self.counter.add(network, conditioning.rows)
        return self.refine(x, float(timestep), conditioning.tensors["n"].view(-1, 1, 1, 1)).expand_as(x)


def plain(model: Toy, *values: float) -> Tensor:
    return Method()(model, numbers(*values)).initial_noise


@pytest.mark.parametrize("native", ["epsilon", "v_prediction"])
def test_the_networks_own_output_is_added(native: str) -> None:
    model = TwoNetworks(lambda x, t, n: n * x + 0.1, native)
    result = Method(NoiseRefine())(model, numbers(0.5, 2.0))
    x = plain(model, 0.5, 2.0)
    n = torch.tensor([0.5, 2.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(result.initial_noise, x + n * x + 0.1)
    for row, record in enumerate(result.records):
        expected = (result.initial_noise[row] - x[row]).norm() / x[row].norm()
        assert record == {"shift": pytest.approx(expected.item(), rel=1e-5)}


def test_a_refiner_that_says_zero_changes_nothing() -> None:
    model = TwoNetworks(lambda x, t, n: torch.zeros_like(x))
    result, without = Method(NoiseRefine())(model, numbers(1, 2)), Method()(model, numbers(1, 2))
    assert torch.equal(result.latents, without.latents)
    assert [record["shift"] for record in result.records] == [0, 0]


@pytest.mark.parametrize(
    "sampler",
    [Sampler("ddim", 20), Sampler("ddim", 20, "leading"), Sampler("heun", 5), Sampler("euler", 5, "linspace")],
)
def test_the_refiner_sees_the_noise_itself_at_999_whatever_the_sampler(sampler: Sampler) -> None:
    seen: list[tuple[Tensor, float]] = []

    def refine(x: Tensor, t: float, n: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    model = TwoNetworks(refine)
    Method(NoiseRefine(), sampler=sampler)(model, numbers(1, 2))
    (x, t), = seen
    assert t == 999
    assert torch.equal(x, plain(model, 1, 2))


@pytest.mark.parametrize(("guidance", "each"), [(NoGuidance(), 1), (CFG(7.5), 2)])
def test_cost_is_one_evaluation_more(guidance: NoGuidance | CFG, each: int) -> None:
    result = Method(NoiseRefine(), guidance, Sampler("ddim", 20))(TwoNetworks(lambda x, t, n: n), numbers(1, 2))
    np.testing.assert_array_equal(result.nfe, [1 + each * 20] * 2)
    assert result.nfe_by_network == [{"refiner": 1, "main": each * 20}] * 2


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=4))
def test_a_row_does_not_depend_on_the_others(values: list[float]) -> None:
    model = TwoNetworks(lambda x, t, n: torch.sin(x) * n)
    together = Method(NoiseRefine(), sampler=Sampler("ddim", 3))(model, numbers(*values))
    for row, prompt in enumerate(numbers(*values)):
        alone = Method(NoiseRefine(), sampler=Sampler("ddim", 3))(model, [prompt])
        assert torch.equal(alone.initial_noise[0], together.initial_noise[row])
        assert math.isclose(alone.records[0]["shift"], together.records[row]["shift"], rel_tol=1e-6)


def test_the_network_is_named_by_the_parameter() -> None:
    model = TwoNetworks(lambda x, t, n: torch.ones_like(x), name="other")
    method = load_method(noise={"noise_refine": {"network": "other"}})
    assert method.stage.needs_networks == ("other",)  # type: ignore[attr-defined]
    assert method.stage.needs == {"network"}  # type: ignore[attr-defined]
    torch.testing.assert_close(method(model, numbers(1)).initial_noise, plain(model, 1) + 1)
    with pytest.raises(HarnessError, match=r"network='refiner'.*networks: main, other"):
        Method(NoiseRefine())(model, numbers(1))


def test_a_family_without_further_networks_says_so() -> None:
    with pytest.raises(HarnessError, match="family 'toy' cannot give"):
        Method(NoiseRefine())(Toy(lambda x, t, n: n), numbers(1))
