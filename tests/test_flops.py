"""Operations of a sample: every network that made it, counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness import flops
from harness.diffusion.base import Counter
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.guidance.none import NoGuidance
from harness.method import Method, Result, load_method
from harness.metrics.base import SampleMetric, Scores
from harness.metrics.clipscore_shapes import CLIPScoreShapes
from harness.noise.best_of_n import BestOfN
from harness.noise.noise_diffusion import NoiseDiffusion
from harness.prompts import Prompt
from tests.noise.judges import Brightness
from tests.tiny import tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.toy import Toy, numbers

TEXTS = ["a red ring", "two blue stars"]
CFG3: dict[str, Any] = {"cfg": {"scale": 3}}


class Block(nn.Module):
    """3x3 convolution of 3 channels into 5, then a linear layer of each pixel's 5 into 7."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 7)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.conv(x).movedim(1, -1))
        return y


def test_operations_are_those_counted_by_hand() -> None:
    block, x = Block(), torch.zeros(2, 3, 8, 6)
    conv, linear = 2 * (2 * 8 * 6) * 5 * (3 * 3 * 3), 2 * (2 * 8 * 6) * 5 * 7
    assert flops.of_forward(lambda: block(x)) == conv + linear
    assert flops.of_backward(block, x) == conv + linear  # for the input alone: the weights take no gradients
    q = torch.zeros(1, 2, 11, 4)  # 2 heads, 11 tokens, 4 channels a head: q times k, then weights times v
    product = 2 * 2 * 11 * 11 * 4
    attention = nn.functional.scaled_dot_product_attention
    assert flops.of_forward(lambda: attention(q, q, q)) == 2 * product
    assert flops.of_backward(lambda q: attention(q, q, q), q) == 4 * product


@dataclass
class Linear(SampleMetric):
    """A product with 8 * 8 * 3 numbers for the image, and one with 10 for a text, which is kept."""

    name = "linear"

    def __post_init__(self) -> None:
        self.texts: set[str] = set()

    def forget(self) -> None:
        self.texts.clear()

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        for prompt in prompts:
            if prompt.text not in self.texts:
                self.texts.add(prompt.text)
                torch.zeros(1, 10) @ torch.zeros(10, 1)
        return Scores(self.differentiable(torch.from_numpy(images / 255), prompts).numpy())

    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return (images.flatten(1) @ torch.ones(8 * 8 * 3, 1, dtype=images.dtype))[:, 0]


class Priced(Toy):
    """A toy that says what its parts cost: 10 an evaluation, 1000 a text, 100,000 a decode, 300,000 back."""

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        if self.counter is not None:
            self.counter.add_decoded(len(latents))
        return super().decode_differentiable(latents)

    def flops_per_text(self) -> float:
        return 1e3

    def flops_per_decode(self, gradient: bool = False) -> float:
        return 3e5 if gradient else 1e5


def test_every_part_has_its_share() -> None:
    model, look, read = Priced(lambda x, t, n: 0.1 * x + n), 2 * 192, 2 * 10
    sampler = harness.load_method(sampler={"steps": 4}).sampler
    plain = Method(sampler=sampler)(model, numbers(1, 2))
    assert plain.flops.tolist() == [1e3 + 4 * 10 + 1e5] * 2
    best = Method(BestOfN(3, together=2), sampler=sampler, judge=Linear())(model, numbers(1, 2))
    assert best.flops.tolist() == [1e3 + 12 * 10 + 4e5 + 3 * look + read] * 2
    moved = Method(NoiseDiffusion(rounds=2, candidates=2), sampler=sampler, judge=Linear())(model, numbers(1, 2))
    assert moved.grad_evals.tolist() == [2, 2]
    assert moved.flops.tolist() == [1e3 + 12 * 10 + 4e5 + 3 * look + read + 2 * (3e5 + look)] * 2
    assert Method(BestOfN(2), NoGuidance(), sampler, Brightness())(model, numbers(1)).flops[0] == 1e3 + 80 + 3e5


def test_a_judge_that_cannot_score_a_black_image_leaves_the_cost_unknown() -> None:
    class Picky(Brightness):
        def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
            if not images.any():
                raise ValueError("nothing to see")
            return super().score(images, prompts)

    result = Method(BestOfN(2), judge=Picky())(Priced(lambda x, t, n: 0.1 * x + n), numbers(1))
    assert np.isnan(result.flops).all()
    assert np.isfinite(result.records[0]["scores"]).all()


def test_rows_in_order_again_and_again() -> None:
    counter = Counter(2)
    counter.add_decoded(4)
    counter.add_decoded(2)
    counter.add_judged(2)
    assert (counter.decoded.tolist(), counter.judged.tolist()) == ([3, 3], [1, 1])


METHODS: dict[str, dict[str, Any]] = {
    "cfg": {"guidance": CFG3},
    "autoguidance": {"guidance": {"autoguidance": {"scale": 2, "network": "refiner"}}},
    "nlg": {"noise": {"nlg": {"steps": 2}}},
    "noise_refine": {"noise": "noise_refine"},
    "inversion_stability": {"noise": {"inversion_stability": {"candidates": 2, "together": 2}}, "guidance": CFG3},
    "noise_optimisation": {"noise": {"noise_optimisation": {"steps": 2}}, "guidance": CFG3},
    "best_of_n": {"noise": {"best_of_n": {"candidates": 3}}, "guidance": CFG3},
    "zero_order_search": {"noise": {"zero_order_search": {"rounds": 1, "neighbours": 2, "together": 2}}},
    "noise_diffusion": {"noise": {"noise_diffusion": {"rounds": 2, "candidates": 3}}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("tiny")
    folder = tiny_stable_diffusion(place / "sd")
    networks = {"refiner": {"lora": str(tiny_lora(place / "lora", folder))}}
    loaded = harness.load_model("stable_diffusion", str(folder), networks=networks)
    assert isinstance(loaded, StableDiffusion)
    for network in loaded.networks:  # counted once, and not while a test counts all that happens
        loaded.flops_per_evaluation(network)
    for gradient in (False, True):
        loaded.flops_per_decode(gradient)
    loaded.flops_per_text()
    return loaded


@pytest.fixture(scope="module")
def judge() -> CLIPScoreShapes:
    metric = harness.load_metric("clipscore-shapes")
    assert isinstance(metric, CLIPScoreShapes)
    for part in ("text", "image", "gradient"):
        metric.flops(part, (1, 64, 64, 3))  # type: ignore[arg-type]
    return metric


def generated(model: StableDiffusion, judge: CLIPScoreShapes, name: str, texts: Sequence[str] = TEXTS) -> Result:
    parts = METHODS[name]
    needs = name in ("best_of_n", "zero_order_search", "noise_diffusion")
    return load_method(**parts, sampler={"steps": 1}, judge=judge if needs else None)(model, texts)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_rows_add_up_to_what_a_whole_generation_does(
    model: StableDiffusion, judge: CLIPScoreShapes, name: str
) -> None:
    """Exactly: torch counts all that happens, the judge and the way back included, attention as plain products."""
    null = model._texts[""]  # encoded once for all images: no image's own
    model._texts.clear()
    model._texts[""] = null
    judge.forget()
    with sdpa_kernel(flops.PLAIN), FlopCounterMode(display=False) as counter:
        result = generated(model, judge, name)
    assert result.flops.sum() == counter.get_total_flops() > 1e8
    assert len(set(result.flops)) == 1


def test_fused_attention_on_the_way_back_differs_by_little(model: StableDiffusion, judge: CLIPScoreShapes) -> None:
    """As methods run: a fused kernel computes a product a second time, which `flops` leaves out: here 1.5 % of all."""
    generated(model, judge, "noise_diffusion")  # texts are kept from here on
    with FlopCounterMode(display=False) as counter:
        result = generated(model, judge, "noise_diffusion")
    texts = 2 * (model.flops_per_text() + judge.flops("text", (1, 64, 64, 3)))
    assert counter.get_total_flops() == pytest.approx(result.flops.sum() - texts, rel=0.02)


def test_flops_do_not_depend_on_the_batch_nor_on_what_came_before(
    model: StableDiffusion, judge: CLIPScoreShapes
) -> None:
    together = generated(model, judge, "noise_diffusion").flops
    model._flops.clear()
    vars(judge).pop("_flops")
    alone = generated(model, judge, "noise_diffusion", [TEXTS[1]]).flops
    assert together.tolist() == [alone[0]] * 2
    assert generated(model, judge, "noise_diffusion", ["three", *TEXTS]).flops.tolist() == [alone[0]] * 3


@pytest.mark.parametrize("kind", ["kl", "tiny", "xl"])
def test_the_decoder_and_the_texts_cost_what_they_really_do(kind: str, tmp_path: Any) -> None:
    """Counted on shapes alone or on an empty text, against the real weights on a real batch of two."""
    folder = tiny_stable_diffusion_xl(tmp_path) if kind == "xl" else tiny_stable_diffusion(tmp_path, autoencoder=kind)
    family = "stable_diffusion_xl" if kind == "xl" else "stable_diffusion"
    model: Any = harness.load_model(family, str(folder))
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model.decode(latents.detach())
    assert 2 * model.flops_per_decode() == counter.get_total_flops() > 0
    assert 2 * model.flops_per_decode(gradient=True) == 2 * flops.of_backward(
        model.decode_differentiable, latents[:1].detach()
    )
    with FlopCounterMode(display=False) as counter:
        model._encode("a red ring")
    assert model.flops_per_text() == counter.get_total_flops() > 0


def test_the_way_back_through_a_denoiser(model: StableDiffusion) -> None:
    conditioning = model.encode([Prompt("", "a red ring")])
    x = torch.zeros(1, *model.latent_shape)
    for name in model.networks:
        found = flops.of_backward(lambda x, name=name: model.predict(x, 500, conditioning, name), x)  # type: ignore[misc]
        assert model.flops_per_gradient(name) == found
        assert 0.9 < found / model.flops_per_evaluation(name) < 1.1
