"""Autoguidance: its formula with two networks that are known, its cost, and a model block without the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from harness import benchmark
from harness.diffusion.base import Conditioning, Counter, Sampler, Step
from harness.diffusion.sampling import guided, sample
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.errors import HarnessError
from harness.guidance.autoguidance import Autoguidance
from harness.guidance.base import COND, Request
from harness.prompts import Prompt
from harness.resolve import resolve
from tests.tiny import tiny_stable_diffusion
from tests.toy import Toy, numbers


class TwoToys(Toy):
    """Its second network says a tenth of what the first one says, and half more where no prompt is given."""

    networks = ("main", "weak")
    requests = frozenset({"cond", "uncond", "network"})

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        strong = super().predict(x, timestep, conditioning, network, perturbed)
        return strong / 10 if network == "weak" else strong


STEP = Step(3, 10, sigma=5.0, timestep=600)


@pytest.mark.parametrize(("scale", "expected"), [(2.5, 0.2 + 2.5 * 1.8), (1, 2.0), (0, 0.2), (-1, 0.2 - 1.8)])
def test_the_scale_is_that_of_the_difference(scale: float, expected: float) -> None:
    toy = TwoToys(lambda x, t, n: n)
    x = torch.zeros(1, 4, 8, 8)
    answer = guided(toy, x, STEP, toy.encode(numbers(2)), Autoguidance(scale, "weak"))
    torch.testing.assert_close(answer.prediction, torch.full_like(x, expected))


@pytest.mark.parametrize(
    ("guidance", "counts"),
    [
        (Autoguidance(2, "weak"), {"main": 20, "weak": 20}), (Autoguidance(1, "weak"), {"main": 20}),
        (Autoguidance(0, "weak"), {"weak": 20}), (Autoguidance(2, "weak", steps=(5, 9)), {"main": 20, "weak": 5}),
    ],
)
def test_evaluations_by_network(guidance: Autoguidance, counts: dict[str, int]) -> None:
    toy = TwoToys(lambda x, t, n: n)
    toy.counter = Counter(2)
    sample(toy, torch.zeros(2, 4, 8, 8), toy.encode(numbers(1, 2)), guidance, Sampler("ddim", 20))
    assert {name: count.tolist() for name, count in toy.counter.by_network.items()} == {
        name: [count] * 2 for name, count in counts.items()
    }


def test_the_interval_is_that_of_cfg() -> None:
    guidance = Autoguidance(2, "weak", sigma=(4, 6))
    assert guidance.requests(STEP, STEP.sigma) == (Request("network", network="weak"), COND)
    assert Autoguidance(2, "weak", sigma=(5, 6)).requests(STEP, STEP.sigma) == (COND,)
    assert "0 to 4" in Autoguidance(2, "weak", steps=(0, 5)).problems(Sampler(steps=5))[0]


def test_a_model_guided_by_itself_is_unguided(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = str(tiny_stable_diffusion(tmp_path))
    model = StableDiffusion.load(folder, networks={"same": {"weights": folder}})
    noise = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(0))
    texts = model.encode([Prompt("0", "a ring")])
    plain = sample(model, noise, texts, Autoguidance(1, "same"), Sampler("ddim", 4))
    torch.testing.assert_close(sample(model, noise, texts, Autoguidance(3, "same"), Sampler("ddim", 4)), plain)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="main"):
        Autoguidance(2, "main")
    with pytest.raises(ValueError, match="finite"):
        Autoguidance(float("inf"), "weak")


def test_a_network_that_is_not_there_is_refused_when_the_benchmark_is_read(tmp_path: Path) -> None:
    weights = str(tiny_stable_diffusion(tmp_path / "sd"))
    (tmp_path / "prompts.txt").write_text("one\n")
    content: dict[str, Any] = {
        "name": "two-networks", "models": {"sd": {"family": "stable_diffusion", "weights": weights}},
        "prompts": {"words": {"set": "words", "path": "prompts.txt"}},
        "methods": {"auto": {"guidance": {"autoguidance": {"scale": 2, "network": "weak"}}}},
    }
    path = tmp_path / "two.yaml"

    def read() -> Any:
        path.write_text(yaml.safe_dump(content))
        return resolve(benchmark.load(path), path)

    with pytest.raises(HarnessError, match=r"methods\.auto: .*network 'weak'.*models\.sd.*'networks: \{weak: \{lora"):
        read()
    content["models"]["sd"]["networks"] = {"weak": {"weights": weights}}
    assert read().models["sd"].networks == {"weak": {"weights": weights}}
