"""Zero-order search (arXiv 2501.09732): neighbours, pivots that never get worse, cost."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.diffusion.base import Sampler
from harness.diffusion.sampling import sample
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, Result
from harness.noise.zero_order_search import ZeroOrderSearch, neighbour
from harness.seeding import RowKey, normals
from tests.noise.judges import Brightness, Darkness
from tests.toy import Toy, numbers

SAMPLER = Sampler("ddim", 4)


def curved() -> Toy:
    return Toy(lambda x, t, n: torch.tanh(x * (1 + n)))


def brightness(noise: torch.Tensor, text: float) -> float:
    """Of the image that one noise makes."""
    toy = curved()
    latents = sample(toy, noise, toy.encode(numbers(text)), NoGuidance(), SAMPLER)
    return float(toy.decode(latents).mean())


def search(stage: ZeroOrderSearch, *texts: float, judge: Any = None) -> Result:
    return Method(stage, NoGuidance(), SAMPLER, judge or Brightness())(curved(), numbers(*texts))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1.9), st.integers(0, 100))
def test_a_neighbour_has_the_pivots_norm_and_lies_at_the_radius(radius: float, seed: int) -> None:
    z, w = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    y = neighbour(3 * z, w, radius)
    norm = (3 * z).flatten(1).norm(dim=1)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), norm, rtol=1e-5, atol=0)
    torch.testing.assert_close((y - 3 * z).flatten(1).norm(dim=1), radius * norm, rtol=1e-4, atol=0)
    flat = z.flatten(1)
    across = w.flatten(1) - (w.flatten(1) * flat).sum(1, keepdim=True) * flat / flat.square().sum(1, keepdim=True)
    assert ((y.flatten(1) * across).sum(1) > 0).all()  # on the draw's side


def test_a_neighbour_by_hand_and_the_default_cosine() -> None:
    z, w = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.tensor([5.0, -3.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(neighbour(z, w, math.sqrt(2)).flatten(), torch.tensor([0.0, -2.0]))  # a right angle
    cosine = torch.cosine_similarity(neighbour(z, w, ZeroOrderSearch().radius).flatten(), z.flatten(), dim=0)
    assert cosine.item() == pytest.approx(0.95, abs=1e-6)


def test_the_search_is_the_one_written_out() -> None:
    stage = ZeroOrderSearch(rounds=3, neighbours=4, radius=0.5)
    result = search(stage, 0.5, 2.0)
    for row, text in enumerate((0.5, 2.0)):
        key = RowKey("prompts", str(row), 0)
        pivot, scores, chosen = normals([key.generator("noise")], (4, 8, 8)), [], 0
        scores.append(brightness(pivot, text))
        best = scores[0]
        for index in range(3):
            origin = pivot
            for k in range(4):
                number = index * 4 + k
                y = neighbour(origin, normals([key.generator("neighbour", number)], (4, 8, 8)), 0.5)
                scores.append(brightness(y, text))
                if scores[-1] > best:
                    best, pivot, chosen = scores[-1], y, number + 1
        assert result.records[row]["scores"] == pytest.approx(scores, abs=1e-3)
        assert result.records[row]["chosen"] == chosen > 0
        torch.testing.assert_close(result.initial_noise[row], pivot[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("judge", "sign"), [(Brightness(), 1), (Darkness(), -1)])
def test_the_score_never_falls(judge: Brightness, sign: int) -> None:
    result = search(ZeroOrderSearch(rounds=6, neighbours=2), 0.5, 1.0, 2.0, judge=judge)
    for row, record in enumerate(result.records):
        best = sign * max(sign * s for s in record["scores"])
        assert record["scores"][record["chosen"]] == best
        assert result.images[row].mean() == pytest.approx(best)
    # more rounds begin with the same ones: the best of them can only be as good or better
    longer = search(ZeroOrderSearch(rounds=7, neighbours=2), 0.5, 1.0, 2.0, judge=judge)
    for short, long in zip(result.records, longer.records, strict=True):
        assert long["scores"][: len(short["scores"])] == short["scores"]


def test_a_row_without_a_score_keeps_its_noise() -> None:
    result = search(ZeroOrderSearch(2, 2), 0.5, 2.0, judge=Brightness(blind=1))
    assert result.records[1] == {"chosen": 0, "scores": [None] * 5}
    assert torch.equal(result.initial_noise[1], normals([RowKey("prompts", "1", 0).generator("noise")], (4, 8, 8))[0])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([0.1, 1.0, 2.0]), min_size=1, max_size=3))
def test_a_row_does_not_depend_on_the_other_rows(strangers: list[float]) -> None:
    alone, among = search(ZeroOrderSearch(2, 3), 0.7), search(ZeroOrderSearch(2, 3), 0.7, *strangers)
    assert among.records[0]["chosen"] == alone.records[0]["chosen"]
    torch.testing.assert_close(among.initial_noise[0], alone.initial_noise[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("guidance", "g"), [(NoGuidance(), 1), (CFG(5), 2)])
@pytest.mark.parametrize("rounds", [0, 3])
def test_cost(guidance: NoGuidance | CFG, g: int, rounds: int) -> None:
    method = Method(ZeroOrderSearch(rounds, 4), guidance, Sampler("ddim", 5), Brightness())
    np.testing.assert_array_equal(method(curved(), numbers(1, 2)).nfe, [(1 + 4 * rounds) * 5 * g] * 2)


@pytest.mark.parametrize(
    "given_", [{"rounds": -1}, {"neighbours": 0}, {"radius": 0}, {"radius": 2.5}, {"together": 0}]
)
def test_settings_that_make_no_sense(given_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given_))):
        ZeroOrderSearch(**given_)  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match="needs a judge"):
        Method(ZeroOrderSearch())(curved(), numbers(1))
