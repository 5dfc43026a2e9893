"""Noise Diffusion (arXiv 2411.16503) by its closed forms; against its authors' code: test_vectors.py."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.diffusion.base import Counter, Diffusion, Sampler, Step
from harness.diffusion.sampling import sample
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, Result
from harness.noise import noise_diffusion
from harness.noise.base import NoiseContext
from harness.noise.noise_diffusion import NoiseDiffusion, choose
from harness.seeding import RowKey, normals
from tests.noise.judges import Brightness, Constant, Rough, Smooth
from tests.toy import Toy, numbers

SAMPLER = Sampler("ddim", 4)
SHAPE = (4, 8, 8)


def curved(native: str = "epsilon") -> Toy:
    return Toy(lambda x, t, n: torch.tanh(x * (1 + n)), native)


def run(
    stage: NoiseDiffusion, judge: Any = None, texts: tuple[float, ...] = (0.5, 2.0), toy: Toy | None = None
) -> Result:
    return Method(stage, NoGuidance(), SAMPLER, judge or Smooth())(toy or curved(), numbers(*texts))


def context(rows: int, noise: Tensor | None = None) -> NoiseContext:
    keys = [RowKey("p", str(i), 0) for i in range(rows)]
    noise = normals([key.generator("noise") for key in keys], SHAPE) if noise is None else noise
    return NoiseContext(noise, [], None, None, SAMPLER, None, None, keys)  # type: ignore[arg-type]


def drawn(key: RowKey, index: int, count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return normals([key.generator(f"candidate-{index}", k) for k in range(count)], shape)


@pytest.mark.parametrize("gamma", [1.0, 0.3])
@pytest.mark.parametrize("shape", [SHAPE, (1, 2, 2)])  # in few dimensions the lengths of v differ much
def test_the_chosen_candidate_is_the_formulas(gamma: float, shape: tuple[int, ...]) -> None:
    noise, gradient = torch.randn(2, 6, *shape, generator=torch.Generator().manual_seed(1))
    ctx = context(6, noise)
    after, taken = choose(ctx, ctx.noise, gradient, np.full(6, gamma), 2, 40)  # in three chunks
    for row, key in enumerate(ctx.keys):
        z, g, candidates = ctx.noise[row], gradient[row], drawn(key, 2, 40, shape)
        v = (np.sqrt(1 - gamma) - 1) * z + np.sqrt(gamma) * candidates  # gamma = 1: candidate - z
        gains = (v * g).flatten(1).sum(1) / v.flatten(1).norm(dim=1) ** 2
        assert taken[row] == gains.argmax()
        expected = np.sqrt(1 - gamma) * z + np.sqrt(gamma) * candidates[taken[row]]
        torch.testing.assert_close(after[row], expected)
    assert len(set(taken)) > 1


def test_gamma_follows_the_score_on_the_judges_scale() -> None:
    plain = NoiseDiffusion()
    # 0.7 keeps 0.7 ** 0.25 = 0.915 of the noise; what lies outside [0, 1] counts as its end
    np.testing.assert_allclose(plain.gamma(np.array([0.0, 0.25, 0.7, 1.0, -0.2, 1.5])),
                               [1, 0.5, 1 - 0.7**0.5, 0, 1, 0])
    np.testing.assert_allclose((1 - plain.gamma(np.array([0.7]))) ** 0.5, [0.915], atol=5e-4)
    cosine = NoiseDiffusion(low=0.1, high=0.5)
    np.testing.assert_allclose(cosine.gamma(np.array([0.1, 0.2, 0.5])), [1, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(cosine.gamma(np.array([0.1, 0.4, 0.5]), higher_is_better=False), [0, 0.5, 1], atol=1e-12)
    assert np.isnan(plain.gamma(np.array([np.nan])))


def replayed_gradient(model: Diffusion, noise: Tensor, sampler: Sampler, judge: Smooth) -> Tensor:
    """The authors' gradient: the sampling again, its predictions held fixed, back through every solver step."""
    prompts = numbers(0.5)
    conditioning = model.encode(prompts)
    stored: list[Tensor] = []

    class Storing(CFG):
        def combine(self, predictions, x: Tensor, step: Step):  # type: ignore[no-untyped-def]
            answer = super().combine(predictions, x, step)
            stored.append(answer.prediction)
            return answer

    latents = sample(model, noise, conditioning, Storing(3.0), sampler)
    z = noise.clone().requires_grad_()
    with torch.enable_grad():
        schedule = model.schedule(sampler)
        state = schedule.start(z)
        for i, prediction in enumerate(stored):
            state = schedule.advance(prediction, state, i)
        assert torch.equal(state.detach(), latents)  # the replay is the sampling, bit for bit
        value = judge.differentiable(model.decode_differentiable(state), prompts)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return gradient


@pytest.mark.parametrize("native", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmsolver++"])
def test_the_gradient_for_the_clean_latent_is_a_positive_multiple_of_the_replayed_one(
    solver: str, native: str
) -> None:
    toy, judge, sampler = curved(native), Smooth(), Sampler(solver, 5)
    noise = normals([RowKey("p", "0", 0).generator("noise")], SHAPE)
    theirs = replayed_gradient(toy, noise, sampler, judge)
    latents = sample(toy, noise, toy.encode(numbers(0.5)), CFG(3.0), sampler)
    ctx = replace(context(1), model=toy, prompts=numbers(0.5), judge=judge)
    _, ours = NoiseDiffusion()._judged(ctx, latents, gradient=True)
    factor = (theirs.norm() / ours.norm()).item()
    torch.testing.assert_close(theirs, factor * ours, rtol=1e-4, atol=1e-9)
    gamma = np.array([0.4])
    assert choose(ctx, noise, ours, gamma, 0, 20)[1] == choose(ctx, noise, theirs, gamma, 0, 20)[1]


def test_ddim_replay_has_the_slope_that_the_schedule_says() -> None:
    # sqrt(abar_1 / abar_981): SD 1.4, 50 steps, leading (the steps between cancel)
    toy, judge, sampler = Toy(lambda x, t, n: 0 * x), Smooth(), Sampler("ddim", 50, "leading")
    noise = normals([RowKey("p", "0", 0).generator("noise")], SHAPE) / 20  # few pixels saturate
    latents = sample(toy, noise, toy.encode(numbers(0.5)), NoGuidance(), sampler)
    ctx = replace(context(1), model=toy, prompts=numbers(0.5), judge=judge)
    _, ours = NoiseDiffusion()._judged(ctx, latents, gradient=True)
    theirs = replayed_gradient(toy, noise, sampler, judge)
    assert (theirs.norm() / ours.norm()).item() == pytest.approx(13.153, abs=2e-3)


def test_the_score_rises_and_the_best_round_is_handed_on() -> None:
    result = run(NoiseDiffusion(rounds=12, candidates=24), texts=(0.5, 2.0, 1.0))
    toy = curved()
    for row, record in enumerate(result.records):
        scores = record["scores"]
        assert len(scores) == 13
        assert len(record["gammas"]) == len(record["candidates"]) == 12
        assert record["chosen"] == int(np.argmax(scores))
        assert np.mean(scores[-4:]) > np.mean(scores[:2])
        assert record["gammas"] == pytest.approx([1 - s**0.5 for s in scores[:-1]])
        # noise and latents are those of the chosen round
        alone = sample(toy, result.initial_noise[row:row + 1], toy.encode(numbers((0.5, 2.0, 1.0)[row])), NoGuidance(),
                       SAMPLER)
        torch.testing.assert_close(alone[0], result.latents[row], atol=1e-5, rtol=1e-5)


def test_gamma_follows_the_present_score_and_not_the_best() -> None:
    record = run(NoiseDiffusion(rounds=12, candidates=2), Smooth(gain=30), texts=(0.5,)).records[0]
    falls = [i for i in range(12) if record["scores"][i] < max(record["scores"][:i], default=0)]
    assert falls
    for i in falls:
        assert record["gammas"][i] == pytest.approx(1 - record["scores"][i] ** 0.5)


def test_a_perfect_image_keeps_its_noise() -> None:
    result = run(NoiseDiffusion(rounds=3, candidates=4), Constant(1.0))
    plain = Method(sampler=SAMPLER)(curved(), numbers(0.5, 2.0))
    assert torch.equal(result.initial_noise, plain.initial_noise)
    assert torch.equal(result.latents, plain.latents)
    expected = {"chosen": 0, "scores": [1.0] * 4, "gammas": [0.0] * 3, "candidates": [None] * 3}
    assert result.records == [expected] * 2


def test_a_worthless_image_is_redrawn_whole() -> None:
    seen: list[Tensor] = []

    class Watched(NoiseDiffusion):
        def _judged(self, ctx, latents, gradient):  # type: ignore[no-untyped-def]
            seen.append(latents)
            return super()._judged(ctx, latents, gradient)

    toy = curved()
    result = run(Watched(rounds=1, candidates=5), Constant(0.0), toy=toy)
    for row, record in enumerate(result.records):
        candidate = drawn(RowKey("prompts", str(row), 0), 0, 5)[record["candidates"][0]]
        latents = sample(toy, candidate[None], toy.encode(numbers((0.5, 2.0)[row])), NoGuidance(), SAMPLER)
        torch.testing.assert_close(seen[1][row], latents[0], atol=1e-5, rtol=1e-5)


def test_no_score_keeps_the_noise_and_leaves_the_other_rows_alone() -> None:
    result = run(NoiseDiffusion(rounds=3, candidates=4), Smooth(blind=1))
    plain = Method(sampler=SAMPLER)(curved(), numbers(0.5, 2.0))
    assert result.records[1] == {
        "chosen": 0, "scores": [None] * 4, "gammas": [None] * 3, "candidates": [None] * 3,
    }
    assert torch.equal(result.initial_noise[1], plain.initial_noise[1])
    assert result.records[0] == run(NoiseDiffusion(rounds=3, candidates=4)).records[0]
    assert None not in result.records[0]["candidates"]


def test_a_judge_where_lower_is_better_is_the_same_wish() -> None:
    stage = NoiseDiffusion(rounds=4, candidates=8)
    up, down = run(stage, Smooth()), run(stage, Rough())
    torch.testing.assert_close(up.initial_noise, down.initial_noise, atol=1e-4, rtol=1e-4)
    for one, other in zip(up.records, down.records, strict=True):
        assert one["candidates"] == other["candidates"]
        assert one["chosen"] == other["chosen"]
        assert one["scores"] == pytest.approx([1 - s for s in other["scores"]], abs=1e-6)


def test_noise_stays_gaussian() -> None:
    ctx = context(2)
    noise = ctx.noise
    random = torch.Generator().manual_seed(3)
    for index in range(40):
        noise, _ = choose(ctx, noise, torch.randn(noise.shape, generator=random), np.full(2, 0.3), index, 4)
    assert noise.var().item() == pytest.approx(1, abs=0.15)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0]), min_size=1, max_size=3), st.integers(1, 40))
def test_a_row_does_not_depend_on_the_other_rows_nor_on_the_chunk(strangers: list[float], chunk: int) -> None:
    stage = NoiseDiffusion(rounds=2, candidates=20)
    alone = run(stage, texts=(0.7,))
    before, noise_diffusion.CHUNK = noise_diffusion.CHUNK, chunk
    try:
        among = run(stage, texts=(0.7, *strangers))
    finally:
        noise_diffusion.CHUNK = before
    assert among.records[0]["candidates"] == alone.records[0]["candidates"]
    assert among.records[0]["scores"] == pytest.approx(alone.records[0]["scores"], abs=1e-5)
    torch.testing.assert_close(among.initial_noise[0], alone.initial_noise[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("guidance", "g"), [(NoGuidance(), 1), (CFG(7.5), 2)])
def test_cost(guidance: NoGuidance | CFG, g: int) -> None:
    method = Method(NoiseDiffusion(rounds=5, candidates=3), guidance, Sampler("ddim", 6), Smooth())
    result = method(curved(), numbers(1, 2))
    np.testing.assert_array_equal(result.nfe, [g * 6 * (1 + 5)] * 2)  # the paper's 50 and 50 with CFG: 5,100
    np.testing.assert_array_equal(result.grad_evals, [5] * 2)
    np.testing.assert_array_equal(result.flops, result.nfe * 10.0)  # no gradient goes through the denoiser


def test_a_gradient_through_the_denoiser_is_charged_as_two_evaluations() -> None:
    counter = Counter(2)
    counter.add("main", torch.tensor([0, 1, 1]))
    counter.add_gradient(torch.tensor([0]), "main")
    counter.add_gradient(torch.tensor([0, 1]))
    assert counter.gradients.tolist() == [2, 1]
    assert counter.nfe.tolist() == [1, 2]
    from harness.method import _flops

    assert _flops(curved(), counter).tolist() == [10 + 20, 20]


def test_the_published_variant_shows_the_judge_other_images() -> None:
    seen: list[Tensor] = []

    class Watching(Smooth):
        def differentiable(self, images, prompts):  # type: ignore[no-untyped-def]
            if len(images) == 2:  # not the one that only shows what judging costs
                seen.append(images.detach())
            return super().differentiable(images, prompts)

    for variant in ("described", "published"):
        run(NoiseDiffusion(rounds=0, variant=variant), Watching())  # type: ignore[arg-type]
    torch.testing.assert_close(seen[1], seen[0] * 2 - 1)
    assert seen[0].min() >= 0 > seen[1].min() >= -1


def test_a_decoder_in_half_precision_does_not_round_the_scores() -> None:
    class Half(Toy):
        def decode_differentiable(self, latents: Tensor) -> Tensor:
            return super().decode_differentiable(latents).bfloat16()

        def decode(self, latents: Tensor) -> np.ndarray:
            return (super().decode_differentiable(latents).numpy() * 255).astype(np.uint8)

    class Asked(Smooth):
        def differentiable(self, images, prompts):  # type: ignore[no-untyped-def]
            assert images.dtype == torch.float32
            return super().differentiable(images, prompts)

    run(NoiseDiffusion(rounds=1, candidates=2), Asked(), toy=Half(lambda x, t, n: torch.tanh(x * (1 + n))))


def test_no_rounds_change_nothing() -> None:
    result, plain = run(NoiseDiffusion(rounds=0)), Method(sampler=SAMPLER)(curved(), numbers(0.5, 2.0))
    assert torch.equal(result.initial_noise, plain.initial_noise)
    np.testing.assert_array_equal(result.images, plain.images)
    assert result.grad_evals.tolist() == [0, 0]


def test_a_judge_without_a_gradient_is_refused() -> None:
    with pytest.raises(HarnessError, match="needs a judge"):
        Method(NoiseDiffusion())(curved(), numbers(1))
    with pytest.raises(HarnessError, match="NoiseDiffusion needs a judge with a gradient, which 'brightness'"):
        run(NoiseDiffusion(), Brightness())


def test_a_judge_that_answers_for_too_few_images_is_told() -> None:
    class Careless(Smooth):
        def differentiable(self, images, prompts):  # type: ignore[no-untyped-def]
            return super().differentiable(images, prompts).mean()

    with pytest.raises(HarnessError, match=r"'smooth' gave scores \(\) for 2 images"):
        run(NoiseDiffusion(rounds=1), Careless())


@pytest.mark.parametrize(
    ("given_", "name"),
    [({"rounds": -1}, "rounds"), ({"candidates": 0}, "candidates"), ({"low": 1.0}, "low"),
     ({"high": float("inf")}, "low")],
)
def test_settings_that_make_no_sense(given_: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        NoiseDiffusion(**given_)  # type: ignore[arg-type]
