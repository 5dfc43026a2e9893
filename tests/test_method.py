import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.errors import HarnessError
from harness.identity import digest
from harness.method import Method, load_method, method_identity
from harness.prompts import Prompt
from harness.seeding import RowKey
from tests.tiny import tiny_stable_diffusion

TEXTS = ["a red ring", "two blue stars", "a cross above a square", "three circles"]
METHODS: dict[str, dict[str, Any]] = {
    "cfg": {"guidance": {"cfg": {"scale": 5, "fraction": [0.3, 1]}}},
    "nlg": {"noise": {"nlg": {"steps": 2}}},
    "stable": {"noise": {"inversion_stability": {"candidates": 2}}, "guidance": {"cfg": {"scale": 3}}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    torch.set_num_threads(1)
    folder = tiny_stable_diffusion(tmp_path_factory.mktemp("tiny"))
    loaded = harness.load_model("stable_diffusion", str(folder))
    assert isinstance(loaded, StableDiffusion)
    return loaded


def build(name: str) -> Method:
    return load_method(**METHODS[name], sampler={"name": "ddim", "steps": 3})


@pytest.mark.parametrize("name", list(METHODS))
def test_a_row_does_not_depend_on_the_other_rows(model: StableDiffusion, name: str) -> None:
    method = build(name)
    prompts = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    whole = method(model, prompts, seeds=[0, 1, 2, 3])
    strangers = [Prompt("x", "something else"), prompts[1], Prompt("y", ""), prompts[3]]
    mixed = method(model, strangers, seeds=[8, 1, 9, 3])
    for row in (1, 3):  # the same shape: the same bits
        np.testing.assert_array_equal(mixed.images[row], whole.images[row])
        assert torch.equal(mixed.latents[row], whole.latents[row])
        assert mixed.records[row] == whole.records[row]


@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.sampled_from(range(4)), min_size=1, max_size=4))
def test_a_row_does_not_depend_on_how_rows_are_batched(model: StableDiffusion, rows: list[int]) -> None:
    method = build("nlg")
    prompts = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    whole = method(model, prompts, seeds=[0, 1, 2, 3])
    some = method(model, [prompts[i] for i in rows], seeds=rows)
    np.testing.assert_allclose(some.initial_noise, whole.initial_noise[rows], atol=1e-3)
    assert np.abs(some.images.astype(int) - whole.images[rows]).max() <= 1


def test_scores_do_not_depend_on_the_batch_size(model: StableDiffusion) -> None:
    method = build("stable")
    prompts = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
    whole = method(model, prompts, seeds=7)
    for i, prompt in enumerate(prompts):
        alone = method(model, [prompt], seeds=7)
        assert alone.records[0]["scores"] == pytest.approx(whole.records[i]["scores"], abs=1e-5)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "dpmsolver++"])
def test_a_model_whose_noisiest_level_holds_no_signal(tmp_path: Path, solver: str) -> None:
    folder = tiny_stable_diffusion(tmp_path, prediction_type="v_prediction")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": True}))
    model = StableDiffusion.load(str(folder))
    assert model.alpha_sigma(999) == (0, 1)  # no epsilon prediction could be undone here; v can
    guidance = {"cfg": {"scale": 3, "sigma": [0.1, None]}}
    for noise in ("nlg", {"inversion_stability": {"candidates": 2}}):
        result = load_method(noise, guidance, {"name": solver, "steps": 3})(model, TEXTS[:1])
        assert torch.isfinite(result.latents).all()
        assert torch.isfinite(result.initial_noise).all()


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_call_gives_the_same_bits_and_touches_no_global_generator(model: StableDiffusion, name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(name)(model, TEXTS[:2], seeds=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = build(name)(model, TEXTS[:2], seeds=5)
    np.testing.assert_array_equal(first.images, second.images)
    assert torch.equal(first.latents, second.latents)
    assert model.counter is None


def test_the_result_of_a_plain_method(model: StableDiffusion) -> None:
    result = harness.load_method(guidance={"cfg": {"scale": 3}}, sampler={"steps": 3})(model, TEXTS[:2], seeds=[0, 1])
    assert result.images.shape == (2, 1, 64, 64, 3)
    assert result.images.dtype == np.uint8
    assert result.initial_noise.dtype == result.latents.dtype == torch.float32
    assert result.records == [{}, {}]
    assert result.nfe.tolist() == [6, 6]
    assert result.nfe_by_network == [{"main": 6}] * 2
    assert result.grad_evals.tolist() == [0, 0]
    each = 6 * model.flops_per_evaluation() + model.flops_per_decode() + model.flops_per_text()
    assert result.flops.tolist() == [each] * 2
    key = RowKey("prompts", TEXTS[1], 1)
    expected = torch.randn((1, 4, 16, 16), generator=key.generator("noise"))
    assert torch.equal(result.initial_noise[1:], expected)


def test_seeds_and_prompts(model: StableDiffusion) -> None:
    method = load_method(sampler={"steps": 1})
    one = method(model, TEXTS[0], seeds=4)
    again = method(model, [Prompt(TEXTS[0], TEXTS[0])], seeds=[4], prompt_set="prompts")
    np.testing.assert_array_equal(one.images, again.images)
    literal = method(model, TEXTS[:1], seeds=4, seeding="literal")
    expected = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(4))
    assert torch.equal(literal.initial_noise, expected)
    with pytest.raises(HarnessError, match="2 prompts, but 3 seeds"):
        method(model, TEXTS[:2], seeds=[1, 2, 3])
    with pytest.raises(HarnessError, match="no prompts"):
        method(model, [])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"noise": "gausian"}, "did you mean 'gaussian'"),
        ({"noise": {"nlg": {"stepps": 3}}}, "no parameter 'stepps': did you mean 'steps'"),
        ({"noise": {"nlg": {"steps": "many"}}}, "parameter 'steps'.*integer.*'many'"),
        ({"noise": {"inversion_stability": {"candidates": 0}}}, "at least 1, got 0"),
        ({"noise": {"inversion_stability": {"pick": "worst"}}}, "'most' or 'least'"),
        ({"guidance": {"cfg": {}}}, "parameter 'scale'"),
        ({"guidance": {"cfg": {"scale": 5, "sigma": [5, 1]}}}, "upside down"),
        ({"guidance": {"cfg": {"scale": 5, "steps": [15, 25]}}}, "beyond the sampler's 20 steps"),
        ({"guidance": {"cfg": {"scale": 5}, "none": {}}}, "expected a name or one"),
        ({"guidance": {"cfg": 5}}, "must be a mapping, got 5"),
        ({"guidance": 5}, "got 5"),
        ({"sampler": {"step": 5}}, "did you mean 'steps'"),
        ({"sampler": {"steps": 0}}, "at least 1"),
        ({"sampler": {"steps": "x"}}, r"sampler\.steps"),
        ({"sampler": "ddim"}, "expected a mapping"),
    ],
)
def test_what_makes_no_sense_is_said(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        load_method(**parts)


def test_identity_follows_what_decides_the_images() -> None:
    plain = digest(method_identity(load_method()))
    assert plain == digest(method_identity(load_method("gaussian", {"none": None}, {"name": "ddim", "steps": 20})))
    named = load_method(guidance={"harness.guidance.cfg:CFG": {"scale": 5}})
    assert digest(method_identity(named)) == digest(method_identity(load_method(guidance={"cfg": {"scale": 5.0}})))
    others = [
        method_identity(load_method(sampler={"steps": 21})),
        method_identity(load_method(guidance={"cfg": {"scale": 1}})),
        method_identity(load_method(noise="nlg")),
        method_identity(load_method(), judge_digest="abc"),
    ]
    assert len({plain, *map(digest, others)}) == 5


STAGE = '''
from dataclasses import dataclass

from harness.noise.base import NoiseContext, Refined


@dataclass(frozen=True)
class Shrink:
    """Noise made smaller, and a push at the last step."""

    factor: float = 0.5

    def __call__(self, ctx: NoiseContext) -> Refined:
        def push(step, state):
            return state + 1 if step.index == step.total - 1 else None

        extra = ctx.draw("shrink", 0)
        return Refined(self.factor * ctx.noise, [{"extra": float(row.sum())} for row in extra], on_step=push)


@dataclass(frozen=True)
class Wrong:
    def __call__(self, ctx: NoiseContext) -> Refined:
        return Refined(ctx.noise[:1], [{}])
'''


def test_a_stage_from_outside_the_package(
    model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_stages.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = load_method(noise={"my_stages:Shrink": {"factor": 0.25}}, sampler={"steps": 2})
    plain = load_method(sampler={"steps": 2})
    ours, theirs = method(model, TEXTS[:2]), plain(model, TEXTS[:2])
    torch.testing.assert_close(ours.initial_noise, 0.25 * theirs.initial_noise)
    assert ours.records[0]["extra"] != ours.records[1]["extra"]
    assert not np.array_equal(ours.images, theirs.images)
    before = digest(method_identity(method))
    (tmp_path / "my_stages.py").write_text(STAGE + "\n# an edit\n")
    assert digest(method_identity(method)) != before
    with pytest.raises(HarnessError, match=r"Wrong returned noise \(1, 4, 16, 16\), expected \(2, 4, 16, 16\)"):
        load_method(noise="my_stages:Wrong", sampler={"steps": 1})(model, TEXTS[:2])
    with pytest.raises(HarnessError, match="my_stages:Nothing"):
        load_method(noise="my_stages:Nothing")


def test_a_gradient_can_be_had_inside_a_stage(model: StableDiffusion) -> None:
    class Gradient:
        def __call__(self, ctx):  # type: ignore[no-untyped-def]
            from harness.noise.base import Refined

            with torch.enable_grad():
                noise = ctx.noise.clone().requires_grad_()
                loss = ctx.model.decode_differentiable(ctx.sample(noise)).mean()
                (gradient,) = torch.autograd.grad(loss, noise)
            assert gradient.abs().sum() > 0
            return Refined(ctx.noise - gradient)

    Method(Gradient(), sampler=harness.method.Sampler("ddim", 2))(model, TEXTS[:1])
