"""`harness fetch` of SV3D-U: from a Hub or a file of one's own, converted once, found by its name."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from harness import artifacts, fetch, weights
from harness.errors import HarnessError, Lacking
from harness.store import Store
from tests.command import harness
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


def test_the_published_file_is_fetched_verified_converted_and_found(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = file.read_bytes()
    entry = artifacts.catalogue()["sv3d-u"]
    assert len(entry.files[0].sha256 or "") == 64
    own = entry.files[0].model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    monkeypatch.setitem(artifacts.catalogue(), "sv3d-u", entry.model_copy(update={"files": (own,)}))
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
        code, out, _ = harness(capsys, "fetch", "sv3d-u")
        assert out == f"sv3d-u: is here already, in {folder}\n"
        assert server.statuses(URL) == [403, 200]
    assert weights.resolve("sv3d-u") == folder.resolve()
    assert {path.parent.name for path in weights.files_of(folder)} == {
        "sv3d-u", "unet", "vae", "image_encoder", "scheduler"
    }
    assert any(line.startswith("here  weights  sv3d-u") for line in fetch.listing())


def test_a_file_of_ones_own_is_converted_by_its_name(
    file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HarnessError, match=rf"`harness fetch {file}` converts .* 'weights: mine' then finds it"):
        weights.resolve(str(file))
    code, out, _ = harness(capsys, "fetch", str(file))
    assert (code, weights.resolve("mine")) == (0, (home / "mine").resolve())
    source = json.loads((home / "mine" / "model_index.json").read_text())["source"]
    assert source == {"file": "mine.safetensors", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    code, out, _ = harness(capsys, "fetch", str(file))
    assert (code, out) == (0, f"{file}: is here already, in {home / 'mine'}\n")
    # Another file of the same name is no SV3D: refused, and the folder of the first is still whole.
    other = tmp_path / "other" / "mine.safetensors"
    other.parent.mkdir()
    save_file({"x": tiny_file.tensor("x", [1])}, other)
    code, _, err = harness(capsys, "fetch", str(other))
    assert code == 1
    assert "expected sv3d_u.safetensors" in " ".join(err.split())
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
    code, _, err = harness(
        capsys, "run", str(tmp_path / "orbits.yaml"), "--workers", "0", "--results", str(tmp_path / "runs")
    )
    assert code == 0, err
    store = Store(tmp_path / "runs" / "orbits")
    (part,) = store.parts("images")
    (row,), (clip,) = store.read_images(part)
    assert row["error"] is None
    assert clip is not None
    assert (clip.shape, clip.std() > 1) == ((21, 16, 16, 3), True)


@pytest.mark.parametrize(("name", "said"), [
    ("nowhere.safetensors", "cut or damaged"), ("two words.safetensors", "no spaces"),
])
def test_no_such_file(name: str, said: str, home: Path, tmp_path: Path) -> None:
    ((_, failure),) = fetch.fetch([str(tmp_path / name)])
    assert said in str(failure)
    assert not (home / Path(name).stem).exists()
