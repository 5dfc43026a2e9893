"""`harness fetch` of EDM2's networks from a server on this machine: downloaded, converted once, found by name."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness import download, fetch_edm2, weights
from harness.artifacts import catalogue
from harness.errors import HarnessError, Lacking
from harness.metrics.reference import find_reference
from tests import edm2_pickles
from tests.command import generated, harness
from tests.edm2_pickles import NETWORKS, EasyDict, content, dumps
from tests.loopback import Page, Server, empty_home, serving_as_the_hub
from tests.test_edm2_pickle import Calls, ran

MAIN, GUIDE = "edm2-img512-xxl-0939524-0.015", "edm2-img512-xs-uncond-2147483-0.015"
VAE = "stabilityai/sd-vae-ft-mse"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for weights, and no Hub cache."""
    empty_home(tmp_path, monkeypatch)
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def pickles() -> dict[str, bytes]:
    """The bytes of two published networks, tiny ones in their place."""
    return {name: dumps(content(NETWORKS[kind])) for name, kind in ((MAIN, "labels"), (GUIDE, "no-labels"))}


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch, pickles: dict[str, bytes]) -> Iterator[Server]:
    """A Hub with the autoencoder, which is also where the networks are published."""
    with serving_as_the_hub(monkeypatch) as server:
        server.repository(VAE, {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"vae",
                                "diffusion_pytorch_model.bin": b"pickled"})
        for name, data in pickles.items():
            server.pages[f"/edm2/{name}.pkl"] = Page(data)
        moved = fetch_edm2.published().model_copy(update={"networks": f"{server.url}/edm2"})
        monkeypatch.setattr(fetch_edm2, "published", lambda: moved)
        yield server


def test_presets_are_those_of_the_official_table() -> None:
    published = fetch_edm2.published()
    assert published.networks.startswith("https://")
    assert len(published.presets) == 36
    assert set(published.short.values()) <= set(published.presets)
    for name, networks in published.presets.items():
        assert all(fetch_edm2.is_network(each) for each in networks)
        assert len(networks) == (2 if "guid" in name or "autog" in name else 1)
    for name, (main, *guides) in published.presets.items():
        if "guid" in name:  # the guide has the EMA length of the network
            assert main.startswith(name.split("-guid")[0])
            assert guides[0] == f"edm2-img512-xs-uncond-2147483-{main[-5:]}"
    assert fetch_edm2.names_of("edm2-img512-xxl") == [MAIN, GUIDE, VAE]
    pixels = ["edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110"]
    assert fetch_edm2.names_of("edm2-img64-s-autog-fid") == pixels
    assert fetch_edm2.names_of("edm2-img512-s-2147483-0.190") == ["edm2-img512-s-2147483-0.190", VAE]
    assert fetch_edm2.names_of("edm2-img512-huge") == []


def test_a_preset_brings_its_networks_and_the_autoencoder(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Lacking, match=rf"`harness fetch {MAIN}` gets them"):
        weights.resolve(MAIN, fetch=False)
    code, out, err = harness(capsys, "fetch", "edm2-img512-xxl")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3), err
    assert lines[0].startswith(f"{MAIN}: fetched into {home / MAIN} and converted; {home / MAIN / MAIN}.pkl is not")
    assert "removing it frees 0.4 MB" in lines[0]
    assert "No hash of it is published: its own is kept in SHA256SUMS" in lines[0]
    assert lines[2] == f"{VAE}: fetched into {home / VAE}"
    assert weights.resolve(MAIN) == home / MAIN
    told = json.loads((home / GUIDE / "config.json").read_text())
    assert (told["_class_name"], told["classes"], told["vae"]) == ("EDM2Network", 0, VAE)
    assert told["source"]["sha256"] == weights.sha256_of(home / GUIDE / f"{GUIDE}.pkl")
    before, digest = len(server.noted), weights.content_digest(home / MAIN)
    (home / MAIN / f"{MAIN}.pkl").unlink()  # as was said
    assert weights.content_digest(home / MAIN) == digest
    code, out, _ = harness(capsys, "fetch", "edm2-img512-xxl", "--verify")
    assert (code, len(server.noted)) == (0, before)
    assert f"{MAIN}: is here already, in {home / MAIN}, 2 of its hashes verified" in out
    assert f"{GUIDE}: is here already, in {home / GUIDE}, 3 of its hashes verified" in out
    made = home / MAIN / "diffusion_pytorch_model.safetensors"
    made.write_bytes(made.read_bytes()[:-1] + b"x")
    code, _, err = harness(capsys, "fetch", MAIN, "--verify")
    assert code == 1
    assert "is damaged" in err


def test_a_model_block_may_name_a_network_that_is_fetched_then(server: Server, home: Path) -> None:
    assert weights.resolve(GUIDE) == home / GUIDE
    assert server.statuses(f"/edm2/{GUIDE}.pkl") == [200]
    with pytest.raises(HarnessError, match=rf"write 'weights: {MAIN}' and 'networks: \{{guide: \{{weights: {GUIDE}"):
        weights.resolve("edm2-img512-xxl")
    with pytest.raises(HarnessError, match=r"`harness fetch a\.pkl` converts one of EDM2, and 'weights: a' then"):
        weights.resolve("a.pkl")
    with pytest.raises(Lacking, match="no such folder"):
        weights.resolve("edm2-img512-xxl-0.015")


def test_a_misspelt_network_of_a_model_block_gets_the_nearest_name(home: Path, tmp_path: Path) -> None:
    with pytest.raises(Lacking, match=r"did you mean 'edm2-img512-xs-uncond-2147483-0\.025'") as caught:
        weights.resolve("edm2-img512-xs-uncod-2147483-0.025", fetch=False)
    assert "diffusers" not in str(caught.value)
    (home / "edm2-mine").mkdir(parents=True)  # a pickle of one's own that is called so
    (home / "edm2-mine" / "config.json").write_text(json.dumps({"source": {"sha256": "0"}}))
    assert weights.resolve("edm2-mine") == (home / "edm2-mine").resolve()
    with pytest.raises(HarnessError, match="transformers library, or a network that `harness fetch` converted"):
        weights.content_digest(tmp_path)


def test_a_download_that_was_cut_goes_on(
    server: Server, home: Path, pickles: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1000)
    page, whole = f"/edm2/{GUIDE}.pkl", len(pickles[GUIDE])
    server.pages[page].cuts = [10_000, 20_000]
    assert weights.resolve(GUIDE) == home / GUIDE
    assert server.sent(page) == [10_000, 20_000, whole - 30_000]


def test_a_cut_download_is_never_converted(server: Server, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = server.pages[f"/edm2/{GUIDE}.pkl"]
    page.cuts = [10_000] + [0] * 9
    code, _, err = harness(capsys, "fetch", GUIDE)
    assert code == 1
    assert "the same command resumes" in err
    assert fetch_edm2.here(GUIDE) is None
    assert not (home / GUIDE / f"{GUIDE}.pkl").exists()
    page.cuts = []
    assert harness(capsys, "fetch", GUIDE)[0] == 0
    assert fetch_edm2.here(GUIDE) == home / GUIDE


def test_a_server_that_sends_less_than_a_whole_pickle(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str], pickles: dict[str, bytes]
) -> None:
    """No size is published: what the server calls whole is, until it is opened."""
    server.pages[f"/edm2/{GUIDE}.pkl"] = Page(pickles[GUIDE][:-9000], length=False)
    code, _, err = harness(capsys, "fetch", GUIDE)
    assert code == 1
    assert "is no pickle that can be opened" in err
    assert fetch_edm2.here(GUIDE) is None
    assert not (home / GUIDE / "config.json").exists()


def test_a_malicious_pickle_that_is_served(
    server: Server, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = content(NETWORKS["no-labels"])
    made["ema"].meta["state"]["_modules"]["extra"] = Calls(ran, 1)
    server.pages[f"/edm2/{GUIDE}.pkl"] = Page(dumps(EasyDict(made)))
    code, out, err = harness(capsys, "fetch", GUIDE, VAE)
    assert code == 1
    assert f"{GUIDE}.pkl is refused: it asks for tests.test_edm2_pickle.ran" in err
    assert "nothing was run" in err
    assert out == f"{VAE}: fetched into {home / VAE}\n"  # the others are not stopped
    assert fetch_edm2.here(GUIDE) is None


def test_another_file_of_the_same_name_is_refused(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was fetched once is known by its hash, also after it was removed."""
    assert harness(capsys, "fetch", GUIDE)[0] == 0
    for path in ("config.json", f"{GUIDE}.pkl"):
        (home / GUIDE / path).unlink()
    server.pages[f"/edm2/{GUIDE}.pkl"] = Page(dumps(content(NETWORKS["no-labels"], seed=1)))
    code, _, err = harness(capsys, "fetch", GUIDE)
    assert code == 1
    assert "SHA-256" in err
    assert fetch_edm2.here(GUIDE) is None


def test_a_network_that_is_not_published(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = harness(capsys, "fetch", "edm2-img512-s-2147483-0.999")
    assert code == 1
    assert "edm2-img512-s-2147483-0.999.pkl does not exist (404" in err


def test_without_a_network_it_is_said_where_to_put_what(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = fetch_edm2.published().model_copy(update={"networks": "http://127.0.0.1:9/edm2"})
    monkeypatch.setattr(fetch_edm2, "published", lambda: moved)
    code, _, err = harness(capsys, "fetch", GUIDE)
    assert code == 1
    assert f"get http://127.0.0.1:9/edm2/{GUIDE}.pkl and put it into {home / GUIDE}" in " ".join(err.split())


def test_a_pickle_of_one_s_own(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Put where it belongs, or given by its path; one that has changed is another model."""
    edm2_pickles.write(home / GUIDE / f"{GUIDE}.pkl", "no-labels")
    code, out, err = harness(capsys, "fetch", str(home / GUIDE / f"{GUIDE}.pkl"))
    assert (code, weights.resolve(GUIDE)) == (0, home / GUIDE), err
    own = edm2_pickles.write(tmp_path / "snapshots" / "snapshot-0001-0.100.pkl", "pixels")
    code, out, _ = harness(capsys, "fetch", str(own))
    folder = home / "snapshot-0001-0.100"
    assert (code, out.split(" and ")[0]) == (0, f"{own}: fetched into {folder}")
    assert weights.resolve("snapshot-0001-0.100", fetch=False) == folder
    assert harness(capsys, "fetch", str(own))[1].startswith(f"{own}: is here already")
    first = weights.content_digest(folder)
    edm2_pickles.write(own, "labels")
    code, _, err = harness(capsys, "fetch", str(own))
    ways = "give the file another name, or move that folder away"
    assert (code, f"{folder} holds another model (config.json)" in "".join(err.split("\n"))) == (1, True), err
    assert ways in " ".join(err.split())
    assert weights.content_digest(folder) == first
    folder.rename(home / "moved-away")
    assert harness(capsys, "fetch", str(own))[0] == 0
    assert weights.content_digest(folder) != first
    for path, said in ((tmp_path / "none.pkl", "no such file"), (tmp_path / "a b.pkl", "no spaces")):
        code, _, err = harness(capsys, "fetch", str(path))
        assert (code, said in " ".join(err.split())) == (1, True), err


@pytest.mark.parametrize(("name", "said"), [
    ("clip-b-32", "'clip-b-32' is the name of something published"),
    ("edm2-img512-xxl", "'edm2-img512-xxl' is the name of something published"),
    ("edm2-img512-s-fid", "'edm2-img512-s-fid' is the name of something published"),
    ("pipeline", "holds another model (model_index.json)"),
    ("encoder", "holds another model (config.json)"),
    (GUIDE, "holds another model (config.json)"),  # a published name is for that network, which is here
])
def test_another_model_s_folder_is_left_alone(
    name: str, said: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness(capsys, "fetch", str(edm2_pickles.write(tmp_path / "own" / f"{GUIDE}.pkl", "no-labels")))[0] == 0
    for kept in (home / "pipeline" / "model_index.json", home / "encoder" / "config.json"):
        kept.parent.mkdir()
        kept.write_text('{"model_type": "clip"}')
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and ".locks" not in path.parts}
    code, _, err = harness(capsys, "fetch", str(edm2_pickles.write(tmp_path / f"{name}.pkl", "labels")))
    assert (code, said in " ".join(err.split())) == (1, True), err
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and ".locks" not in path.parts}
    assert after == before


def test_a_converted_pickle_generates(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = edm2_pickles.write(tmp_path / "mine.pkl", "pixels")
    (tmp_path / "edm2.yaml").write_text(yaml.safe_dump({
        "name": "edm2", "models": {"tiny": {"family": "edm2", "weights": "mine"}},
        "prompts": {"classes": {"set": "classes", "path": "classes.csv", "columns": {
            "id": "id", "text": "text", "class_label": "label"}}},
        "sampler": {"name": "heun", "steps": 2}, "methods": {"plain": {}},
    }))
    (tmp_path / "classes.csv").write_text("id,text,label\na,zero,0\nb,one,1\n")
    assert harness(capsys, "fetch", str(own))[0] == 0
    rows, images = generated(capsys, tmp_path / "edm2.yaml")
    assert [row["error"] for row in rows] == [None, None]
    one, other = (image for image in images if image is not None)
    assert (one.shape, one.std() > 1, (one != other).any()) == ((1, 8, 8, 3), True, True)


def test_a_conversion_that_was_stopped_leaves_no_network(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import edm2_pickle

    edm2_pickles.write(home / GUIDE / f"{GUIDE}.pkl", "no-labels")

    def full(*_: object, **__: object) -> None:
        raise edm2_pickle.SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(edm2_pickle, "save_file", full)
        code, _, err = harness(capsys, "fetch", GUIDE)
    assert code == 1
    assert "No space left on device" in err
    assert sorted(path.name for path in (home / GUIDE).iterdir()) == [f"{GUIDE}.pkl"]
    edm2_pickle.convert(home / GUIDE / f"{GUIDE}.pkl", home / GUIDE)  # what is replaced does not stay in part
    with monkeypatch.context() as patch:
        patch.setattr(edm2_pickle, "write_atomic", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            edm2_pickle.convert(home / GUIDE / f"{GUIDE}.pkl", home / GUIDE)
    assert fetch_edm2.here(GUIDE) is None
    with pytest.raises(Lacking):
        weights.resolve(GUIDE, fetch=False)
    assert weights.resolve(GUIDE) == home / GUIDE  # the same begins anew


def test_published_statistics_are_found_by_name(home: Path) -> None:
    assert catalogue()["edm2-img512-reference"].files[0].path == "img512.pkl"
    with pytest.raises(HarnessError, match="`harness fetch edm2-img512-reference`"):
        find_reference("edm2-img512-reference", "inception", "fid")
    (home / "edm2-img512-reference").mkdir(parents=True)
    (home / "edm2-img512-reference" / "img512.pkl").write_bytes(b"x")
    for extractor, metric in (("inception", "fid"), ("dinov2", "fd-dinov2-edm2")):
        assert find_reference("edm2-img512-reference", extractor, metric).name == "img512.pkl"
