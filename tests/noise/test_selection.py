"""Selection by inversion stability (arXiv 2407.14041) and best of N: order, ties, counts, independence of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.diffusion.base import Sampler
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, Result, method_identity
from harness.metrics.base import Scores
from harness.noise.best_of_n import BestOfN
from harness.noise.choice import Best
from harness.noise.cosine import cosine
from harness.noise.inversion_stability import InversionStability
from harness.noise.zero_order_search import ZeroOrderSearch
from harness.prompts import Prompt
from harness.seeding import RowKey, normals
from tests.noise.judges import Brightness, Darkness
from tests.toy import Toy, numbers

SAMPLER = Sampler("ddim", 5)


def curved() -> Toy:
    return Toy(lambda x, t, n: torch.tanh(x * (1 + n)))


def candidates(prompt_id: str, count: int) -> torch.Tensor:
    key = RowKey("prompts", prompt_id, 0)
    generators = [key.generator("noise")] + [key.generator("candidate", k) for k in range(1, count)]
    return normals(generators, (4, 8, 8))


def test_cosine_is_exact_and_row_by_row() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]).view(3, 2, 1, 1)
    b = torch.tensor([[4.0, 3.0], [-2.0, 0.0], [1.0, 0.0]]).view(3, 2, 1, 1)
    values = cosine(a, b)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values[:2], [24 / 25, -1])
    assert np.isnan(values[2])
    large = torch.full((1, 65_536), 1.1, dtype=torch.float16)  # its squared norm is beyond float16
    np.testing.assert_allclose(cosine(large, large), [1])


def test_a_constant_epsilon_is_perfectly_stable_so_the_own_noise_stays() -> None:
    toy = Toy(lambda x, t, n: torch.full_like(x, 0.3))
    result = Method(InversionStability(candidates=3), NoGuidance(), SAMPLER)(toy, numbers(1, 2))
    for record in result.records:
        assert record["scores"] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("pick", ["most", "least"])
def test_the_chosen_candidate_is_the_extreme_one(pick: str) -> None:
    method = Method(InversionStability(candidates=5, pick=pick), CFG(3), SAMPLER)  # type: ignore[arg-type]
    result = method(curved(), numbers(0.5, 2.0, 1.0))
    for row, record in enumerate(result.records):
        extreme = np.argmax if pick == "most" else np.argmin
        assert record["chosen"] == extreme(record["scores"])
        assert len(set(record["scores"])) == 5
        assert torch.equal(result.initial_noise[row], candidates(str(row), 5)[record["chosen"]])
    assert len({record["chosen"] for record in result.records}) > 1 or pick == "least"


def test_one_candidate_is_the_rows_own_noise() -> None:
    plain = Method(sampler=SAMPLER)(curved(), numbers(1, 2))
    for pick in ("most", "least"):
        one = Method(InversionStability(1, pick), sampler=SAMPLER)(curved(), numbers(1, 2))  # type: ignore[arg-type]
        assert torch.equal(one.initial_noise, plain.initial_noise)
        assert torch.equal(one.latents, plain.latents)  # the winner's latents are those of sampling it


@pytest.mark.parametrize(
    ("scale", "guidance", "sampling", "inversion"),
    [(1, NoGuidance(), 1, 1), (0, NoGuidance(), 1, 1), (1, CFG(5.5), 2, 1), (5.5, CFG(5.5), 2, 2)],
)
def test_selection_costs_every_round_trip_and_no_more(
    scale: float, guidance: CFG | NoGuidance, sampling: int, inversion: int
) -> None:
    method = Method(InversionStability(6, inversion_scale=scale), guidance, Sampler("ddim", 4))
    result = method(curved(), numbers(1, 2))
    np.testing.assert_array_equal(result.nfe, [6 * 4 * (sampling + inversion)] * 2)


def test_best_of_n_takes_what_the_judge_likes() -> None:
    for judge, extreme in ((Brightness(), np.argmax), (Darkness(), np.argmin)):
        result = Method(BestOfN(4), NoGuidance(), SAMPLER, judge)(curved(), numbers(0.5, 2.0))
        for row, record in enumerate(result.records):
            assert record["chosen"] == extreme(record["scores"])
            assert result.images[row].mean() == pytest.approx(record["scores"][record["chosen"]])
            assert torch.equal(result.initial_noise[row], candidates(str(row), 4)[record["chosen"]])
        np.testing.assert_array_equal(result.nfe, [4 * 5] * 2)


def test_a_row_without_scores_keeps_its_own_noise_and_says_so() -> None:
    result = Method(BestOfN(3), NoGuidance(), SAMPLER, Brightness(blind=1))(curved(), numbers(0.5, 2.0))
    assert result.records[1] == {"chosen": 0, "scores": [None, None, None]}
    assert torch.equal(result.initial_noise[1], candidates("1", 1)[0])
    assert None not in result.records[0]["scores"]


def test_nan_never_wins() -> None:
    for highest in (True, False):
        best = Best(highest)
        for value in (np.nan, 2.0, np.nan, 1.0):
            tensor = torch.full((1, 1, 1, 1), value)
            best.offer(tensor, tensor, np.array([value]))
        assert best.noise.item() == (2.0 if highest else 1.0)
        assert best.records() == [{"chosen": 1 if highest else 3, "scores": [None, 2.0, None, 1.0]}]


@dataclass
class Careless(Brightness):
    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        return Scores(np.zeros(1))


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 8), st.sampled_from(["stable", "best", "search"]))
def test_how_many_candidates_go_together_changes_nothing(together: int, name: str) -> None:
    def result(together: int) -> Result:
        stages = {
            "stable": InversionStability(7, together=together), "best": BestOfN(7, together=together),
            "search": ZeroOrderSearch(2, 3, together=together),
        }
        return Method(stages[name], CFG(3), SAMPLER, Brightness())(curved(), numbers(0.5, 2.0, 1.0))

    one, many = result(1), result(together)
    for row in range(3):
        assert many.records[row]["chosen"] == one.records[row]["chosen"]
        assert many.records[row]["scores"] == pytest.approx(one.records[row]["scores"], rel=1e-6)
    torch.testing.assert_close(many.initial_noise, one.initial_noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(many.latents, one.latents, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(many.nfe, one.nfe)  # every row is counted for the sample that it belongs to


def test_candidates_that_go_together_make_one_batch_and_the_same_sample() -> None:
    batches: list[int] = []

    def epsilon(x: torch.Tensor, t: float, n: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return n

    Method(BestOfN(5, together=3), sampler=Sampler("ddim", 1), judge=Brightness())(Toy(epsilon), numbers(1, 2))
    assert batches == [6, 4]
    identities = [method_identity(Method(BestOfN(5, together=k))) for k in (1, 3)]
    assert identities[0] == identities[1]
    assert identities[0] != method_identity(Method(BestOfN(4)))


def test_rows_that_are_no_multiple_of_the_micro_batch_are_refused() -> None:
    class Halving:
        def __call__(self, ctx):  # type: ignore[no-untyped-def]
            return ctx.sample(ctx.noise[:1])

    with pytest.raises(HarnessError, match="Halving gave 1 rows to a context of 2"):
        Method(Halving(), sampler=SAMPLER)(curved(), numbers(1, 2))


def test_a_judge_that_answers_for_too_few_images_is_told() -> None:
    with pytest.raises(HarnessError, match=r"'brightness' gave scores \(1,\) for 2 images"):
        Method(BestOfN(2), sampler=SAMPLER, judge=Careless())(curved(), numbers(1, 2))


def test_a_judge_is_required() -> None:
    with pytest.raises(HarnessError, match="judge"):
        Method(BestOfN(2))(curved(), numbers(1))


@pytest.mark.parametrize("stage", [InversionStability, BestOfN])
@pytest.mark.parametrize("name", ["candidates", "together"])
def test_no_candidates_is_refused(stage: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        stage(**{name: 0})
