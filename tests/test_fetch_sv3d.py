"""`harness fetch` of SV3D-U: from a Hub or a file of one's own, converted once, found by its name."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from harness import artifacts, fetch, fetch_sv3d, weights
from harness.diffusion import sv3d_file
from harness.errors import HarnessError, Lacking
from harness.files import write_atomic
from tests.command import generated, harness
from tests.loopback import Page, empty_home, serving_as_the_hub
from tests.vectors.sv3d import tiny_file

FILE, URL = "sv3d_u.safetensors", "/stabilityai/sv3d/resolve/main/sv3d_u.safetensors"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file.write(tmp_path_factory.mktemp("given") / "mine.safetensors")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    empty_home(tmp_path, monkeypatch)
    return tmp_path / "weights"


def publish(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue has this file's hash."""
    entry = artifacts.catalogue()["sv3d-u"]
    own = entry.files[0].model_copy(update={"sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    monkeypatch.setitem(artifacts.catalogue(), "sv3d-u", entry.model_copy(update={"files": (own,)}))


def test_the_published_file_is_fetched_verified_converted_and_found(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = file.read_bytes()
    assert len(artifacts.catalogue()["sv3d-u"].files[0].sha256 or "") == 64
    publish(file, monkeypatch)
    with pytest.raises(Lacking, match="`harness fetch sv3d-u` gets them"):
        weights.resolve("sv3d-u", fetch=False)
    with serving_as_the_hub(monkeypatch) as server:
        server.pages[URL] = Page(status=403, headers={"X-Error-Code": "GatedRepo"})
        code, _, err = harness(capsys, "fetch", "sv3d-u")
        assert code == 1
        assert "stabilityai/sv3d is gated" in err
        assert "set HF_TOKEN" in err
        server.repository("stabilityai/sv3d", {FILE: data})
        code, out, _ = harness(capsys, "fetch", "sv3d-u")
        folder = home / "sv3d-u"
        assert (code, out.splitlines()[0].partition(";")[0]) == (
            0, f"sv3d-u: fetched into {folder} and converted"
        )
        (folder / FILE).unlink()  # as the message says
        code, out, _ = harness(capsys, "fetch", "sv3d-u", "--verify")
        assert out == f"sv3d-u: is here already, in {folder}, 8 of its hashes verified\n"
        assert server.statuses(URL) == [403, 200]
    assert weights.resolve("sv3d-u") == folder.resolve()
    assert {path.parent.name for path in weights.files_of(folder)} == {
        "sv3d-u", "unet", "vae", "image_encoder", "scheduler"
    }
    assert any(line.startswith("here  weights  sv3d-u") for line in fetch.listing())
    made = folder / "unet" / "diffusion_pytorch_model.safetensors"
    made.write_bytes(made.read_bytes()[:-1] + b"x")
    code, _, err = harness(capsys, "fetch", "sv3d-u", "--verify")
    assert (code, f"{made} is damaged" in " ".join(err.split())) == (1, True)
    shutil.rmtree(folder / "unet")
    assert fetch_sv3d.here("sv3d-u") is None


def test_the_hub_s_own_cache_is_looked_into(
    file: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = home.parent / "hub" / "models--stabilityai--sv3d"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    (cache / "snapshots" / "c0ffee").mkdir(parents=True)
    (cache / "snapshots" / "c0ffee" / FILE).symlink_to(file)
    monkeypatch.setattr(sv3d_file, "convert", lambda path, folder: write_atomic(folder / "model_index.json", b"{}"))
    with serving_as_the_hub(monkeypatch) as server:
        code, _, err = harness(capsys, "fetch", "sv3d-u")
        assert (code, "is not the published sv3d_u.safetensors" in " ".join(err.split())) == (1, True), err
        assert not (home / "sv3d-u" / "model_index.json").exists()
        publish(file, monkeypatch)
        code, out, err = harness(capsys, "fetch", "sv3d-u")
        assert (code, server.noted) == (0, []), err
    assert out.startswith(f"sv3d-u: fetched into {home / 'sv3d-u'} and converted; {file.resolve()} is not needed")


@pytest.mark.parametrize(("name", "said"), [
    ("clip-b-32", "'clip-b-32' is the name of something published"),
    ("edm2-img512-xxl", "'edm2-img512-xxl' is the name of something published"),
    ("edm2-img512-s-2147483-0.190", "'edm2-img512-s-2147483-0.190' is the name of something published"),
    ("pipeline", "pipeline holds another model (model_index.json)"),
    ("network", "network holds another model (config.json)"),
])
def test_another_model_s_folder_is_left_alone(
    name: str, said: str, file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kept in (home / "pipeline" / "model_index.json", home / "network" / "config.json"):
        (kept.parent / "unet").mkdir(parents=True)
        kept.write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    before = sorted(home.rglob("*"))
    shutil.copy(file, tmp_path / f"{name}.safetensors")
    code, _, err = harness(capsys, "fetch", str(tmp_path / f"{name}.safetensors"))
    assert code == 1
    assert said in "".join(err.split("\n"))
    assert [path for path in sorted(home.rglob("*")) if ".locks" not in path.parts] == before


def test_a_file_of_ones_own_is_converted_by_its_name(
    file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = rf"`harness fetch {file}` converts .* 'weights: mine' then finds it; other models: a folder in the diffusers"
    with pytest.raises(HarnessError, match=told):
        weights.resolve(str(file))
    code, out, _ = harness(capsys, "fetch", str(file))
    assert (code, weights.resolve("mine")) == (0, (home / "mine").resolve())
    source = json.loads((home / "mine" / "model_index.json").read_text())["source"]
    assert source == {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    code, out, _ = harness(capsys, "fetch", str(file))
    assert (code, out) == (0, f"{file}: is here already, in {home / 'mine'}\n")
    # Another file of the same name is refused, and the folder of the first is still whole.
    other = tmp_path / "other" / "mine.safetensors"
    other.parent.mkdir()
    save_file({"x": tiny_file.tensor("x", [1])}, other)
    code, _, err = harness(capsys, "fetch", str(other))
    assert code == 1
    assert f"mine holds another model (model_index.json) than one made of {other}" in " ".join(err.split())
    assert weights.resolve("mine") == (home / "mine").resolve()


def test_a_converted_file_generates(
    file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "view.png")
    (tmp_path / "objects.jsonl").write_text(json.dumps({"id": "a", "prompt": "an object", "image": "view.png"}) + "\n")
    (tmp_path / "orbits.yaml").write_text(yaml.safe_dump({
        "name": "orbits", "models": {"tiny": {"family": "sv3d", "weights": "mine", "size": 16, "batch": 1}},
        "prompts": {"objects": {"set": "objects", "path": "objects.jsonl"}},
        "sampler": {"name": "euler", "steps": 1}, "methods": {"plain": {}},
    }))
    assert harness(capsys, "fetch", str(file))[0] == 0
    (row,), (clip,) = generated(capsys, tmp_path / "orbits.yaml")
    assert row["error"] is None
    assert clip is not None
    assert (clip.shape, clip.std() > 1) == ((21, 16, 16, 3), True)


@pytest.mark.parametrize(("name", "said"), [
    ("nowhere.safetensors", "no such file"), ("two words.safetensors", "no spaces"),
])
def test_no_such_file(name: str, said: str, home: Path, tmp_path: Path) -> None:
    ((_, failure),) = fetch.fetch([str(tmp_path / name)])
    assert said in str(failure)
    assert not (home / Path(name).stem).exists()
