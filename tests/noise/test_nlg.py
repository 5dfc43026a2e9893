"""NLG against closed forms of its algorithm (arXiv 2509.13936), on a model whose epsilon is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.diffusion.base import Conditioning, Sampler
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.errors import HarnessError
from harness.guidance.base import COND, UNCOND, Request
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, Result
from harness.noise.gaussian import Gaussian
from harness.noise.nlg import NLG
from harness.prompts import Prompt
from harness.seeding import RowKey, row_key
from tests.tiny import tiny_lora, tiny_stable_diffusion
from tests.toy import Toy, numbers

BARE = NLG(steps=4, step_size=0.5, clip_threshold=None, normalise=False, noise_variance=0)
D = 4 * 8 * 8


def refined(stage: NLG, toy: Toy | None = None, sampler: Sampler | None = None) -> Result:
    toy = toy or Toy(lambda x, t, n: n)
    return Method(stage, NoGuidance(), sampler or Sampler("ddim", 5))(toy, numbers(0.5, 2.0))


def plain() -> Tensor:
    return Method(Gaussian())(Toy(lambda x, t, n: n), numbers(0.5, 2.0)).initial_noise


@pytest.mark.parametrize("native", ["epsilon", "v_prediction"])
def test_a_constant_difference_moves_the_noise_along_a_line(native: str) -> None:
    result = refined(BARE, Toy(lambda x, t, n: n, native))  # eps_c - eps_u = 0.5 and 2
    moved = plain() - 4 * 0.5 * torch.tensor([0.5, 2.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(result.initial_noise, moved, atol=1e-4, rtol=1e-4)
    for record, difference in zip(result.records, (0.5, 2.0), strict=True):
        assert record["norms"] == pytest.approx([difference * math.sqrt(D)] * 4, rel=1e-3)


def test_v_prediction_full_conversion_is_alpha_times_the_difference_of_v() -> None:
    toy = Toy(lambda x, t, n: torch.tanh(x) * n, "v_prediction")
    alpha, sigma = toy.alpha_sigma(999)
    assert (alpha, sigma) == (pytest.approx(0.068265, abs=1e-6), pytest.approx(0.997667, abs=1e-6))
    conditioning = toy.encode(numbers(0.5, 2.0))
    n = plain()
    v_c, v_u = toy.predict(n, 999, conditioning), toy.predict(n, 999, conditioning.unconditional)
    result = refined(replace(BARE, steps=1), toy)
    torch.testing.assert_close(result.initial_noise, n - 0.5 * alpha * (v_c - v_u), atol=1e-5, rtol=1e-4)


def test_no_steps_or_equal_predictions_change_nothing() -> None:
    assert torch.equal(refined(NLG(steps=0)).initial_noise, plain())
    same = Toy(lambda x, t, n: x * 0.3)
    assert torch.equal(refined(replace(BARE, clip_threshold=0.5), same).initial_noise, plain())


def test_normalising_keeps_the_radius() -> None:
    result = refined(NLG())
    norms = result.initial_noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2,), math.sqrt(D)), rtol=1e-5, atol=0)
    assert not torch.equal(result.initial_noise, plain())
    assert all(len(record["norms"]) == 20 for record in result.records)


def test_clipping_bounds_a_step_row_by_row() -> None:
    result = refined(replace(BARE, steps=1, clip_threshold=10.0))
    lengths = (result.initial_noise - plain()).flatten(1).norm(dim=1)
    expected = 0.5 * torch.tensor([0.5 * math.sqrt(D), 10.0])  # the first row's norm 8 is below the threshold
    torch.testing.assert_close(lengths, expected, rtol=1e-4, atol=0)
    assert result.records[1]["norms"][0] == pytest.approx(2 * math.sqrt(D), rel=1e-4)  # recorded before clipping


def test_the_formula_does_not_cancel_the_shared_part() -> None:
    toy = Toy(lambda x, t, n: n + 1)
    result = refined(replace(BARE, steps=1, formula=True, gamma=3.0), toy)
    direction = 3 * (torch.tensor([0.5, 2.0]) + 1) + (1 - 3) * 1
    torch.testing.assert_close(
        result.initial_noise, plain() - 0.5 * direction.view(-1, 1, 1, 1), atol=1e-5, rtol=1e-5
    )


def test_boundary() -> None:
    opposite = Toy(lambda x, t, n: torch.where(x > 0, -n, n))  # pushes each element away from 0
    result = refined(replace(BARE, boundary=True), opposite)
    assert (result.initial_noise.min(), result.initial_noise.max()) == (-3.0, 3.0)


def test_fresh_noise_walks_at_random_and_repeated_noise_straight_on() -> None:
    still = Toy(lambda x, t, n: torch.zeros_like(x))
    stage = replace(BARE, steps=20, noise_variance=0.01)
    fresh = refined(stage, still).initial_noise - plain()
    repeated = refined(replace(stage, variant="published"), still).initial_noise - plain()
    once = refined(replace(stage, steps=1), still).initial_noise - plain()
    torch.testing.assert_close(repeated, 20 * once, atol=1e-4, rtol=1e-3)
    assert fresh.std().item() == pytest.approx(0.1 * math.sqrt(20), rel=0.1)
    assert repeated.std().item() == pytest.approx(0.1 * 20, rel=0.1)


def test_the_walk_is_at_the_first_timestep_of_the_samplers_grid() -> None:
    seen: set[float] = set()

    def epsilon(x: Tensor, t: float, n: Tensor) -> Tensor:
        seen.add(t)
        return n

    toy = Toy(epsilon)
    steps = len(toy.schedule(Sampler("dpmsolver++", 1)).evaluations)
    refined(NLG(steps=3), toy, Sampler("dpmsolver++", steps))
    assert seen == {999.0}


@pytest.mark.parametrize(("guidance", "each"), [(NoGuidance(), 1), (CFG(7.5), 2)])
def test_cost(guidance: NoGuidance | CFG, each: int) -> None:
    result = Method(NLG(steps=20), guidance, Sampler("ddim", 20))(Toy(lambda x, t, n: n), numbers(1, 2))
    np.testing.assert_array_equal(result.nfe, [2 * 20 + each * 20] * 2)  # README's example: 60; with CFG 80
    np.testing.assert_array_equal(result.flops, result.nfe * 10.0)


class Twins(Toy):
    """A second network, whose epsilon is a tenth of the first's."""

    requests = frozenset({"cond", "uncond", "network"})
    networks = ("main", "weak")

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        given = super().predict(x, timestep, conditioning, network, perturbed)
        return given if network == "main" else given / 10


def test_any_pair_of_predictions_makes_a_direction() -> None:
    toy, n = Twins(lambda x, t, n: n + 1), torch.tensor([0.5, 2.0])
    pairs = {
        ("cond", "uncond"): n, ("uncond", "cond"): -n,
        ("cond", "network:weak"): 0.9 * (n + 1), ("network:weak", "uncond"): 0.1 * (n + 1) - 1,
    }
    for (strong, weak), difference in pairs.items():
        stage = replace(BARE, strong=strong, weak=weak)
        result = refined(stage, toy)
        moved = plain() - 4 * 0.5 * difference.view(-1, 1, 1, 1)
        torch.testing.assert_close(result.initial_noise, moved, atol=1e-5, rtol=1e-5)
        asked = {"network:weak": "weak"}
        expected = {"main": 5}
        for name in (strong, weak):
            network = asked.get(name, "main")
            expected[network] = expected.get(network, 0) + 4
        assert result.nfe_by_network == [expected] * 2


def test_the_weak_network_of_a_model_block(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "sd")
    lora = tiny_lora(tmp_path / "lora", folder)
    model = StableDiffusion.load(str(folder), networks={"weak": {"lora": str(lora)}})
    prompts = [Prompt("a", "a red ring"), Prompt("b", "two blue stars")]
    method = Method(NLG(steps=3, weak="network:weak", clip_threshold=None), NoGuidance(), Sampler("ddim", 2))
    result = method(model, prompts)
    assert result.nfe_by_network == [{"main": 3 + 2, "weak": 3}] * 2
    assert all(norm > 1e-3 for record in result.records for norm in record["norms"])


def test_the_stage_says_what_its_pair_needs() -> None:
    assert NLG().pair == (COND, UNCOND)
    assert (NLG().needs, NLG().needs_networks) == ({"cond", "uncond"}, frozenset())
    autoguided = NLG(weak="network:guide")
    assert autoguided.pair == (COND, Request("network", network="guide"))
    assert (autoguided.needs, autoguided.needs_networks) == ({"cond", "network"}, {"guide"})


@pytest.mark.parametrize(
    ("pair", "message"),
    [({"weak": "network"}, "weak must be cond, uncond or network:NAME, got 'network'"),
     ({"weak": "network:"}, "weak must be"), ({"weak": "network:main"}, "weak must be"),
     ({"strong": "perturbed"}, "strong must be"),
     ({"weak": "cond"}, "no direction between them")],
)
def test_a_pair_that_makes_no_sense(pair: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NLG(**pair)  # type: ignore[arg-type]


def published_keys(place: int, batch: int, seeds: tuple[int, int] = (0, 0)) -> list[RowKey]:
    return [
        row_key("published", "prompts", str(i), seed, {}, place=place + i, batch=batch) for i, seed in enumerate(seeds)
    ]


def test_published_seeding_repeats_numpys_first_draw_by_place() -> None:
    still = Toy(lambda x, t, n: torch.zeros_like(x))
    stage = replace(BARE, steps=3, noise_variance=0.04, variant="published")
    method = Method(stage, NoGuidance(), Sampler("ddim", 2))
    np.random.seed(0)  # as the script does, and then one draw for a whole batch
    draw = torch.from_numpy(np.random.randn(4, 4, 8, 8)).float()
    for first in (4, 8):  # the second and the third micro-batch of four: the same draw
        result = method.run(still, numbers(0.5, 2.0), published_keys(first + 1, 4))
        moved = plain() + 3 * 0.2 * draw[1:3]  # places 1 and 2
        torch.testing.assert_close(result.initial_noise, moved, atol=1e-5, rtol=1e-5)
    other = method.run(still, numbers(0.5, 2.0), published_keys(5, 4, (0, 7)))
    np.random.seed(7)
    expected = 3 * 0.2 * torch.from_numpy(np.random.randn(4, 4, 8, 8)).float()[2]
    start = Method(Gaussian()).run(still, numbers(0.5, 2.0), published_keys(5, 4, (0, 7))).initial_noise[1]
    torch.testing.assert_close(other.initial_noise[1] - start, expected, atol=1e-5, rtol=1e-4)
    described = Method(replace(stage, variant="described"), NoGuidance(), Sampler("ddim", 2))
    one, two = (described.run(still, numbers(0.5, 2.0), published_keys(first, 4)) for first in (4, 9))
    assert torch.equal(one.initial_noise, two.initial_noise)  # nothing published about it


def test_in_a_notebook_the_prompts_are_one_batch_and_other_stages_have_no_published_seeding() -> None:
    toy, texts = Toy(lambda x, t, n: torch.zeros_like(x)), numbers(0.5, 2.0)
    stage = replace(BARE, noise_variance=0.04, variant="published")
    method = Method(stage, NoGuidance(), Sampler("ddim", 2))
    called = method(toy, texts, seeding="published")
    assert torch.equal(called.initial_noise, method.run(toy, texts, published_keys(0, 2)).initial_noise)
    for other in (Gaussian(), replace(stage, variant="described")):
        with pytest.raises(HarnessError, match="defines no 'published' seeding"):
            Method(other)(toy, texts, seeding="published")  # type: ignore[arg-type]


def test_published_seeding_misreads_the_first_micro_batch_of_a_network_that_predicts_v() -> None:
    stage = replace(BARE, steps=1, variant="published")
    for native, factor in (("v_prediction", 0.99957 / 0.068265), ("epsilon", 1.0)):
        method = Method(stage, NoGuidance(), Sampler("ddim", 5))
        toy = Toy(lambda x, t, n: n, native)
        first = method.run(toy, numbers(0.5, 2.0), published_keys(0, 2)).initial_noise - plain()
        later = method.run(toy, numbers(0.5, 2.0), published_keys(2, 2)).initial_noise - plain()
        torch.testing.assert_close(first, factor * later, rtol=2e-3, atol=1e-4)
        mixed = method.run(toy, numbers(0.5, 2.0), published_keys(1, 2)).initial_noise - plain()
        torch.testing.assert_close(mixed, torch.stack([first[0], later[1]]))  # what a resumed run may hold


@pytest.mark.parametrize("settings", [{"steps": -1}, {"clip_threshold": 0}, {"noise_variance": -1}])
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        NLG(**settings)  # type: ignore[arg-type]
