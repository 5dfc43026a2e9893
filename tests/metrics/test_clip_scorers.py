"""HPSv2, PickScore, CLIPScore and the aesthetic score: against their authors' code, with gradients, refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file

from harness import registry
from harness.errors import HarnessError
from harness.metrics import clip, clip_pixels, openclip
from harness.metrics.aesthetic import layers
from harness.metrics.hpsv2 import HEAD_WIDTH, padded
from harness.metrics.load import load_metric, metric_digest, metric_identity
from harness.prompts import Prompt
from tests.metrics import tiny_aesthetic, tiny_openclip, tiny_pickscore
from tests.metrics.tiny_openclip import PROMPTS, SIZES, WEIGHTS, picture, sha256

OFFICIAL = json.loads((Path(__file__).parents[1] / "vectors" / "clip" / "outputs.json").read_text())
TEXTS = [Prompt(str(i), text) for i, text in enumerate(PROMPTS)]
SCORERS = ["hpsv2", "hpsv2.1", "pickscore", "clipscore", "clipscore-b32", "clipscore-b16", "clipscore-b16-lowest",
           "clipscore-l14", "aesthetic"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {
        "hpsv2": tiny_openclip.write_hpsv2(folder),
        "openai": tiny_openclip.write_openai(folder / "openai"),
        "pickscore": tiny_pickscore.write(folder / "pickscore"),
        "processor": tiny_pickscore.write_processor(folder / "processor"),
        "linear": tiny_aesthetic.write(folder, "linear"),
        "relu": tiny_aesthetic.write(folder, "relu"),
    }


@pytest.fixture(scope="module")
def scorer(places):
    """A scorer by name on its tiny weights."""

    def build(name, **parameters):
        given = {"weights": places["openai"]}
        if name.startswith("hpsv2"):
            given = {"weights": places["hpsv2"]}
        if name == "pickscore":
            given = {"weights": places["pickscore"], "processor": places["processor"]}
        if name == "aesthetic":
            given = {"weights": places["linear"], "clip_weights": places["openai"]}
        return load_metric(name, **{key: str(place) for key, place in given.items()} | parameters)

    return build


def _scores(metric, which=(0, 1, 2, 3, 4, 5)):
    """Picture k with text k, one by one."""
    return [metric.score(picture(*SIZES[k], k)[None, None], [PROMPTS[k]]).values[0] for k in which]


# ---- against the authors' code ----


def test_the_checkpoints_are_those_of_the_vectors(places):
    assert sha256(torch.load(places["hpsv2"])["state_dict"]) == OFFICIAL["hpsv2"]["checkpoint"]
    assert sha256(load_file(places["openai"] / WEIGHTS)) == OFFICIAL["clipscore"]["checkpoint"]
    assert sha256(load_file(places["pickscore"] / "model.safetensors")) == OFFICIAL["pickscore"]["checkpoint"]


# Float32 on both sides: a cosine agrees to 1e-7, 100 times it to 1e-5.
@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.1"])
@pytest.mark.parametrize(("antialias", "key"), [(True, "antialias"), (False, "no antialias")])
def test_hpsv2_is_100_times_the_official_score(scorer, name, antialias, key):
    assert _scores(scorer(name, antialias=antialias)) == pytest.approx(100 * np.array(OFFICIAL["hpsv2"][key]), abs=2e-5)


def test_pickscore_is_the_official_score(scorer):
    metric, official = scorer("pickscore"), OFFICIAL["pickscore"]
    assert _scores(metric, official["pictures"]) == pytest.approx(official["scores"], abs=2e-5)
    one = [metric.score(picture(*SIZES[k], k)[None, None], PROMPTS[:1]).values[0] for k in official["pictures"]]
    assert one == pytest.approx(official["one prompt"], abs=2e-5)
    detail = metric.score(picture(*SIZES[0], 0)[None, None], PROMPTS[:1]).details[0]
    assert np.exp(4.5) * detail["cosine"] == pytest.approx(one[0], abs=1e-5)
    assert np.isfinite(metric.score(picture(1, 300, 0)[None, None], [""]).values).all()  # the official code cannot


def test_clipscore_is_the_official_score_in_both_conventions(scorer):
    hessel = np.array(OFFICIAL["clipscore"]["hessel"])
    assert (hessel == 0).any()
    assert (hessel > 0).any()
    assert _scores(scorer("clipscore")) == pytest.approx(hessel, abs=1e-5)
    assert min(OFFICIAL["clipscore"]["100 cos"]) < 0
    for name in ("clipscore-b32", "clipscore-b16", "clipscore-b16-lowest", "clipscore-l14"):
        assert _scores(scorer(name)) == pytest.approx(OFFICIAL["clipscore"]["100 cos"], abs=2e-5)
    cut = scorer("clipscore").score(picture(*SIZES[1], 1)[None, None], PROMPTS[1:2])
    assert cut.values[0] == 0
    assert -1 < cut.details[0]["cosine"] < 0


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_aesthetic_is_the_official_score(scorer, places, kind):
    found = _scores(scorer("aesthetic", weights=str(places[kind])))
    assert found == pytest.approx(OFFICIAL["aesthetic"][kind], abs=1e-5)


# ---- batches, texts, gradients ----


@pytest.mark.parametrize("name", ["hpsv2", "pickscore", "clipscore", "clipscore-b32", "aesthetic"])
def test_a_batch_is_its_rows(scorer, name):
    metric = scorer(name)
    images = np.stack([picture(96, 80, k) for k in range(len(PROMPTS))])[:, None]
    together = metric.score(images, TEXTS)
    assert together.values.dtype == np.float64
    metric.clip.texts.clear()
    alone = [metric.score(images[k : k + 1], TEXTS[k : k + 1]).values[0] for k in (3, 0, 5, 1, 2, 4)]
    assert together.values[[3, 0, 5, 1, 2, 4]] == pytest.approx(alone, abs=2e-5)
    assert json.loads(json.dumps(together.details)) == together.details
    assert len(metric.score(images[:0], []).values) == 0
    with pytest.raises(ValueError, match="6 images for 1 prompts"):
        metric.score(images, TEXTS[:1])
    with pytest.raises(ValueError, match="stills"):
        metric.score(np.repeat(images, 2, axis=1), TEXTS)


def test_texts_are_encoded_once_and_the_oldest_forgotten(scorer, monkeypatch):
    metric = scorer("clipscore")
    metric.clip.texts.clear()
    metric.score(np.stack([picture(40, 40, k) for k in range(3)])[:, None], ["fox", "vase", "fox"])
    assert list(metric.clip.texts) == ["A photo depicts fox", "A photo depicts vase"]
    monkeypatch.setattr(clip, "TEXTS", 2)
    first = metric.clip.text("A photo depicts fox")
    metric.clip.text("rocket")
    assert list(metric.clip.texts) == ["A photo depicts vase", "rocket"]
    assert torch.equal(metric.clip.text("A photo depicts fox"), first)


# A smooth picture, resized without rounding to 8 bits, gives nearly the same value; on tiny random networks a grey
# level weighs more than on trained ones. HPSv2 officially resizes floats, so there both paths are one.
@pytest.mark.parametrize(("name", "resized"), [
    ("hpsv2", 2e-5), ("pickscore", 5e-2), ("clipscore", 2e-3), ("clipscore-b32", 5e-2), ("aesthetic", 5e-3),
])
def test_the_differentiable_path(scorer, name, resized):
    metric = scorer(name)
    assert metric.has_gradient
    smooth = np.stack(np.meshgrid(np.linspace(20, 220, 260), np.linspace(200, 30, 300), indexing="ij"), axis=-1)
    smooth = np.concatenate([smooth, smooth.mean(axis=-1, keepdims=True)], axis=-1).round().astype(np.uint8)
    for image, tolerance in ((picture(224, 224, 2), 2e-5), (smooth, resized)):
        x = (torch.from_numpy(image)[None, None].float() / 255).requires_grad_()
        value = metric.differentiable(x, TEXTS[:1])
        assert value.dtype == x.dtype
        assert value.item() == pytest.approx(metric.score(image[None, None], TEXTS[:1]).values[0], abs=tolerance)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert torch.isfinite(gradient).all()
        if name == "clipscore" and value.item() == 0:
            continue
        uphill = metric.differentiable((x + 2e-3 * gradient / gradient.abs().max()).detach(), TEXTS[:1])
        assert uphill.item() > value.item()
    with pytest.raises(ValueError, match="1 images for 6 prompts"):
        metric.differentiable(x, TEXTS)
    sharp = picture(*SIZES[5], 0)[None]  # margins of its centre are odd
    there = metric.differentiable_pixels(torch.from_numpy(sharp).float() / 255)
    assert (there - metric.pixels(sharp)).abs().max() < 1.2 / 255 / min(clip_pixels.STD)


# ---- preprocessing ----


@pytest.mark.parametrize("size", [*SIZES, (250, 334), (299, 224), (225, 224), (30, 41)])
def test_pixels_are_those_of_the_libraries(size):
    image = picture(*size, 0)
    theirs = image_transform(224, is_train=False)(Image.fromarray(image))
    ours = clip_pixels.normalised(clip_pixels.fitted(image[None], 224, "even"))[0]
    assert torch.equal(ours, theirs)
    pillow = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)()
    if size[0] > 1:
        theirs = pillow(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        ours = clip_pixels.normalised(clip_pixels.fitted(image[None], 224, "floor"))[0]
        assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(512, 512), (480, 640), (334, 250), (64, 96)])
def test_tensors_are_resized_and_cut_as_images_are(size):
    image = picture(*size, 0)[None]
    for odd in ("even", "floor"):
        found = clip_pixels.fitted_tensor(torch.from_numpy(image).float() / 255, 224, odd)
        assert (found - clip_pixels.fitted(image, 224, odd)).abs().max() < 1.2 / 255


def test_the_centre_of_odd_margins():
    assert clip_pixels.centre(227, 225, (224, 224), "even") == (2, 0)
    assert clip_pixels.centre(227, 225, (224, 224), "floor") == (1, 0)
    with pytest.raises(ValueError, match="smaller than the crop"):
        clip_pixels.centre(220, 300, (224, 224), "floor")


def test_hpsv2_pads_to_a_square():
    x = torch.ones(1, 3, 5, 8)
    found = padded(x, 8, True)[0, 0]
    assert found.sum(dim=1).tolist() == [0, 8, 8, 8, 8, 8, 0, 0]  # 3 rows to add: 1 above, 2 below
    assert padded(x.transpose(2, 3), 8, True)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert padded(torch.ones(1, 3, 7, 20), 10, True)[0, 0].sum(dim=1).count_nonzero() == 4  # 3.5 is rounded to 4
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    assert padded(edge, 24, True).max() > 1  # the overshoot stays
    with pytest.raises(ValueError, match="too narrow"):
        padded(torch.ones(1, 3, 1, 500), 224, True)


# ---- loading ----


def test_the_full_size_is_what_official_shapes_give():
    settings = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        full = open_clip.CLIP(**settings)
        found = openclip.architecture(full.state_dict(), HEAD_WIDTH, Path("file"))
        ours = open_clip.CLIP(**found)
    for tower in ("vision_cfg", "text_cfg"):
        assert {key: found[tower][key] for key in settings[tower]} == settings[tower]
        assert found[tower]["mlp_ratio"] == 4
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in full.state_dict().items()
    }
    assert ours.visual.transformer.resblocks[0].attn.num_heads == 16


def test_the_configuration_decides_the_activation(tmp_path, places):
    quick = openclip.OpenClip(places["openai"], "cpu")
    plain = tiny_openclip.write_openai(tmp_path, settings=tiny_openclip.OPENAI | {"quick_gelu": False})
    image = picture(224, 224, 0)[None]
    assert not torch.allclose(quick.images(image), openclip.OpenClip(plain, "cpu").images(image), atol=1e-3)
    assert all(tensor.dtype == torch.float32 for tensor in quick.model.parameters())


def test_opening_draws_nothing_and_shares_the_model(scorer, places):
    before = torch.get_rng_state()
    openclip.OpenClip(places["hpsv2"], "cpu", HEAD_WIDTH)
    layers(places["relu"], 64)
    assert torch.equal(torch.get_rng_state(), before)
    assert scorer("aesthetic").clip is scorer("clipscore-l14").clip
    assert scorer("hpsv2").clip is scorer("hpsv2.1", antialias=False).clip


def _broken_hpsv2(places, tmp_path, change):
    read = torch.load(places["hpsv2"])
    change(read)
    torch.save(read, tmp_path / "broken.pt")
    with pytest.raises(HarnessError) as caught:
        load_metric("hpsv2", weights=str(tmp_path / "broken.pt"))
    return str(caught.value)


@pytest.mark.parametrize(("change", "message"), [
    (lambda read: read["state_dict"].pop("ln_final.bias"), "lacks 1 tensor: ln_final.bias; it is a checkpoint"),
    (lambda read: read["state_dict"].update(a=torch.zeros(1), b=torch.zeros(1)), "beside.* 2 tensors: a, b;"),
    (lambda read: read["state_dict"].pop("visual.conv1.weight"), "visual.conv1.weight.* is missing"),
    (lambda read: read["state_dict"].update({"ln_final.bias": torch.zeros(3)}), "not of one CLIP.*ln_final.bias"),
    (lambda read: read.pop("state_dict"), "no checkpoint in open_clip's keys.*state_dict"),
])
def test_a_checkpoint_that_does_not_fit_is_named(places, tmp_path, change, message):
    found = _broken_hpsv2(places, tmp_path, change)
    assert str(tmp_path / "broken.pt") in found


    assert re.search(message, found, re.DOTALL), found


def test_what_is_no_checkpoint_is_refused(places, tmp_path):
    (tmp_path / "text.pt").write_text("not found")
    with pytest.raises(HarnessError, match=r"text\.pt is no checkpoint"):
        load_metric("hpsv2", weights=str(tmp_path / "text.pt"))
    with pytest.raises(HarnessError, match=f"holds no {WEIGHTS}"):
        load_metric("clipscore", weights=str(tmp_path))
    shutil.copytree(places["openai"], tmp_path / "a")
    config = tmp_path / "a" / openclip.CONFIG
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    with pytest.raises(HarnessError, match="interpolation of OpenAI's preprocessing is bicubic, not bilinear"):
        load_metric("clipscore", weights=str(tmp_path / "a"))
    config.unlink()
    with pytest.raises(HarnessError, match="no configuration of open_clip"):
        load_metric("clipscore", weights=str(tmp_path / "a"))
    shutil.copytree(places["pickscore"], tmp_path / "b")
    state = load_file(tmp_path / "b" / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=r"lacks 1 tensor: visual_projection\.weight"):
        load_metric("pickscore", weights=str(tmp_path / "b"), processor=str(places["processor"]))
    with pytest.raises(HarnessError, match="transformers layout"):
        load_metric("pickscore", weights=str(places["pickscore"]), processor=str(tmp_path))


def test_layers_that_do_not_fit_are_refused(places, tmp_path):
    with pytest.raises(HarnessError, match=r"that fit: .*size mismatch"):
        layers(places["linear"], 32)
    for name, change in {
        "places": lambda state: state.update({"layers.9.weight": torch.zeros(1)}),
        "Missing": lambda state: state.pop("layers.7.bias"),
        "gives 2 values": lambda state: state.update({
            "layers.7.weight": torch.zeros(2, 16), "layers.7.bias": torch.zeros(2)
        }),
    }.items():
        state = torch.load(places["linear"])
        change(state)
        torch.save(state, tmp_path / "layers.pth")
        with pytest.raises(HarnessError, match=name):
            layers(tmp_path / "layers.pth", 64)


# ---- identity ----


def test_the_digest_knows_the_preprocessing_and_not_the_place(places, tmp_path, scorer):
    one = scorer("hpsv2")
    assert metric_digest("hpsv2", one) != metric_digest("hpsv2", scorer("hpsv2", antialias=False))
    assert metric_identity("hpsv2", one)["parameters"] == {"antialias": True}
    shutil.copy(places["hpsv2"], tmp_path / "elsewhere.pt")
    other = registry.build("metric", "hpsv2", {"weights": str(tmp_path / "elsewhere.pt")})
    assert metric_digest("hpsv2", one) == metric_digest("hpsv2", other)
    assert other.trained
    assert not one.trained
    for name in ("pickscore", "clipscore", "aesthetic"):
        metric = scorer(name)
        assert not metric.trained
        assert set(metric_identity(name, metric)["content"]) == set(metric.artifacts())


@pytest.mark.parametrize("name", SCORERS)
def test_names_and_what_is_missing(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    metric = registry.build("metric", name, {})
    assert metric.name == name
    assert metric.missing()
    assert metric.higher_is_better
    with pytest.raises(HarnessError, match="not open"):
        _ = metric.clip


def test_the_lowest_are_a_matter_of_the_table():
    metric = registry.build("metric", "clipscore-b16-lowest", {})
    assert (metric.aggregation, metric.lowest, metric.weights) == ("mean_of_lowest", 1000, "clip-b-16")
    with pytest.raises(HarnessError, match="lowest must be at least 1"):
        registry.build("metric", "clipscore-b16-lowest", {"lowest": 0})
