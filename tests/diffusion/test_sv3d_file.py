"""The official file of SV3D-U as a folder of the library, against the official code (tests/vectors/sv3d).

Networks: 1e-5 relative to the norm of the tensor; both sides compute in float32 and differ in the order of operations
(they came within 1.3e-6 when the vectors were made).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from harness import weights
from harness.diffusion import sv3d_file, sv3d_names
from harness.diffusion.folders import open_network
from harness.diffusion.sv3d_clip import clip_pixels
from harness.diffusion.sv3d_names import as_weight
from harness.diffusion.sv3d_unet import as_trained
from harness.errors import HarnessError
from tests.vectors.sv3d import inputs, tiny_file

CLOSE = 1e-5
UNET = "model.diffusion_model."
OFFICIAL = load_file(tiny_file.HERE / "outputs.safetensors")


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file.write(tmp_path_factory.mktemp("file") / "sv3d_u.safetensors")


@pytest.fixture(scope="module")
def folder(file: Path) -> Path:
    sv3d_file.convert(file, file.parent / "converted")
    return file.parent / "converted"


@torch.no_grad()
def test_the_unet_predicts_what_the_official_one_does(folder: Path) -> None:
    unet = open_network(UNetSpatioTemporalConditionModel, folder / "unet")
    given = {
        "timestep": inputs.timesteps(), "encoder_hidden_states": inputs.context(),
        "added_time_ids": inputs.augmentation()[:, None],
    }
    untouched = unet(inputs.unet_sample(), **given).sample
    assert distance(as_trained(unet)(inputs.unet_sample(), **given).sample, OFFICIAL["unet"]) < CLOSE
    # The library's own epsilons are seen even here, where activations vary by about one.
    assert distance(untouched, OFFICIAL["unet"]) > CLOSE


@torch.no_grad()
def test_the_autoencoder_encodes_and_decodes_as_the_official_ones(folder: Path) -> None:
    vae = open_network(AutoencoderKL, folder / "vae")
    assert distance(vae.encode(inputs.picture()).latent_dist.mode(), OFFICIAL["encoded"]) < CLOSE
    assert distance(vae.decode(inputs.latents().flatten(0, 1)).sample, OFFICIAL["decoded"]) < CLOSE


@torch.no_grad()
def test_clip_sees_what_the_official_one_does(folder: Path) -> None:
    encoder = open_network(CLIPVisionModelWithProjection, folder / "image_encoder")
    seen = clip_pixels((inputs.picture() + 1) / 2, encoder.config.image_size)
    assert distance(encoder(seen).image_embeds[:, None], OFFICIAL["clip"]) < CLOSE


@torch.no_grad()
def test_a_temporal_decoder_is_converted_as_one(tmp_path: Path) -> None:
    sv3d_file.convert(tiny_file.write(tmp_path / "temporal.safetensors", "tiny-temporal"), tmp_path / "converted")
    assert json.loads((tmp_path / "converted" / "model_index.json").read_text())["vae"] == [
        "diffusers", "AutoencoderKLTemporalDecoder"
    ]
    vae = open_network(AutoencoderKLTemporalDecoder, tmp_path / "converted" / "vae")
    assert distance(vae.encode(inputs.picture()).latent_dist.mode(), OFFICIAL["encoded"]) < CLOSE
    decoded = vae.decode(inputs.latents().flatten(0, 1), num_frames=inputs.FRAMES).sample
    assert distance(decoded, OFFICIAL["decoded-temporal"]) < CLOSE


def test_every_key_of_the_published_file_has_its_place() -> None:
    shapes = tiny_file.layout("sv3d_u")
    unet, vae, clip = sv3d_file.parts(shapes, Path("sv3d_u.safetensors"))
    assert unet.network.config["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet.network.config["num_attention_heads"] == [5, 10, 20, 20]
    assert unet.network.config["cross_attention_dim"] == 1024
    assert vae.network.config["block_out_channels"] == [128, 256, 512, 512]
    assert (clip.network.config.num_attention_heads, clip.network.config.image_size) == (16, 224)
    unused = {key for key in shapes if key.startswith(sv3d_file.NOT_USED)}
    used = {source for part in (unet, vae, clip) for source in part.sources.values()}
    assert unused | used == shapes.keys()
    assert not unused & used
    assert not any(key.startswith(UNET) for key in unused)


def test_a_weight_is_used_once(folder: Path, file: Path) -> None:
    given = load_file(file)
    for part in sv3d_file.parts({key: list(value.shape) for key, value in given.items()}, file):
        found = load_file(folder / part.folder / part.weights)
        assert found.keys() == part.sources.keys()
        assert sum(value.numel() for value in found.values()) == sum(
            given[key].numel() for key in set(part.sources.values())
        )


def test_queries_keys_and_values_are_told_apart() -> None:
    stacked = torch.arange(6.0).reshape(6, 1)
    for place, kind in enumerate("qkv"):
        ours = as_weight(f"vision_model.encoder.layers.0.self_attn.{kind}_proj.weight", stacked)
        assert ours.flatten().tolist() == [2 * place, 2 * place + 1]


def test_a_broken_conversion_is_done_again_and_random_weights_stay_marked(file: Path, tmp_path: Path) -> None:
    half = tmp_path / "converted" / "unet"
    half.mkdir(parents=True)
    (half / "leftover").touch()
    (tmp_path / "mine.safetensors").symlink_to(file)
    (tmp_path / "mine.safetensors.json").write_text('{"trained": false}')
    sv3d_file.convert(tmp_path / "mine.safetensors", tmp_path / "converted")
    assert sorted(path.name for path in half.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert len({path.stat().st_mode for path in half.iterdir()}) == 1  # weights are read by whoever reads the other
    assert not weights.is_trained(tmp_path / "converted")
    assert sorted(path.name for path in (tmp_path / "converted").iterdir()) == [
        "feature_extractor", "image_encoder", "model_index.json", "scheduler", "unet", "vae"
    ]


def test_neither_the_name_nor_the_libraries_have_a_part_in_the_digest(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.safetensors").symlink_to(file)
    sv3d_file.convert(tmp_path / "other.safetensors", tmp_path / "converted")
    assert weights.content_digest(tmp_path / "converted") == weights.content_digest(folder)
    for path in weights.files_of(folder):
        assert path.suffix != ".json" or "version" not in path.read_text(), path


def test_a_header_may_begin_as_a_pickle_does_and_a_disk_without_room_is_told_before_anything_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    longer = length + (0x80 - length) % 256  # spaces may follow the header, whose length comes first
    padded = tmp_path / "padded.safetensors"
    padded.write_bytes(longer.to_bytes(8, "little") + data[8:8 + length].ljust(longer) + data[8 + length:])
    assert padded.read_bytes()[:1] == b"\x80"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(HarnessError, match=r"converted: [\d,]+ bytes are still to be written, .* 10 free"):
        sv3d_file.convert(padded, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


Change = Callable[[dict[str, list[int]]], None]


def _without(*prefixes: str) -> Change:
    def change(shapes: dict[str, list[int]]) -> None:
        for key in [key for key in shapes if key.startswith(prefixes)]:
            del shapes[key]

    return change


def _with(key: str, *shape: int) -> Change:
    return lambda shapes: shapes.update({key: list(shape)})


WRONG: dict[str, tuple[Change, str]] = {
    "an SV3D-p": (_with(f"{UNET}label_emb.0.0.weight", 256, 1280), r"is SV3D-P \(told elevations and azimuths\)"),
    "an SVD": (_with(f"{UNET}label_emb.0.0.weight", 256, 768), r"is Stable Video Diffusion \(told frames"),
    "no label": (_without(f"{UNET}label_emb."), "not known here: its label embedding is 0 wide"),
    "a folder's own": (_without("model."), "no keys that begin with 'model.diffusion_model.'.*'conditioner"),
    "no decoder": (_without("first_stage_model."), "lacks the key 'first_stage_model.decoder.conv_in.weight'"),
    "a missing key": (_without(f"{UNET}middle_block.1.time_mixer.mix_factor"), r"lacks 1 keys \(first 'model.*mix_f"),
    "one more": (_with(f"{UNET}middle_block.3.weight", 3), r"has besides 1 keys \(first '.*middle_block.3.weight'"),
    "a flat label": (_with(f"{UNET}label_emb.0.0.weight", 256), "weights do not fit together"),
    "no positions": (_with(f"{sv3d_names.CLIP}positional_embedding", 0, 160), "weights do not fit together"),
    "odd heads": (_with(f"{sv3d_names.CLIP}conv1.weight", 161, 3, 4, 4), "weights do not fit together"),
    "flat queries": (_with(f"{sv3d_names.CLIP}transformer.resblocks.0.attn.in_proj_bias"), "do not fit together"),
    "another shape": (_with(f"{UNET}out.2.bias", 5), r"'.*out.2.bias' has the shape \[5\].*wants \[4\] as 'conv_out.b"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_file_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    change, said = WRONG[name]
    shapes = tiny_file.layout("tiny")
    change(shapes)
    with pytest.raises(HarnessError, match=rf"(?s)^{tmp_path}/x.safetensors.*{said}"):
        sv3d_file.parts(shapes, tmp_path / "x.safetensors")


def test_a_still_images_model_is_told_apart(tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in tiny_file.layout("tiny").items() if ".time_" not in key}
    with pytest.raises(HarnessError, match="a model of still images"):
        sv3d_file.parts(shapes, tmp_path)


def test_pickled_cut_and_missing_files_are_refused_and_nothing_is_written(file: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "pickled.safetensors")
    shutil.copy(file, tmp_path / "named.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-4])
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    whole = r"is no whole safetensors file \(.*\): get it again from where it came"
    for name, said in {
        "pickled.safetensors": "is a pickle", "named.ckpt": "is a pickle", "cut.safetensors": whole,
        "text.safetensors": whole, "none.safetensors": "No such file",
        "other.safetensors": "no keys that begin with",
    }.items():
        with pytest.raises(HarnessError, match=said):
            sv3d_file.convert(tmp_path / name, tmp_path / "converted")
        assert not (tmp_path / "converted").exists()

