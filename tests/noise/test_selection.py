"""Selection by inversion stability (arXiv 2407.14041) and best of N: order, ties, counts, independence of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from harness.diffusion.base import Sampler
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method
from harness.metrics.base import SampleMetric, Scores
from harness.noise.best_of_n import BestOfN
from harness.noise.choice import Best
from harness.noise.cosine import cosine
from harness.noise.inversion_stability import InversionStability
from harness.prompts import Prompt
from harness.seeding import RowKey, normals
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


@dataclass
class Brightness(SampleMetric):
    """A judge: the mean of the image; no score for row `blind`."""

    blind: int = -1
    name = "brightness"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        values = images.mean(axis=(1, 2, 3, 4), dtype=np.float64)
        values[[i for i, prompt in enumerate(prompts) if prompt.id == str(self.blind)]] = np.nan
        return Scores(values)


@dataclass
class Darkness(Brightness):
    higher_is_better = False


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


def test_a_judge_that_answers_for_too_few_images_is_told() -> None:
    with pytest.raises(HarnessError, match=r"'brightness' gave scores \(1,\) for 2 images"):
        Method(BestOfN(2), sampler=SAMPLER, judge=Careless())(curved(), numbers(1, 2))


def test_a_judge_is_required() -> None:
    with pytest.raises(HarnessError, match="judge"):
        Method(BestOfN(2))(curved(), numbers(1))


@pytest.mark.parametrize("stage", [InversionStability, BestOfN])
def test_no_candidates_is_refused(stage: Any) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        stage(candidates=0)
