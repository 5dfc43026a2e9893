"""Further networks of a model: UNets of their own, and LoRAs that leave the model's own UNet as it is."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.diffusion.base import Conditioning, Counter, Diffusion
from harness.diffusion.folders import LORA_FILE
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.diffusion.stable_diffusion_xl import StableDiffusionXL
from harness.diffusion.unets import UNets, self_attention, without_weights
from harness.errors import HarnessError
from harness.prompts import Prompt
from tests.tiny import tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: `sd`, another `weak`, and two LoRAs of `sd`."""
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("networks")
    tiny_stable_diffusion(made / "sd")
    tiny_stable_diffusion(made / "weak", seed=7)
    tiny_lora(made / "lora", made / "sd")
    tiny_lora(made / "lora-2", made / "sd", seed=6)
    return made


def networks(place: Path) -> dict[str, dict[str, Any]]:
    return {
        "weak": {"weights": str(place / "weak")}, "one": {"lora": str(place / "lora")},
        "two": {"lora": str(place / "lora-2")},
    }


@pytest.fixture(scope="module")
def model(place: Path) -> StableDiffusion:
    return StableDiffusion.load(str(place / "sd"), networks=networks(place))


@pytest.fixture(scope="module")
def plain(place: Path) -> StableDiffusion:
    return StableDiffusion.load(str(place / "sd"))


def inputs(model: Diffusion) -> tuple[Tensor, float, Conditioning]:
    x = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(1))
    return x, 500.0, model.encode([Prompt("0", "a red ring"), Prompt("1", "")])


def merged(checkpoint: Path, lora: Path, scale: float = 8 / 4) -> Any:
    """The UNet with the LoRA multiplied out into its weights: W + scale * B A, with scale = alpha / rank."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").eval()
    parts = load_file(lora / LORA_FILE)
    changed = 0
    for a, b in ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")):
        for name in [name for name in parts if name.endswith(a)]:
            layer = unet.get_submodule(name.removeprefix("unet.").removesuffix(a))
            down, up = parts[name], parts[name.removesuffix(a) + b]
            layer.weight.data += scale * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
            changed += 1
    assert changed == len(parts) / 2 == 40
    return unet


def test_each_network_is_what_its_files_say(place: Path, model: StableDiffusion, plain: StableDiffusion) -> None:
    assert model.networks == ("main", "weak", "one", "two")
    assert plain.networks == ("main",)
    x, t, conditioning = inputs(model)
    text = conditioning.tensors["text"]
    weak = UNet2DConditionModel.from_pretrained(place / "weak", subfolder="unet").eval()
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, conditioning, "weak"), weak(x, t, text).sample)
        for name, folder in (("one", "lora"), ("two", "lora-2")):
            expected = merged(place / "sd", place / folder)(x, t, text).sample
            torch.testing.assert_close(model.predict(x, t, conditioning, name), expected, rtol=1e-4, atol=1e-4)
    answers = [model.predict(x, t, conditioning, name) for name in model.networks]
    for i, answer in enumerate(answers):
        for other in answers[:i]:
            assert (answer - other).abs().max() > 0.05


def test_a_lora_that_does_not_say_its_alpha_has_scale_1(place: Path, tmp_path: Path) -> None:
    save_file(load_file(place / "lora" / LORA_FILE), tmp_path / LORA_FILE)
    model = StableDiffusion.load(str(place / "sd"), networks={"silent": {"lora": str(tmp_path)}})
    x, t, conditioning = inputs(model)
    with torch.no_grad():
        expected = merged(place / "sd", tmp_path, scale=1)(x, t, conditioning.tensors["text"]).sample
        torch.testing.assert_close(model.predict(x, t, conditioning, "silent"), expected, rtol=1e-4, atol=1e-4)


def test_the_main_network_is_bit_identical_after_every_use_of_another(
    model: StableDiffusion, plain: StableDiffusion
) -> None:
    x, t, conditioning = inputs(model)
    expected = plain.predict(x, t, conditioning)
    assert torch.equal(model.predict(x, t, conditioning), expected)
    for name in ("one", "weak", "two", "one"):
        first = model.predict(x, t, conditioning, name)
        assert torch.equal(model.predict(x, t, conditioning), expected)
        assert torch.equal(model.predict(x, t, conditioning, name), first)
        assert torch.equal(model.unet(x, t, conditioning.tensors["text"]).sample, expected)  # whoever asks for it
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_loading_touches_no_global_generator(place: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    StableDiffusion.load(str(place / "sd"), networks=networks(place))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluations_and_operations_are_counted_by_name(model: StableDiffusion) -> None:
    x, t, conditioning = inputs(model)
    model.counter = Counter(2)
    try:
        model.predict(x, t, conditioning, "one")
        model.predict(x[:1], t, conditioning[[1]], "weak")
        model.predict(x, t, conditioning, perturbed=("mid",))
        counts = {name: count.tolist() for name, count in model.counter.by_network.items()}
        assert counts == {"one": [1, 1], "weak": [0, 1], "main": [1, 1]}
    finally:
        model.counter = None
    for name in model.networks:
        with FlopCounterMode(display=False) as real, torch.no_grad():
            model.predict(x[:1], t, conditioning[[0]], name)
        assert model.flops_per_evaluation(name) == real.get_total_flops()
    assert model.flops_per_evaluation("main") == model.flops_per_evaluation("weak") < model.flops_per_evaluation("one")
    with pytest.raises(HarnessError, match="no network 'none': this model has main, weak, one, two"):
        model.predict(x, t, conditioning, "none")


PUBLISHED: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
PUBLISHED_2 = PUBLISHED | {
    "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}
PUBLISHED_XL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("config", "side", "millions", "tera", "middle"),
    [(PUBLISHED, 64, 860, 0.803, 1), (PUBLISHED_2, 96, 866, 2.149, 1), (PUBLISHED_XL, 128, 2567, 6.761, 10)],
)
def test_the_published_networks_cost_what_is_known_of_them(
    config: dict[str, Any], side: int, millions: float, tera: float, middle: int
) -> None:
    """Parameters as published; operations counted apart from this code, on the same graphs."""
    unet = without_weights(config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)
    inputs: dict[str, Any] = {"encoder_hidden_states": torch.empty(1, 77, config["cross_attention_dim"], device="meta")}
    if "addition_embed_type" in config:
        sizes, pooled = torch.empty(1, 6, device="meta"), torch.empty(1, 1280, device="meta")
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    assert UNets(unet).flops("main", (1, 4, side, side), inputs) == pytest.approx(tera * 1e12, rel=1e-3)
    assert len(self_attention(unet, ("mid",))) == middle


def test_networks_follow_the_models_dtype(place: Path, model: StableDiffusion) -> None:
    half = StableDiffusion.load(str(place / "sd"), dtype="bfloat16", networks=networks(place))
    x, t, conditioning = inputs(half)
    for name in half.networks:
        prediction = half.predict(x, t, conditioning, name)
        assert prediction.dtype == torch.float32
        expected = model.predict(x, t, inputs(model)[2], name)
        assert 0 < (prediction - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.bfloat16}


def test_a_lora_of_stable_diffusion_xl(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_xl(tmp_path / "xl")
    lora = tiny_lora(tmp_path / "lora", folder)
    model = StableDiffusionXL.load(str(folder), networks={"refiner": {"lora": str(lora)}})
    x, t, conditioning = inputs(model)
    expected = StableDiffusionXL.load(str(folder)).predict(x, t, conditioning)
    assert (model.predict(x, t, conditioning, "refiner") - expected).abs().max() > 0.05
    assert torch.equal(model.predict(x, t, conditioning), expected)
    assert model.flops_per_evaluation("refiner") > model.flops_per_evaluation()


def refused(place: Path, **block: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        StableDiffusion.load(str(place / "sd"), networks={"other": block})
    return str(caught.value)


def test_networks_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    for block in ({}, {"weights": "a", "lora": "b"}, {"lora": "a", "scale": 2}):
        assert "networks.other: expected 'weights' or 'lora'" in refused(place, **block)
    assert "no such folder" in refused(place, lora=str(tmp_path / "nowhere"))
    assert f"{LORA_FILE} is missing" in refused(place, lora=str(place / "weak"))
    assert "unet/config.json" in refused(place, weights=str(place / "lora"))
    xl = tiny_stable_diffusion_xl(tmp_path / "xl")
    assert "cross_attention_dim 80, the model's own UNet 32" in refused(place, weights=str(xl))
    v = tiny_stable_diffusion(tmp_path / "v", prediction_type="v_prediction")
    assert "prediction_type 'v_prediction', the model's own 'epsilon'" in refused(place, weights=str(v))
    assert "does not fit" in refused(place, lora=str(tiny_lora(tmp_path / "xl-lora", xl)))
    with pytest.raises(HarnessError, match="the name 'main' is taken"):
        StableDiffusion.load(str(place / "sd"), networks={"main": {"lora": str(place / "lora")}})


def test_a_lora_that_is_damaged_or_of_another_layout_is_refused(place: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    shutil.copytree(place / "lora", lora)
    parts = load_file(lora / LORA_FILE)
    with safe_open(lora / LORA_FILE, framework="pt") as file:
        metadata = file.metadata()
    save_file({**parts, "text_encoder.x.lora_A.weight": torch.zeros(1)}, lora / LORA_FILE, metadata)
    assert "has weights for text_encoder" in refused(place, lora=str(lora))
    stranger = {name.replace("mid_block", "middle_block"): tensor for name, tensor in parts.items()}
    save_file(stranger, lora / LORA_FILE, metadata)
    assert "have a place in the model's UNet" in refused(place, lora=str(lora))
    (lora / LORA_FILE).write_bytes((lora / LORA_FILE).read_bytes()[:1000])
    assert "damaged or not whole" in refused(place, lora=str(lora))
