"""SV3D: against the authors' sampler, guiders and picture preparation (tests/vectors/sv3d_sampling), and by itself."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers.models.embeddings import Timesteps
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from harness import flops
from harness.diffusion import sv3d, sv3d_file
from harness.diffusion.base import Conditioning, Counter, Sampler, Step
from harness.diffusion.conditioning_picture import open_picture
from harness.diffusion.inversion import invert
from harness.diffusion.sampling import sample
from harness.diffusion.sv3d import SV3D
from harness.errors import HarnessError
from harness.guidance.base import Guidance
from harness.guidance.cfg import CFG
from harness.guidance.frame_cfg import FrameCFG
from harness.guidance.none import NoGuidance
from harness.method import Result, load_method
from harness.noise.cosine import cosine
from harness.prompts import Prompt
from harness.store import Store
from tests.command import harness
from tests.tiny import tiny_stable_diffusion, tiny_sv3d
from tests.vectors.sv3d import tiny_file
from tests.vectors.sv3d_sampling import parts

OFFICIAL = Path(__file__).parent.parent / "vectors" / "sv3d_sampling"
EULER = {"name": "euler", "steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sv3d(tmp_path_factory.mktemp("sv3d"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> SV3D:
    torch.set_num_threads(1)
    return SV3D.load(str(folder), size=16)


@pytest.fixture
def model(tiny: SV3D) -> SV3D:
    """The tiny model, as it was loaded."""
    kept = dict(vars(tiny))
    yield tiny
    vars(tiny).update(kept)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    place = tmp_path_factory.mktemp("pictures")
    found = []
    for number, colour in enumerate([(250, 30, 30), (20, 60, 250)]):
        path = place / f"{number}.png"
        picture = Image.new("RGB", (16, 16), (255, 255, 255))
        picture.paste(colour, (4, 3 + number, 12, 13))
        picture.save(path)
        found.append(Prompt(str(number), "", image=str(path)))
    return found


def conditioning(given: dict[str, Tensor]) -> Conditioning:
    tensors = {key: given[key] for key in ("picture", "embedding")}
    return Conditioning(tensors, {key: torch.zeros_like(value) for key, value in tensors.items()},
                        torch.arange(parts.CLIPS))


def constant(u: Tensor) -> Callable[..., tuple[Tensor]]:
    """A network that says `u`, whatever it sees."""
    return lambda sample, **_: (u.to(sample.dtype).expand(len(sample), *u.shape[1:]),)


# ---- against the authors' code ----


@pytest.mark.parametrize("name", list(parts.settings()))
def test_sampling_is_the_authors(model: SV3D, name: str) -> None:
    """1e-5 of the norm over the whole sampling: both sides in float32, in which already their noise levels are
    computed; and their noise is scaled by sqrt(1 + sigma^2) instead of sigma, 1e-6 more."""
    case, given = parts.settings()[name], parts.tensors()
    theirs = load_file(OFFICIAL / "outputs.safetensors")[f"latents.{name}"]
    model.unet = parts.Formula()
    guidance: Guidance = CFG(case["scale"])
    if case["shape"]:
        guidance = FrameCFG(scale=case["scale"], shape=case["shape"])
    with torch.no_grad():
        ours = sample(model, given["noise"], conditioning(given), guidance, Sampler("euler", case["steps"]))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_a_picture_becomes_the_authors_frames(tmp_path: Path) -> None:
    """Their engine and ours with the same tiny official file: conditioning, sampling and decoding together.

    1e-4 of the norm: a random network amplifies the rounding of eight steps."""
    theirs = load_file(OFFICIAL / "outputs.safetensors")
    sv3d_file.convert(tiny_file.write(tmp_path / "sv3d_u.safetensors"), tmp_path / "folder")
    parts.small_picture().save(tmp_path / "picture.png")
    model = SV3D.load(str(tmp_path / "folder"), size=16)
    given = model.encode([Prompt("whole", "", image=str(tmp_path / "picture.png"))])
    with torch.no_grad():
        latents = sample(model, parts.whole_noise(), given, FrameCFG(scale=2.5), Sampler("euler", parts.WHOLE["steps"]))
        frames = model.decode_differentiable(latents)[0].permute(0, 3, 1, 2)
    for ours, their in ((latents[0], theirs["whole.latents"]), (frames, theirs["whole.frames"])):
        assert float((ours - their).norm() / their.norm()) < 1e-4
    assert theirs["whole.frames"].std() > 0.05


def test_noise_levels_and_scalings_are_the_authors(model: SV3D) -> None:
    about = json.loads((OFFICIAL / "outputs.json").read_text())
    schedule = model.schedule(Sampler("euler", 50))
    assert [step.sigma for step in schedule.evaluations] == pytest.approx(about["sigmas"][:-1], rel=5e-6)  # float32
    assert schedule.arrivals[-1] == about["sigmas"][-1] == 0
    seen: dict[str, Any] = {}

    def unet(sample: Tensor, **inputs: Any) -> tuple[Tensor]:
        seen.update(inputs, sample=sample)
        return (torch.zeros_like(sample[:, :, :4]),)

    model.unet = unet
    ones = torch.ones(1, 3, 4, 4, 4)
    row = Conditioning({"picture": ones[:, 0], "embedding": ones[:, 0, 0]}, {}, torch.arange(1))
    for sigma, c_skip, c_out, c_in, c_noise in zip(about["scalings"]["sigma"], *about["scalings"]["c"], strict=True):
        assert sv3d.scalings(sigma) == pytest.approx((c_skip, c_out), rel=1e-6)
        model.predict(ones, sigma, row)
        assert float(seen["sample"][0, 0, 0, 0, 0]) == pytest.approx(c_in, rel=1e-6)
        assert float(seen["timestep"]) == pytest.approx(c_noise, rel=1e-6)


def test_the_conditioning_is_laid_out_as_the_authors(model: SV3D, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their conditioner and ours on one picture, block means in the place of both networks on both sides."""
    theirs = load_file(OFFICIAL / "outputs.safetensors")

    def vae(picture: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: torch.nn.functional.avg_pool2d(picture, 8)))

    model.vae = SimpleNamespace(encode=vae)
    model.image_encoder = lambda pixels: SimpleNamespace(image_embeds=pixels.mean(dim=(2, 3)))
    model.image_encoder.config = SimpleNamespace(image_size=32)
    monkeypatch.setattr(sv3d, "open_picture", lambda *_: parts.waves(32)[0])
    monkeypatch.setattr(sv3d, "clip_pixels", lambda pixels, _: pixels * 2 - 1)  # CLIP's own is theirs in test_sv3d_clip
    given = model.encode([Prompt("a", "", image="a.png")])
    for tensors, name in ((given.tensors, "cond"), (given.null, "uncond")):
        inputs = model._inputs(torch.zeros(1, 3, 4, 4, 4), tensors)
        # Every frame is shown the same latent, as the encoder gives it, not scaled; theirs has no noise of 1e-5 on it.
        shown = theirs[f"{name}.concat"].expand(3, -1, -1, -1)
        torch.testing.assert_close(inputs["sample"][0, :, 4:], shown, rtol=0, atol=2e-5)
        torch.testing.assert_close(inputs["encoder_hidden_states"], theirs[f"{name}.crossattn"], rtol=0, atol=1e-6)
        # The strength of the noise on the picture stays without condition, embedded as the library's UNet does it.
        embedded = Timesteps(256, True, downscale_freq_shift=0)(inputs["added_time_ids"].flatten())
        torch.testing.assert_close(theirs[f"{name}.vector"], embedded.expand(3, -1))


@pytest.mark.parametrize("name", list(parts.drawn()))
def test_a_picture_with_transparency_is_prepared_as_by_the_authors(name: str, tmp_path: Path) -> None:
    theirs = load_file(OFFICIAL / "outputs.safetensors")[f"picture.{name}"]
    parts.drawn()[name].save(tmp_path / "picture.png")
    ours = open_picture(Prompt("a", "", image=str(tmp_path / "picture.png")), len(theirs))
    assert torch.equal(((ours + 1) / 2 * 255).round().to(torch.uint8), theirs.permute(2, 0, 1))


# ---- pictures ----


def test_a_picture_without_transparency_is_used_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = str(tmp_path / "picture.png")
    Image.fromarray(pixels).save(path)
    ours = open_picture(Prompt("a", "", image=path), 24)
    torch.testing.assert_close(ours, torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)
    Image.fromarray(pixels[:12]).save(path)  # wide: white above and below
    wide = open_picture(Prompt("a", "", image=path), 24)
    assert (wide[:, :6] == 1).all()
    assert (wide[:, 18:] == 1).all()
    torch.testing.assert_close(wide[:, 6:18], ours[:, :12], rtol=0, atol=1e-6)


def test_a_picture_that_is_missing_damaged_or_empty_is_named_with_its_prompt(tmp_path: Path) -> None:
    def opened(image: Path | None) -> Tensor:
        return open_picture(Prompt("chair-7", "", image=None if image is None else str(image)), 16)

    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(HarnessError, match="'chair-7' names no picture"):
        opened(None)
    with pytest.raises(HarnessError, match=r"'chair-7': its picture .*gone.png cannot be read"):
        opened(tmp_path / "gone.png")
    with pytest.raises(HarnessError, match=r"'chair-7': its picture .*cut.png cannot be read"):
        opened(tmp_path / "cut.png")
    with pytest.raises(HarnessError, match="transparent everywhere"):
        opened(tmp_path / "clear.png")


# ---- conditioning and network ----


def test_a_picture_is_encoded_twice_and_its_noise_is_its_prompts_own(model: SV3D, prompts: list[Prompt]) -> None:
    both = model.encode(prompts)
    assert both.tensors["picture"].shape == (2, 4, 4, 4)
    assert both.tensors["embedding"].shape == (2, 1, 32)
    assert not any(value.any() for value in both.null.values())
    picture = open_picture(prompts[1], 16)
    with torch.no_grad():
        plain = model.vae.encode(picture[None]).latent_dist.mode()[0]
    change = float((both.tensors["picture"][1] - plain).abs().max())
    assert 0 < change < 1e-4  # noise of 1e-5 was added, and nothing scaled
    alone, renamed = model.encode([prompts[1]]), model.encode([Prompt("x", "", image=prompts[1].image)])
    assert torch.equal(alone.tensors["picture"][0], both.tensors["picture"][1])
    assert torch.equal(renamed.tensors["embedding"], alone.tensors["embedding"])
    assert not torch.equal(renamed.tensors["picture"], alone.tensors["picture"])


def test_a_clip_is_seen_whole_and_alone(model: SV3D, prompts: list[Prompt]) -> None:
    given = model.encode(prompts)
    x = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(3))
    model.counter = Counter(2)
    with torch.no_grad():
        both = model.predict(x, 2.0, given)
        assert model.counter.by_network["main"].tolist() == [1, 1]  # of a clip, not of its frames
        for row in range(2):  # in another batch the last bits may differ
            torch.testing.assert_close(model.predict(x[[row]], 2.0, given[[row]]), both[[row]], rtol=1e-4, atol=1e-5)
        moved = x.clone()
        moved[0, 2] += 1
        after = model.predict(moved, 2.0, given)
    assert not torch.allclose(after[0, 0], both[0, 0], atol=1e-4)  # every frame sees the others
    torch.testing.assert_close(after[1], both[1], rtol=1e-4, atol=1e-5)  # and no other clip's
    with pytest.raises(HarnessError, match="has one network"):
        model.predict(x, 2.0, given, "guide")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.002, 700))
def test_the_native_prediction_converts_exactly(tiny: SV3D, sigma: float) -> None:
    g = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn((1, 3, 4, 2, 2), generator=g, dtype=torch.float64) for _ in range(2))
    x = x0 + sigma * noise
    u = tiny.to_native(x0, x, sigma, "x0")
    torch.testing.assert_close(tiny.to_x0(u, x, sigma), x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(tiny.to_epsilon(u, x, sigma), noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tiny.to_native(noise, x, sigma, "epsilon"), u, rtol=1e-6, atol=1e-6)
    # u is the velocity of the variance-preserving state x / sqrt(1 + sigma^2).
    root = math.sqrt(1 + sigma**2)
    torch.testing.assert_close(u, noise / root - x0 * sigma / root, rtol=1e-6, atol=1e-6)


# ---- inversion ----


@settings(max_examples=50, deadline=None)
@given(st.floats(0.002, 700), st.floats(0, 1))
def test_inversion_undoes_an_euler_step_of_a_constant_network(tiny: SV3D, sigma: float, share: float) -> None:
    arrival = share * sigma
    g = torch.Generator().manual_seed(2)
    u = torch.randn((1, 3, 4, 2, 2), generator=g, dtype=torch.float64)
    x = sigma * torch.randn(u.shape, generator=g, dtype=torch.float64)
    after = x + (arrival - sigma) * tiny.to_epsilon(u, x, sigma)
    before = tiny.invert_step(after, u, arrival, Step(0, 1, sigma, sigma))
    # The way to 0 leaves 1 / (sigma^2 + 1) of the state: what is left of its digits.
    torch.testing.assert_close(before, x, rtol=1e-6, atol=1e-6)


def test_the_printed_coefficients(tiny: SV3D) -> None:
    """Eq. 6 worked by hand at sigma_{t+1} = 2, sigma_t = 1, x = 3, u = 0.5."""
    root = math.sqrt(5)
    by_hand = (2 * 3 + (1 - 2) * (-2 / root) * 0.5) / ((1 - 2) * (1 - 1 / 5) + 2)
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    assert tiny.invert_step(3 * one, 0.5 * one, 1.0, Step(0, 1, 2.0, 2.0)).item() == pytest.approx(by_hand)


def test_a_whole_sampling_is_undone(model: SV3D) -> None:
    given = parts.tensors()
    sampler = Sampler("euler", 8, precision="float64")
    model.unet = constant(given["noise"][:1].flip(1))
    latents = sample(model, given["noise"].double(), conditioning(given), NoGuidance(), sampler)
    back = invert(model, latents, conditioning(given), sampler, NoGuidance())
    torch.testing.assert_close(back, given["noise"], rtol=0, atol=2e-4)  # latents are kept in float32
    assert cosine(given["noise"], back) == pytest.approx(1, abs=1e-7)


# ---- noise stages ----


def test_one_step_of_noise_optimisation_by_hand(model: SV3D, prompts: list[Prompt]) -> None:
    settings: dict[str, Any] = {"learning_rate": 1500, "learning_rate_size": 435_456, "momentum": 0.5}
    guidance = {"frame_cfg": {"scale": 2.5}}
    two = load_method(noise={"noise_optimisation": {"steps": 2, **settings}}, guidance=guidance, sampler=EULER)
    plain = load_method(guidance=guidance, sampler=EULER)
    result, before = two(model, prompts[:1]), plain(model, prompts[:1])
    noise = before.initial_noise
    given = model.encode(prompts[:1])
    back = invert(model, before.latents, given, two.sampler, CFG(1.0))
    n, v = (value.flatten().double() for value in (noise, back))
    cos = float(n @ v / n.norm() / v.norm())
    downhill = (v / v.norm() - cos * n / n.norm()) / n.norm()
    # The rate of step 1 of 2 is half of the whole one, which goes with the elements of a latent.
    rate = 1500 * noise.numel() / 435_456 / 2
    by_hand = noise + rate * downhill.view_as(noise).float()
    torch.testing.assert_close(result.initial_noise, by_hand, rtol=0, atol=1e-5)
    assert result.records[0]["cosines"][0] == pytest.approx(cos, abs=1e-6)
    assert result.nfe.tolist() == [2 * 3 * (2 + 1)]
    assert float((result.initial_noise - noise).abs().max()) > 1e-4


def test_selection_takes_the_most_stable_clip(model: SV3D, prompts: list[Prompt]) -> None:
    def chosen(pick: str, prompts: list[Prompt]) -> Result:
        stage = {"inversion_stability": {"candidates": 2, "pick": pick}}
        return load_method(noise=stage, sampler={"name": "euler", "steps": 2})(model, prompts)

    most, least = chosen("most", prompts), chosen("least", prompts)
    assert most.images.shape == (2, 3, 16, 16, 3)
    for row in range(2):
        scores = most.records[row]["scores"]
        assert scores == least.records[row]["scores"]
        assert most.records[row]["chosen"] == int(np.argmax(scores))
        assert least.records[row]["chosen"] == int(np.argmin(scores))
        assert not torch.equal(least.latents[row], most.latents[row])
    alone = chosen("most", prompts[1:])
    assert alone.records[0]["chosen"] == most.records[1]["chosen"]
    np.testing.assert_allclose(alone.latents[0], most.latents[1], atol=1e-3)


# ---- decoding, cost, loading ----


def test_frames_are_decoded_and_rounded_down(model: SV3D) -> None:
    latents = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(4))
    images = model.decode(latents)
    assert images.dtype == np.uint8
    assert images.shape == (2, 3, 16, 16, 3)
    with torch.no_grad():
        frame = model.vae.decode(latents[1, 2][None] / model.vae.config.scaling_factor).sample[0]
    exact = ((frame / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    assert np.abs(images[1, 2] - exact).max() <= 1.001
    assert (images[1, 2] <= exact + 1e-3).all()


def test_a_temporal_decoder_sees_some_frames_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[Prompt]
) -> None:
    model = SV3D.load(str(tiny_sv3d(tmp_path, temporal=True, frames=5)), size=16)
    latents = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(4))
    whole = model.decode_differentiable(latents)
    monkeypatch.setattr(sv3d, "TOGETHER", 3)
    parted = model.decode_differentiable(latents)
    first = model.decode_differentiable(latents[:, :3])
    torch.testing.assert_close(parted[:, :3], first)
    assert not torch.allclose(whole, parted, atol=1e-4)  # the third frame no longer sees the fourth
    made = load_method(sampler={"name": "heun", "steps": 2})(model, prompts[:1])
    assert made.images.shape == (1, 5, 16, 16, 3)
    assert made.nfe.tolist() == [3]
    one = SV3D(model.unet, model.vae, model.image_encoder, frames=1, size=16)
    assert model.flops_per_decode() == pytest.approx(5 * one.flops_per_decode(), rel=1e-6)


def test_costs_are_counted_on_shapes(model: SV3D, prompts: list[Prompt]) -> None:
    given, x = model.encode(prompts[:1]), torch.zeros(1, *model.latent_shape)
    real = flops.of_forward(lambda: model.predict(x, 1.0, given))
    assert model.flops_per_evaluation() == real
    assert 0.9 < model.flops_per_gradient() / real < 1.1  # the way back to the input alone
    assert model.flops_per_decode(gradient=True) > 0


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Callable[..., str]:
    """The tiny model with other lines in a part's configuration."""

    def made(part: str, **lines: Any) -> str:
        place = tmp_path / "copy"
        shutil.copytree(folder, place)
        file = place / part / "config.json"
        content = {**json.loads(file.read_text()), **lines}
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return str(place)

    return made


def test_conversions_with_a_class_name_of_their_own_are_taken(
    tiny: SV3D, copy: Callable[..., str], prompts: list[Prompt]
) -> None:
    theirs = SV3D.load(copy("unet", _class_name="SV3DUNetSpatioTemporalConditionModel", num_frames=None), size=16)
    assert theirs.latent_shape == (21, 4, 4, 4)  # the library would say 25
    for ours, other in zip(tiny.unet.parameters(), theirs.unet.parameters(), strict=True):
        assert torch.equal(ours, other)
    assert theirs.trained is False


@pytest.mark.parametrize(
    ("part", "lines", "message"),
    [
        ("unet", {"projection_class_embeddings_input_dim": 1280}, "told 5 numbers .*SV3D-P"),
        ("unet", {"projection_class_embeddings_input_dim": 768}, "told 3 numbers .*Stable Video Diffusion"),
        ("unet", {"_class_name": "UNet2DConditionModel"}, "expected UNetSpatioTemporalConditionModel"),
        ("unet", {"in_channels": 4}, "takes 4 channels: expected 8"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "expected AutoencoderKL or"),
        ("image_encoder", {"projection_dim": 16}, "attends to embeddings 32 wide, but image_encoder/ gives 16"),
    ],
)
def test_other_models_are_refused_with_the_reason(
    copy: Callable[..., str], part: str, lines: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        SV3D.load(copy(part, **lines))


@pytest.mark.parametrize(
    ("part", "lines", "said"),
    [
        ("unet", '"num_frames": [21]', "unet/config.json: num_frames must be a whole number above 0, not [21]"),
        ("unet", '"num_frames": 0', "num_frames must be a whole number above 0"),
        ("unet", '"addition_time_embed_dim": 0', "unet/config.json: addition_time_embed_dim must be a whole number"),
        ("unet", '"block_out_channels": 4', "unet/config.json: block_out_channels must be whole numbers above 0, not"),
        ("vae", '"latent_channels": "4"', "vae/config.json: latent_channels must be a whole number above 0, not '4'"),
        ("vae", '"block_out_channels": []', "vae/config.json: block_out_channels must be whole numbers above 0"),
        ("unet", None, "unet/config.json cannot be read: expected a JSON object"),
        ("unet", '"num_frames": null, "addition_time_embed_dim": null, "block_out_channels": null', None),
        ("vae", '"latent_channels": null, "block_out_channels": null', None),
    ],
)
def test_odd_values_of_a_configuration_are_named(
    folder: Path, tmp_path: Path, part: str, lines: str | None, said: str | None
) -> None:
    for name in sv3d.NETWORKS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        shutil.copy(folder / name / "config.json", tmp_path / name)
    file = tmp_path / part / "config.json"
    file.write_text("[]" if lines is None else json.dumps(json.loads(file.read_text()) | json.loads(f"{{{lines}}}")))
    found = SV3D.problems(tmp_path, 16, Sampler("euler"))
    assert SV3D.frames_of(tmp_path) == (21 if lines is None or "num_frames" in lines else 3)
    if said is None:
        assert not any("config.json" in problem for problem in found)  # as where the key is absent
    else:
        assert [said in problem for problem in found] == [True]


def test_an_orbit_of_transparent_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    seen = {}
    for name, alpha in (("clear", 0), ("opaque", 255)):
        Image.new("RGBA", (8, 8), (9, 9, 9, alpha)).save(tmp_path / f"{name}.png")
        path = str(tmp_path / f"{name}.png")
        orbit = Prompt("chair", "", image=path, truth={"frames": [path] * 3})
        seen[name] = SV3D.prompt_problems(folder, [Prompt("alone", "", image=str(tmp_path / "clear.png")), orbit])
    assert seen["opaque"] == []
    assert [said.startswith("the picture of prompt 'chair' is transparent in part") for said in seen["clear"]] == [True]


def test_what_cannot_be_made_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="multiple of 8; the nearest are 8 and 16"):
        SV3D.load(str(folder), size=12)
    with pytest.raises(HarnessError, match="no further networks"):
        SV3D.load(str(folder), size=16, networks={"guide": {"weights": "x"}})
    (tmp_path / "unet").mkdir()
    with pytest.raises(HarnessError, match=r"unet/config.json is missing"):
        SV3D.load(str(tmp_path))
    assert "sampled by heun or euler" in SV3D.problems(folder, 16, Sampler("ddim"))[0]
    assert SV3D.problems(folder, None, Sampler("euler")) == []
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with_picture, without = Prompt("a", "", image=str(tmp_path / "a.png")), Prompt("b", "")
    assert SV3D.prompt_problems(folder, [with_picture]) == []
    found, = SV3D.prompt_problems(folder, [with_picture, without])
    assert "1 of 2 prompts name no picture (the first is 'b')" in found
    gone = [Prompt(name, "", image=str(tmp_path / name)) for name in ("c.png", "d.png")]
    found, = SV3D.prompt_problems(folder, [with_picture, *gone])
    assert f"the pictures of 2 of 3 prompts are not there; the first is that of 'c.png', {tmp_path}/c.png" in found


# ---- through the command line ----


def benchmark(folder: Path, weights: Path, pictures: list[Prompt], **changed: Any) -> str:
    """A benchmark of two methods on two pictures, as a file in `folder`."""
    for prompt in pictures:
        shutil.copy(str(prompt.image), folder)
    rows = [{"id": p.id, "prompt": "an object", "image": Path(str(p.image)).name} for p in pictures]
    (folder / "orbits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "orbits", "models": {"tiny": {"family": "sv3d", "weights": str(weights), "size": 16, "batch": 1}},
        "prompts": {"orbits": {"set": "orbits", "path": "orbits.jsonl"}}, "sampler": {"name": "euler", "steps": 2},
        "methods": {
            "ramp": {"guidance": {"frame_cfg": {"scale": 2.5}}},
            "optimised": {
                "guidance": {"frame_cfg": {"scale": 2.5, "sigma": [1, None]}},
                "noise": {"noise_optimisation": {"steps": 2, "learning_rate": 1500, "learning_rate_size": 435_456}},
            },
        },
    }
    path = folder / "orbits.yaml"
    path.write_text(yaml.safe_dump({**content, **changed}, sort_keys=False))
    return str(path)


def test_a_clip_is_generated_and_kept_a_row_a_frame(
    folder: Path, prompts: list[Prompt], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = benchmark(tmp_path, folder, prompts)
    code, said, errors = harness(capsys, "check", path, "--json")
    assert code == 0, errors
    report = json.loads(said)
    nfe = {"ramp": 4, "optimised": 2 * (3 + 2)}  # the second step, at sigma 0.002, is not guided
    assert {entry["method"]: entry["nfe"] for entry in report["methods"]} == nfe
    assert report["models"][0]["trained"] is False
    code, _, errors = harness(capsys, "run", path, "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 0, errors
    store = Store(tmp_path / "runs" / "orbits")
    parted = list(store.parts("images"))
    assert len(parted) == 2
    for part in parted:
        frames = store.read_part(part, ["sample_id", "frame"])
        assert frames["frame"].tolist() == [0, 1, 2] * 2
        assert frames["sample_id"].nunique() == 2
        rows, clips = store.read_images(part)
        assert [row["error"] for row in rows] == [None, None]
        assert all(row["nfe"] == nfe[part.method] for row in rows)
        assert all(clip is not None and clip.shape == (3, 16, 16, 3) and clip.std() > 1 for clip in clips)
        assert all(row["flops"] > 1e8 for row in rows)


def test_what_a_benchmark_asks_in_vain_is_said_by_check(
    folder: Path, prompts: list[Prompt], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stills = tiny_stable_diffusion(tmp_path / "stills", autoencoder="tiny")
    path = benchmark(
        tmp_path, folder, prompts, prompts={"words": {"set": "words", "path": "words.txt"}},
        models={"clips": {"family": "sv3d", "weights": str(folder), "size": 20},
                "stills": {"family": "stable_diffusion", "weights": str(stills)}},
    )
    (tmp_path / "words.txt").write_text("a chair\n")
    code, _, said = harness(capsys, "check", path)
    assert code == 2
    assert "prompts.words: with models.clips: 1 of 1 prompts name no picture (the first is '0')" in said
    assert "methods.ramp: with models.clips: size: frames of 20 pixels cannot be made" in said
    assert "methods.ramp: FrameCFG weighs the frames of a clip, and family 'stable_diffusion' (models.stills)" in said
