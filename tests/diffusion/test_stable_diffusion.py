import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.diffusion.base import Conditioning, Counter, Sampler
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.errors import HarnessError
from harness.prompts import Prompt
from tests.tiny import tiny_stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_stable_diffusion(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    return StableDiffusion.load(str(folder))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, text) for text in texts]


def test_size_and_type_come_from_the_weights_or_the_user(folder: Path, model: StableDiffusion) -> None:
    assert model.latent_shape == (4, 16, 16)
    assert model.native == "epsilon"
    assert not model.trained
    other = StableDiffusion.load(str(folder), size=32, dtype="bfloat16")
    assert other.latent_shape == (4, 8, 8)
    conditioning = other.encode(prompts("a"))
    prediction = other.predict(torch.zeros(1, 4, 8, 8), 10, conditioning)
    assert prediction.dtype == torch.float32
    assert conditioning.tensors["text"].dtype == torch.bfloat16
    assert other.decode(prediction).shape == (1, 1, 32, 32, 3)


def test_what_the_weights_cannot_do_is_said_from_the_configuration(folder: Path, tmp_path: Path) -> None:
    assert StableDiffusion.problems(folder, 64, Sampler()) == []
    assert StableDiffusion.problems(folder, None, Sampler()) == []
    (size,) = StableDiffusion.problems(folder, 65, Sampler())
    assert "multiple of 4; the nearest are 64 and 68" in size
    (sampler,) = StableDiffusion.problems(folder, None, Sampler("eulr"))
    assert "did you mean 'euler'" in sampler
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "vae" / "config.json").write_text("{")
    shutil.rmtree(broken / "tokenizer")
    for weights in (broken / "unet").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    texts = "\n".join(StableDiffusion.problems(broken, None, Sampler()))
    assert "vae/config.json cannot be read" in texts
    assert "tokenizer/tokenizer_config.json is missing" in texts
    assert "unet/ holds no .safetensors file" in texts
    with pytest.raises(HarnessError, match=r"tokenizer_config\.json is missing"):
        StableDiffusion.load(str(broken))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "stable_diffusion_xl"),
        ("unet", {"in_channels": 9}, "9 channels"),
        ("unet", {"cross_attention_dim": 768}, "768 wide"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("unet", {"addition_embed_type": "image"}, "of a kind that is not known here"),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler: expected one of a variance-preserving"),
        ("vae", {"_class_name": "AutoencoderDC"}, "expected AutoencoderKL or AutoencoderTiny"),
    ],
)
def test_models_of_another_kind_are_refused(
    folder: Path, tmp_path: Path, part: str, changes: dict[str, object], message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = other / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    assert any(message in problem for problem in StableDiffusion.problems(other, None, Sampler()))


def test_damaged_and_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("conv_in.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=r"conv_in\.weight"):
        StableDiffusion.load(str(broken))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(HarnessError, match="damaged"):
        StableDiffusion.load(str(broken))


def test_a_half_precision_variant_is_found(folder: Path, tmp_path: Path, model: StableDiffusion) -> None:
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for part in ("unet", "vae", "text_encoder"):
        for weights in (half / part).glob("*.safetensors"):
            weights.rename(weights.with_suffix(".fp16.safetensors"))
    loaded = StableDiffusion.load(str(half))
    assert torch.equal(loaded.unet.conv_in.weight, model.unet.conv_in.weight)


def test_bad_settings(folder: Path) -> None:
    with pytest.raises(HarnessError, match="did you mean 'float16' or"):
        StableDiffusion.load(str(folder), dtype="float61")


def test_a_text_is_encoded_the_same_in_any_company_and_order(folder: Path) -> None:
    one, two = StableDiffusion.load(str(folder)), StableDiffusion.load(str(folder))
    first = one.encode(prompts("a red ring", "b", "c"))
    two.encode(prompts("c", "d"))
    second = two.encode(prompts("b", "a red ring"))
    assert torch.equal(first.tensors["text"][0], second.tensors["text"][1])
    assert torch.equal(first.null["text"][0], second.null["text"][1])
    assert first.tensors["text"].shape == first.null["text"].shape == (3, 16, 32)


def test_every_row_is_counted_however_rows_are_regrouped(model: StableDiffusion) -> None:
    conditioning = model.encode(prompts("a", "b", "c"))
    model.counter = Counter(3)
    try:
        both = Conditioning.cat([conditioning.unconditional, conditioning])
        x = torch.zeros(6, *model.latent_shape)
        model.predict(x, 999, both)
        model.predict(x[:2], 999, both[[2, 5]])
        assert model.counter.nfe.tolist() == [2, 2, 4]
        assert model.counter.by_network.keys() == {"main"}
    finally:
        model.counter = None


def test_decoding_rounds_what_the_differentiable_path_gives(model: StableDiffusion) -> None:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = model.decode_differentiable(latents)
    assert images.shape == (2, 1, 64, 64, 3)
    images.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    np.testing.assert_array_equal(model.decode(latents.detach()), (images.detach().numpy() * 255).round())


def test_a_large_batch_is_decoded_a_few_at_a_time(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    together = model.decode(latents)
    sizes: list[int] = []
    decoded = model._decoded
    monkeypatch.setattr("harness.diffusion.stable_diffusion.DECODED_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(model, "_decoded", lambda rows: sizes.append(len(rows)) or decoded(rows))
    apart = model.decode(latents)
    assert sizes == [2, 2, 1]
    assert np.abs(apart.astype(int) - together).max() <= 1


def test_flops_are_those_of_one_rows_real_evaluation(model: StableDiffusion) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    conditioning = model.encode(prompts("a"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(torch.zeros(1, *model.latent_shape), 1, conditioning)
    assert model.flops_per_evaluation() == counter.get_total_flops() > 1e6
