"""ImageReward: against its authors' code (tests/vectors/imagereward), and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import registry
from harness.errors import HarnessError
from harness.metrics.imagereward import Network, _renamed, architecture
from harness.metrics.load import load_metric
from harness.prompts import Prompt
from tests.metrics import tiny_imagereward
from tests.metrics.joint import slope_error
from tests.metrics.tiny_openclip import PROMPTS, SIZES, picture, sha256

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "imagereward" / "outputs.json").read_text())
ROWS = [Prompt(str(i), text) for i, text in enumerate(PROMPTS)]
# float32 sums in another order: these rewards differ by some 1e-6 between machines and thread counts.
TOLERANCE = {"abs": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagereward")
    return {"weights": str(tiny_imagereward.write(folder / "weights")),
            "tokenizer": str(tiny_imagereward.write_tokenizer(folder / "tokenizer"))}


@pytest.fixture(scope="module")
def metric(folders):
    return load_metric("imagereward", **folders)


def shown(k: int, size: tuple[int, int] | None = None) -> np.ndarray:
    return picture(*(size or SIZES[k]), k)[None, None]


def test_the_checkpoint_is_that_of_the_vectors():
    assert sha256(tiny_imagereward.tensors(0)) == VECTORS["checkpoint"]


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_the_rewards_are_the_official_ones(metric, k):
    ids = metric.model.tokenizer(PROMPTS[k], truncation=True, max_length=35).input_ids
    assert ids == VECTORS["ids"][k]
    assert metric.score(shown(k), [ROWS[k]]).values[0] == pytest.approx(VECTORS["scores"][k], **TOLERANCE)
    assert metric.score(shown(k), [ROWS[0]]).values[0] == pytest.approx(VECTORS["same prompt"][k], **TOLERANCE)


def test_a_batch_is_its_rows(metric):
    images = np.concatenate([shown(k, (60, 48)) for k in range(40)])
    prompts = [ROWS[k % 6] for k in range(40)]
    together = metric.score(images, prompts)
    alone = [metric.score(images[k : k + 1], prompts[k : k + 1]).values[0] for k in (0, 7, 31, 32, 39)]
    assert together.values.dtype == np.float64
    assert together.values[[0, 7, 31, 32, 39]] == pytest.approx(alone, **TOLERANCE)
    assert len(together.details) == 40
    assert len(set(together.values.round(3))) > 30
    assert len(metric.score(images[:0], []).values) == 0


def test_the_added_tokens_follow_the_vocabulary(metric):
    first = len(tiny_imagereward.WORDS)
    assert metric.model.tokenizer("[DEC][ENC]").input_ids == [2, first, first + 1, 3]


def test_differentiable_agrees_and_its_gradient_is_the_slope(metric):
    images = np.concatenate([shown(0, (224, 224)), shown(2, (224, 224))])
    x = torch.from_numpy(images).float() / 255
    assert metric.differentiable(x, ROWS[:2]).tolist() == pytest.approx(metric.score(images, ROWS[:2]).values, abs=1e-5)
    assert slope_error(metric, np.concatenate([shown(0, (80, 60)), shown(3, (80, 60))]), ROWS[:2], 0.02) < 0.02


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_differentiable_is_near_where_a_resize_rounds(metric, k):
    x = torch.from_numpy(shown(k)).float() / 255
    assert metric.differentiable(x, [ROWS[k]]).item() == pytest.approx(VECTORS["scores"][k], abs=0.05)


def test_the_official_sizes():
    full = tiny_imagereward.shapes(1024, 24, 768, 12, 3072, 30524, 512)
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in full.items()}
        med = tiny_imagereward.MED | {
            "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 512, "num_attention_heads": 12,
            "num_hidden_layers": 12, "vocab_size": 30524,
        }
        network = Network(*architecture(state, med))
    wanted = {_renamed(key): shape for key, shape in full.items() if "_proj" not in key.split(".")[1]}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == wanted
    assert network.vision.config.image_size == 224
    assert network.vision.config.num_attention_heads == 16
    assert network.text.config.num_attention_heads == 12


def changed(folders, place: Path, **change) -> dict[str, str]:
    """The checkpoint with tensors changed; None takes one away."""
    shutil.copytree(folders["weights"], place)
    state = tiny_imagereward.tensors(0) | change
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, place / "ImageReward.pt")
    return folders | {"weights": str(place)}


@pytest.mark.parametrize(("change", "message"), [
    ({"blip.text_encoder.encoder.layer.1.crossattention.self.key.bias": None}, r"lacks 1 tensor: text.*cross"),
    ({"blip.visual_encoder.norm.weight": None}, "lacks 1 tensor: vision.post_layernorm.weight"),
    ({"mlp.layers.9.weight": torch.zeros(1)}, "holds, .*1 tensor: head.9.weight"),
    ({"blip.text_encoder.pooler.dense.bias": torch.zeros(1)}, "holds, .*text.pooler.dense.bias"),
    ({"blip.visual_encoder.cls_token": torch.zeros(3)}, "size mismatch|Error"),
    ({"blip.visual_encoder.patch_embed.proj.weight": None}, "of one ImageReward"),
])
def test_a_checkpoint_that_does_not_fit_is_refused(folders, tmp_path, change, message):
    with pytest.raises(HarnessError, match=message):
        load_metric("imagereward", **changed(folders, tmp_path / "other", **change))


def test_what_is_not_there_is_said(folders, tmp_path):
    with pytest.raises(HarnessError, match="imagereward"):
        load_metric("imagereward", weights=str(tmp_path / "nowhere"))
    (tmp_path / "ImageReward.pt").write_bytes(b"nothing of the kind")
    (tmp_path / "med_config.json").write_text("{}")
    with pytest.raises(HarnessError, match=r"ImageReward.pt and med_config.json of one ImageReward"):
        load_metric("imagereward", **folders | {"weights": str(tmp_path)})
    words = tmp_path / "words"
    tiny_imagereward.write_tokenizer(words)
    with (words / "vocab.txt").open("a") as file:
        file.write("one\nmore\n")
    with pytest.raises(HarnessError, match="expected the tokenizer of bert-base-uncased"):
        load_metric("imagereward", **folders | {"tokenizer": str(words)})


def test_rows_and_frames_are_checked(metric):
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        metric.score(shown(0), ROWS[:2])
    with pytest.raises(ValueError, match="stills"):
        metric.score(np.repeat(shown(0), 2, axis=1), ROWS[:1])
    with pytest.raises(HarnessError, match="not open"):
        registry.build("metric", "imagereward", {}).score(shown(0), ROWS[:1])


def test_random_weights_say_so(metric):
    assert metric.trained is False
