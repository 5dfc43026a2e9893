"""VQAScore by CLIP-FlanT5: against its authors' code (tests/vectors/vqascore), as a judge, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import harness
from harness import registry
from harness.errors import HarnessError
from harness.metrics.load import load_metric
from harness.metrics.vqascore import Network, _renamed, configured, read, squared
from harness.prompts import Prompt
from tests.metrics import tiny_clip_flant5 as tiny
from tests.metrics.joint import slope_error
from tests.metrics.tiny_openclip import PROMPTS, SIZES, picture, sha256
from tests.toy import Toy, numbers
from tests.vectors.vqascore.make import LONG, OTHER

NAME = "vqascore-clip-flant5-xxl"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "vqascore" / "outputs.json").read_text())
ROWS = [Prompt(str(i), text) for i, text in enumerate(PROMPTS)]
# float32 sums in another order move log-probabilities of about -7 by 1e-5 at most.
TOLERANCE = {"rel": 2e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqascore")
    vision = tiny.write_vision(folder / "vision")
    return {"weights": str(tiny.write(folder / "weights", vision)), "vision": str(vision),
            "tokenizer": str(tiny.write_tokenizer(folder / "tokenizer"))}


@pytest.fixture(scope="module")
def metric(folders):
    return load_metric(NAME, dtype="float32", **folders)


def shown(k: int, size: tuple[int, int] | None = None) -> np.ndarray:
    return picture(*(size or SIZES[k]), k)[None, None]


def test_the_checkpoint_is_that_of_the_vectors():
    assert sha256(tiny.tensors(tiny.shapes(tiny.T5, tiny.VISION), 0)) == VECTORS["checkpoint"]


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_the_probabilities_are_the_official_ones(metric, k):
    before, after = metric.model.asked(metric.question.format(PROMPTS[k]))
    assert [*before.tolist(), -200, *after.tolist()] == VECTORS["ids"][k]
    means = metric.model.pixels(shown(k)[:, 0])[0].mean((1, 2)).tolist()
    assert means == pytest.approx(VECTORS["pixels"][k], abs=1e-6)
    assert metric.score(shown(k), [ROWS[k]]).values[0] == pytest.approx(VECTORS["scores"][k], **TOLERANCE)
    assert metric.score(shown(k), [ROWS[0]]).values[0] == pytest.approx(VECTORS["same prompt"][k], **TOLERANCE)


def test_other_templates_and_answers_of_several_lengths(folders):
    metric = load_metric(
        NAME, dtype="float32", question=OTHER["question_template"], answer=OTHER["answer_template"], **folders)
    alone = [metric.score(shown(k), [ROWS[k]]).values[0] for k in range(len(SIZES))]
    assert alone == pytest.approx(VECTORS["other templates"], **TOLERANCE)
    images = np.concatenate([shown(k, (70, 50)) for k in range(2)])
    apart = [metric.score(images[k : k + 1], ROWS[k : k + 1]).values[0] for k in range(2)]
    assert metric.score(images, ROWS[:2]).values == pytest.approx(apart, **TOLERANCE)


def test_a_question_is_cut_where_the_official_code_cuts_it(metric):
    # Of 2048 tokens float32 leaves less: in float64 the value lies between both, 4e-5 and 2e-5 away.
    assert metric.score(shown(0), [LONG]).values[0] == pytest.approx(VECTORS["long"], rel=2e-4)
    assert sum(map(len, metric.model.asked(LONG))) == 2047  # the image is one more


def test_rows_that_no_token_uses_have_no_part(metric):
    assert metric.model.tokens == VECTORS["vocabulary"] == len(tiny.PIECES)
    assert metric.model.network.t5.lm_head.weight.shape[0] == len(tiny.PIECES) + tiny.UNUSED


def test_a_batch_is_its_rows(metric):
    images = np.concatenate([shown(k, (60, 48)) for k in range(20)])
    prompts = [ROWS[k % 6] for k in range(20)]
    together = metric.score(images, prompts)
    alone = [metric.score(images[k : k + 1], prompts[k : k + 1]).values[0] for k in (0, 2, 15, 16, 19)]
    assert together.values.dtype == np.float64
    assert together.values[[0, 2, 15, 16, 19]] == pytest.approx(alone, **TOLERANCE)
    assert len(together.details) == 20
    assert len(metric.score(images[:0], []).values) == 0


def test_the_placeholder_in_a_prompt_is_text(metric):
    assert 0 < metric.score(shown(2), ["an <image> of {} and {0}"]).values[0] < 1


def test_every_tensor_is_the_files(metric, folders):
    state, network = read(Path(folders["weights"])), metric.model.network
    loaded = network.state_dict()
    for key, tensor in state.items():
        torch.testing.assert_close(loaded[_renamed(key)], tensor, rtol=0, atol=0)
    assert len(loaded) == len(state)
    assert not torch.equal(network.t5.lm_head.weight, network.t5.shared.weight)
    assert network.t5.encoder.embed_tokens.weight is network.t5.shared.weight


def test_safetensors_in_one_file_are_the_same(folders, metric, tmp_path):
    state = read(Path(folders["weights"]))
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):  # as transformers saves them
        del state[key]
    save_file(state, tmp_path / "model.safetensors")
    shutil.copy(Path(folders["weights"], "config.json"), tmp_path)
    other = load_metric(NAME, dtype="float32", **folders | {"weights": str(tmp_path)})
    assert other.score(shown(0), ROWS[:1]).values == pytest.approx(metric.score(shown(0), ROWS[:1]).values, rel=1e-6)


def test_a_tower_that_the_model_lacks_is_clips_own(folders, metric, tmp_path):
    state = {key: tensor for key, tensor in read(Path(folders["weights"])).items() if not key.startswith("vision_")}
    shutil.copy(Path(folders["weights"], "config.json"), tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    other = load_metric(NAME, dtype="float32", **folders | {"weights": str(tmp_path)})
    own = read(Path(folders["vision"]))["vision_model.post_layernorm.bias"]
    assert torch.equal(other.model.network.vision.post_layernorm.bias, own)
    assert other.score(shown(0), ROWS[:1]).values[0] != pytest.approx(VECTORS["scores"][0], rel=1e-3)


def test_bfloat16_is_near(folders):
    metric = load_metric(NAME, **folders)
    assert metric.model.network.t5.lm_head.weight.dtype == torch.bfloat16
    values = [metric.score(shown(k), [ROWS[k]]).values[0] for k in (0, 2)]
    assert values == pytest.approx([VECTORS["scores"][k] for k in (0, 2)], rel=0.1)  # 8 bits, log-probabilities of -7
    x = (torch.from_numpy(shown(0, (56, 56))).float() / 255).requires_grad_()
    metric.differentiable(x, ROWS[:1]).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0


def test_differentiable_agrees_and_its_gradient_is_the_slope(metric):
    images = np.concatenate([shown(0, (56, 56)), shown(2, (56, 56))])
    x = torch.from_numpy(images).float() / 255
    found = metric.differentiable(x, ROWS[:2]).tolist()
    assert found == pytest.approx(metric.score(images, ROWS[:2]).values, **TOLERANCE)
    assert slope_error(metric, np.concatenate([shown(0, (40, 70)), shown(3, (40, 70))]), ROWS[:2], 0.02) < 0.02


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_differentiable_is_near_where_a_resize_rounds(metric, k):
    x = torch.from_numpy(shown(k)).float() / 255
    assert metric.differentiable(x, [ROWS[k]]).item() == pytest.approx(VECTORS["scores"][k], rel=0.02)


def test_a_square_is_padded_before_and_behind():
    images = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 4, 3)
    colour = torch.tensor([122, 116, 104], dtype=torch.uint8)
    square = squared(images, colour)
    assert square.shape == (1, 4, 4, 3)
    assert torch.equal(square[0, 1], images[0, 0])
    assert all(torch.equal(square[0, row, 0], colour) for row in (0, 2, 3))


def test_noise_diffusion_takes_it_as_judge(metric):
    stage = {"noise_diffusion": {"rounds": 2, "candidates": 4}}
    method = harness.load_method(noise=stage, sampler={"name": "ddim", "steps": 3}, judge=metric)
    result = method(Toy(lambda x, t, n: torch.tanh(x * (1 + n))), numbers(0.5, 2.0))
    for record in result.records:
        assert len(record["scores"]) == 3
        assert all(0 < score < 1 for score in record["scores"])
        assert len(set(record["scores"])) > 1


def test_the_official_sizes(tmp_path):
    for name, settings in (("model", tiny.config("", tiny.XXL)), ("vision", {"model_type": "clip", "vision_config": {
            **tiny.L336, "hidden_act": "quick_gelu"}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        network = Network(*configured(tmp_path / "model", tmp_path / "vision"))
    wanted = {_renamed(key): shape for key, shape in tiny.shapes(tiny.XXL, tiny.L336).items()}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == wanted
    assert network.vision.config.hidden_act == "quick_gelu"
    assert not network.t5.config.scale_decoder_outputs


def changed(folders, place: Path, config: dict | None = None, **change) -> dict[str, str]:
    """The model with tensors and settings changed; None takes one away."""
    place.mkdir()
    state = read(Path(folders["weights"])) | change
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, place / "pytorch_model.bin")
    (place / "config.json").write_text(json.dumps(tiny.config(folders["vision"]) | (config or {})))
    return folders | {"weights": str(place)}


TABLE = tiny.tensors({"shared.weight": (tiny.T5["vocab_size"], tiny.T5["d_model"])}, 7)["shared.weight"]


@pytest.mark.parametrize(("change", "message"), [
    ({"lm_head.weight": None}, "lacks 1 tensor: t5.lm_head.weight"),
    ({"encoder.embed_tokens.weight": TABLE}, "encoder.embed_tokens.weight is not shared.weight"),
    (dict.fromkeys(["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
                   TABLE), "output head is one of its own"),
    ({"vision_tower.vision_tower.vision_model.pre_layrnorm.bias": None}, "lacks 1 tensor: vision.pre_layrnorm.bias"),
    ({"mm_projector.4.bias": TABLE}, "holds, .*1 tensor: projector.4.bias"),
    ({"mm_projector.0.bias": TABLE}, "not of one CLIP-FlanT5"),
    ({"config": {"tie_word_embeddings": True}}, "tie_word_embeddings of CLIP-FlanT5 is False, not True"),
    ({"config": {"mm_vision_select_layer": -1}}, "mm_vision_select_layer of CLIP-FlanT5 is -2, not -1"),
])
def test_a_model_that_does_not_fit_is_refused(folders, tmp_path, change, message):
    with pytest.raises(HarnessError, match=message):
        load_metric(NAME, dtype="float32", **changed(folders, tmp_path / "other", **change))


def test_what_is_not_there_is_said(folders, tmp_path):
    with pytest.raises(HarnessError, match=NAME):
        load_metric(NAME, weights=str(tmp_path / "nowhere"))
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    shutil.copy(Path(folders["weights"], "config.json"), tmp_path)
    with pytest.raises(HarnessError, match=r"model.safetensors or its parts cannot be opened"):
        load_metric(NAME, **folders | {"weights": str(tmp_path)})
    with pytest.raises(HarnessError, match=r"holds no tokenizer.json"):
        load_metric(NAME, **folders | {"tokenizer": folders["vision"]})
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    with pytest.raises(HarnessError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        load_metric(NAME, **folders | {"weights": str(tmp_path)})
    words = Path(shutil.copytree(folders["tokenizer"], tmp_path / "words")) / "tokenizer.json"
    more = json.loads(words.read_text())
    more["model"]["vocab"] += [[f"piece{i}", -9.0] for i in range(tiny.UNUSED + 1)]
    words.write_text(json.dumps(more))
    with pytest.raises(HarnessError, match="expected the tokenizer of its Flan-T5"):
        load_metric(NAME, **folders | {"tokenizer": str(words.parent)})


@pytest.mark.parametrize("template", ["Is it so?", "{} and {}", "{thing}", "{"])
def test_templates_are_checked(template):
    with pytest.raises(HarnessError, match="question"):
        registry.build("metric", NAME, {"question": template})


def test_names_and_marks(metric):
    assert metric.trained is False
    smaller = registry.build("metric", "vqascore-clip-flant5-xl", {})
    assert smaller.name == "vqascore-clip-flant5-xl"
    assert smaller.artifacts()["weights"] == "clip-flant5-xl"
    assert smaller.artifacts()["tokenizer"] == "flan-t5-xl-tokenizer"
