"""`harness fetch`, and what is said where weights are missing; the Hub is a server on this machine."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from safetensors.numpy import save

from harness import artifacts, download, fetch, fetch_edm2, manifest, weights
from harness.artifacts import Artifact, File
from harness.errors import HarnessError
from tests.command import harness
from tests.light import within
from tests.loopback import Page, Server, empty_home, serving_as_the_hub

ROOT = Path(__file__).parent.parent
DATA = bytes(range(256)) * 8192  # 2 MiB
CONFIG, MODEL = "open_clip_config.json", "open_clip_model.safetensors"
CLIP = "timm/vit_base_patch32_clip_224.openai"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for weights, and no Hub cache."""
    empty_home(tmp_path, monkeypatch)
    return tmp_path / "weights"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Hub with one CLIP."""
    with serving_as_the_hub(monkeypatch) as server:
        server.repository(CLIP, {CONFIG: b"{}", MODEL: DATA})
        yield server


def catalogued(monkeypatch: pytest.MonkeyPatch, name: str, *files: File) -> None:
    """One more artifact, of the repository `org/thing`."""
    entry = Artifact(title="a thing", licence="none", source="https://example.org", hub="org/thing", files=files)
    monkeypatch.setitem(artifacts.catalogue(), name, entry)


def test_the_catalogue_holds_what_scorers_name() -> None:
    for name, entry in artifacts.catalogue().items():
        assert entry.licence, name
        assert entry.source.startswith("https://"), name
        for file in entry.files:
            assert file.url or entry.hub, name
            assert file.url is None or file.url.startswith("https://"), name
    aesthetic = artifacts.catalogue()["aesthetic"].files[0]
    assert (aesthetic.size, len(aesthetic.sha256 or "")) == (3_714_759, 64)


def test_an_artifact_is_fetched_from_the_hub_and_found(
    hub: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = harness(capsys, "fetch", "clip-b-32")
    assert (code, out) == (0, f"clip-b-32: fetched into {home / 'clip-b-32'}\n")
    assert artifacts.find("clip-b-32") == home / "clip-b-32"
    assert (home / "clip-b-32" / MODEL).read_bytes() == DATA
    before = len(hub.noted)
    code, out, _ = harness(capsys, "fetch", "clip-b-32", "--verify")
    assert (code, len(hub.noted)) == (0, before)
    assert "is here already" in out
    assert "2 of its hashes verified" in out
    (home / "clip-b-32" / MODEL).write_bytes(DATA[:-1] + b"x")
    code, _, err = harness(capsys, "fetch", "clip-b-32", "--verify")
    assert code == 1
    assert f"{MODEL} is damaged" in err


def test_only_what_is_missing_is_fetched(hub: Server, home: Path) -> None:
    (home / "clip-b-32").mkdir(parents=True)
    (home / "clip-b-32" / MODEL).write_bytes(b"put there by hand")
    assert [failure for _, failure in fetch.fetch(["clip-b-32"])] == [None]
    assert [path for path, *_ in hub.noted] == [f"/{CLIP}/resolve/main/{CONFIG}"]
    assert (home / "clip-b-32" / MODEL).read_bytes() == b"put there by hand"


def test_a_file_here_of_a_wrong_size_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogued(monkeypatch, "thing", File(path="head.pth", size=3_714_759))
    (home / "thing").mkdir(parents=True)
    (home / "thing" / "head.pth").write_bytes(b"cut")
    ((_, failure),) = fetch.fetch(["thing"])
    assert "3 bytes, expected 3,714,759: remove it" in str(failure)


def test_another_file_stands_for_one_that_the_publisher_lacks(
    hub: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = "pytorch_model.bin.index.json"
    catalogued(monkeypatch, "thing", File(path="model.safetensors", others=(index, "pytorch_model.bin")))
    shards = {"pytorch_model-1.bin": b"one", "pytorch_model-2.bin": b"two"}
    content = {"weight_map": dict(zip(("a", "b", "c"), (*shards, "pytorch_model-1.bin"), strict=True))}
    hub.repository("org/thing", {index: json.dumps(content).encode(), **shards})
    hub.pages["/org/thing/resolve/main/pytorch_model-2.bin"].status = 404
    ((_, failure),) = fetch.fetch(["thing"])
    assert "pytorch_model-2.bin does not exist" in str(failure)
    assert artifacts.missing(["thing"]) is not None  # the index alone is not the model
    hub.pages["/org/thing/resolve/main/pytorch_model-2.bin"].status = 200
    assert [failure for _, failure in fetch.fetch(["thing"])] == [None]
    assert [path.name for path in artifacts.paths("thing")] == [index, *shards]
    assert artifacts.content("thing") == artifacts.content(str(home / "thing"))


def test_an_index_cannot_name_files_elsewhere(hub: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = "model.safetensors.index.json"
    catalogued(monkeypatch, "thing", File(path=index))
    hub.repository("org/thing", {index: json.dumps({"weight_map": {"a": "../../evil"}}).encode()})
    ((_, failure),) = fetch.fetch(["thing"])
    assert "no index of shards" in str(failure)
    assert sorted(path.name for path in home.iterdir()) == [".locks", "thing"]


def test_nothing_of_the_name_is_published(hub: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogued(monkeypatch, "thing", File(path="x.pt", others=("y.pt",)))
    ((_, failure),) = fetch.fetch(["thing"])
    assert f"has no x.pt nor y.pt (any more); look for it there, and put it into {home / 'thing'}" in str(failure)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", rf"/{CLIP} is gated .*accept the licence at http://127.*/{CLIP} and set HF_TOKEN"),
        (401, "GatedRepo", rf"/{CLIP} is gated"),
        (401, "RepoNotFound", rf"/{CLIP}: no such repository, or a private one: check the name, or set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses(
    status: int, code: str, message: str, hub: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (f"/{CLIP}/resolve/main/{CONFIG}", f"/api/models/{CLIP}/revision/main"):
        hub.pages[path] = Page(status=status, headers={"X-Error-Code": code})
    for name in ("clip-b-32", CLIP):
        ((_, failure),) = fetch.fetch([name])
        with pytest.raises(HarnessError, match=message):
            raise failure or AssertionError


def test_one_failure_does_not_stop_the_others(hub: Server, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = harness(capsys, "fetch", "clip-b-16", "clip-b-32", "geneval-shapes")
    assert code == 1
    assert "geneval-shapes: nothing to fetch" in out
    assert "clip-b-32: fetched" in out
    assert "open_clip_config.json (any more)" in err


def test_offline_it_is_said_where_to_put_what(
    hub: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.shutdown()
    hub.server_close()
    code, _, err = harness(capsys, "fetch", "hpsv2.1", "clip-b-32", "org/model")
    lines = err.strip().splitlines()[1:]
    assert code == 1
    assert len(lines) == 3
    assert f"get HPS_v2.1_compressed.pt from {hub.url}/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt and put it " \
           f"into {home / 'hpsv2.1'}" in lines[0]
    assert f"{CONFIG}, {MODEL} from https://huggingface.co/{CLIP} and put them into {home / 'clip-b-32'}" in lines[1]
    assert f"`hf download org/model --local-dir FOLDER`, then put that folder here as {home}/org/model" in lines[2]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in harness(capsys, "fetch", "hpsv2.1")[2]


def test_names_that_mean_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = harness(capsys, "fetch", "clip-b-32", "picksore")
    assert code == 2
    assert "did you mean 'pickscore'" in err
    assert not home.exists()
    code, out, _ = harness(capsys, "fetch")
    assert code == 0
    known = (artifacts.catalogue(), manifest.known(), fetch_edm2.listing())
    assert len(out.splitlines()) == sum(map(len, known))


def test_a_folder_that_cannot_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write_text("a file")
    code, _, err = harness(capsys, "fetch", "clip-b-32")
    assert code == 1
    assert "give another folder with HARNESS_WEIGHTS" in err


# ---- diffusion models


def shapes_sd() -> dict[str, bytes]:
    folder = weights.builtin_folder() / "shapes-sd"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


EXTRA = {  # what repositories hold beside what is opened
    "README.md": b"#", "sd_xl_base_1.0.safetensors": b"all in one file", "text_encoder_9/model.safetensors": b"other",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "unet/diffusion_pytorch_model.non_ema.safetensors": b"-",
    "unet/diffusion_pytorch_model.bin": b"pickled", "unet/model.onnx": b"onnx", "vae_1_0/config.json": b"{}",
    "safety_checker/model.safetensors": b"checker", "text_encoder/model.fp16-00001-of-00002.safetensors": b"half",
    "text_encoder/model.safetensors.index.fp16.json": b"{}",
}


def test_of_a_model_only_what_is_opened_is_fetched(hub: Server, home: Path) -> None:
    plain = shapes_sd()
    hub.repository("org/sd", {**plain, **EXTRA})
    assert weights.resolve("org/sd") == home / "org" / "sd"
    found = home / "org" / "sd"
    names = {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()}
    assert names == {*plain, "SHA256SUMS"}
    assert weights.content_digest(found) == weights.content_digest(weights.builtin_folder() / "shapes-sd")
    before = len(hub.noted)
    assert weights.resolve("org/sd") == found
    assert len(hub.noted) == before


def test_files_beside_those_that_are_opened_change_nothing(tmp_path: Path) -> None:
    for name, data in {**shapes_sd(), **EXTRA}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert weights.content_digest(tmp_path) == weights.content_digest(weights.builtin_folder() / "shapes-sd")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["unet/d.fp16.safetensors", "unet/d.non_ema.safetensors"], ["unet/d.fp16.safetensors"]),
        (["unet/d.fp16-00001-of-00002.safetensors", "unet/d.safetensors.index.fp16.json"],) * 2,
        (
            ["unet/d-00001-of-00002.safetensors", "unet/d.fp16.safetensors", "unet/d.safetensors.index.json"],
            ["unet/d-00001-of-00002.safetensors", "unet/d.safetensors.index.json"],
        ),
        (["other/d.safetensors", "d.safetensors", "notes.txt", "unet/d.bin"], []),
    ],
)
def test_which_files_of_a_part_are_opened(names: list[str], expected: list[str]) -> None:
    index = {"_class_name": "X", "unet": ["diffusers", "UNet"], "other": [None, None], "flag": True}
    assert weights.needed(names, index) == sorted(expected)


@pytest.mark.parametrize(
    ("unet", "opened"), [("UNet2DConditionModel", False), ("UNetSpatioTemporalConditionModel", True)]
)
def test_an_image_encoder_is_opened_beside_a_unet_of_clips_alone(unet: str, opened: bool, tmp_path: Path) -> None:
    """Of Stable Diffusion it is an adapter's, and has no part in digests."""
    index = {"unet": ["diffusers", unet], "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    for name, content in (("model_index.json", json.dumps(index).encode()), ("unet/d.safetensors", save({}))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    before = weights.content_digest(tmp_path)
    (tmp_path / "image_encoder").mkdir()
    (tmp_path / "image_encoder" / "model.safetensors").write_bytes(save({}))
    assert (weights.content_digest(tmp_path) != before) is opened
    assert weights.parts(index) == ["unet", "image_encoder"][: 1 + opened]


def test_a_repository_without_an_index_is_taken_whole(hub: Server, home: Path) -> None:
    hub.repository("org/lora", {"pytorch_lora_weights.safetensors": b"lora", "v1.0.safetensors": b"x", "a.bin": b""})
    assert weights.resolve("org/lora") == home / "org" / "lora"
    assert sorted(p.name for p in weights.files_of(home / "org" / "lora")) == [
        "pytorch_lora_weights.safetensors", "v1.0.safetensors",
    ]


def test_a_half_fetched_model_is_not_taken_for_one(hub: Server, home: Path) -> None:
    files = shapes_sd()
    hub.repository("org/sd", files)
    vae = next(page for path, page in hub.pages.items() if "/c0ffee/vae/" in path and path.endswith(".safetensors"))
    vae.status = 404
    with pytest.raises(HarnessError, match="404"):
        weights.resolve("org/sd")
    assert weights.hub_model("org/sd", None) is None
    vae.status = 200
    hub.noted.clear()
    assert weights.resolve("org/sd") == home / "org" / "sd"
    assert not any("unet" in path and path.endswith(".safetensors") for path, *_ in hub.noted)  # that was there


def test_a_revision_is_kept_apart(hub: Server, home: Path) -> None:
    hub.repository("org/sd", shapes_sd(), commit="abc123")
    assert weights.resolve("org/sd") == home / "org" / "sd"
    assert weights.resolve("org/sd", "abc123") == home / "org" / "sd@abc123"
    assert [failure for _, failure in fetch.fetch(["org/sd@abc123"])] == [None]
    (home / "mine").mkdir()
    assert weights.resolve("org/mine", "abc123") == home / "mine"  # put there by hand: taken as it is


def test_the_hub_s_own_cache_is_looked_into(hub: Server, home: Path) -> None:
    files = shapes_sd()
    hub.repository("org/sd", files)
    for repository, content in (("org/sd", files), (CLIP, {CONFIG: b"{}", MODEL: DATA})):
        cache = home.parent / "hub" / f"models--{repository.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("c0ffee")
        for name, data in content.items():
            (cache / "snapshots" / "c0ffee" / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / "snapshots" / "c0ffee" / name).write_bytes(data)
    snapshot = home.parent / "hub" / "models--org--sd" / "snapshots" / "c0ffee"
    assert weights.resolve("org/sd") == snapshot
    assert artifacts.find("clip-b-32") == cache / "snapshots" / "c0ffee"
    assert [failure for _, failure in fetch.fetch(["org/sd", "clip-b-32"], verify=True)] == [None, None]
    assert hub.noted == []
    (snapshot / "vae").rename(snapshot / "vae_1_0")  # another program took a part of it alone
    assert weights.resolve("org/sd") == home / "org" / "sd"


def test_a_model_of_pickled_weights_alone_is_refused(hub: Server, home: Path) -> None:
    files = {name: data for name, data in shapes_sd().items() if not name.startswith("unet/diff")}
    hub.repository("org/sd", {**files, "unet/diffusion_pytorch_model.bin": b"pickled"})
    with pytest.raises(HarnessError, match=r"no \.safetensors file for unet"):
        weights.resolve("org/sd")
    hub.repository("org/old", {"pytorch_model.bin": b"pickled"})
    with pytest.raises(HarnessError, match=r"no \.safetensors file"):
        weights.resolve("org/old")
    assert not (home / "org").exists()


@pytest.mark.parametrize("name", ["../evil", "org/..", "org/.evil", "/org/evil", "org/evil@../../../x", "~/evil"])
def test_a_name_cannot_lead_elsewhere(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = harness(capsys, "fetch", name)
    assert code in (1, 2)
    assert "can be fetched" in err or "below its folder" in err
    with pytest.raises(HarnessError, match=r"no such folder|below its folder"):
        weights.resolve(*name.split("@"))


def test_a_repository_cannot_write_elsewhere(hub: Server, home: Path) -> None:
    hub.repository("org/evil", {"../../evil.safetensors": b"x"})
    with pytest.raises(HarnessError, match="below its folder"):
        weights.resolve("org/evil")
    assert not list(home.parent.rglob("evil.safetensors"))


# ---- real processes


def start(hub: Server, home: Path) -> "subprocess.Popen[str]":
    """`harness fetch clip-b-32` as a process of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HARNESS_WEIGHTS": str(home), "HF_HUB_CACHE": str(home.parent / "hub"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "fetch", "clip-b-32"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


@pytest.mark.usefixtures("ctrl_c")
def test_after_ctrl_c_the_same_command_completes_it(hub: Server, home: Path) -> None:
    path = f"/{CLIP}/resolve/main/{MODEL}"
    hub.pages[path].wait = threading.Event()
    part = home / "clip-b-32" / f"{MODEL}.part"
    process = start(hub, home)
    assert within(90, lambda: part.is_file() and part.stat().st_size >= len(DATA) // 2 - download.CHUNK)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    hub.pages[path].wait.set()
    hub.pages[path].wait = None
    assert process.returncode == 130
    assert "Traceback" not in err
    again = start(hub, home)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "fetched into" in out
    assert (home / "clip-b-32" / MODEL).read_bytes() == DATA
    assert hub.statuses(path)[-1] == 206
    assert hub.sent(path)[-1] <= len(DATA) // 2 + download.CHUNK


def test_two_processes_fetch_a_file_once(hub: Server, home: Path) -> None:
    path = f"/{CLIP}/resolve/main/{MODEL}"
    hub.pages[path].wait = threading.Event()
    first = start(hub, home)
    assert within(90, (home / "clip-b-32" / f"{MODEL}.part").is_file)
    second = start(hub, home)
    assert second.stderr is not None
    assert "another process is fetching it" in second.stderr.readline()
    hub.pages[path].wait.set()
    for process in (first, second):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert hub.sent(path) == [len(DATA)]
    assert hashlib.sha256((home / "clip-b-32" / MODEL).read_bytes()).digest() == hashlib.sha256(DATA).digest()


# ---- what is said where weights are missing

STUB = '''
from dataclasses import dataclass
from harness.metrics.base import SampleMetric


@dataclass(frozen=True)
class Preference(SampleMetric):
    """A scorer of which no weights are here."""

    name = "preference"
    weights: str = "aesthetic"
    clip: str = "clip-l-14"

    def artifacts(self):
        return {"weights": self.weights, "clip": self.clip}

    def score(self, images, prompts):
        raise AssertionError("never opened")
'''


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A benchmark on the shapes world with a metric whose weights are missing."""
    (tmp_path / "stub_preference.py").write_text(STUB)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    content = {
        "name": "lacking", "models": {"sd": {"family": "stable_diffusion", "weights": "builtin:shapes-sd"}},
        "prompts": {"one": {"set": "one", "path": "prompts.txt"}}, "sampler": {"steps": 1}, "methods": {"plain": {}},
        "metrics": ["stub_preference:Preference", "clipscore-shapes"],
    }
    (tmp_path / "lacking.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "lacking.yaml"


def test_check_lists_what_is_missing_and_run_finishes_without_it(
    benchmark: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "not on this machine: aesthetic (sac+logos+ava1-l14-linearMSE.pth, 3.7 MB), clip-l-14 (open_clip_config.json, "
        "open_clip_model.safetensors); `harness fetch aesthetic clip-l-14` gets them"
    )
    code, out, _ = harness(capsys, "check", str(benchmark))
    assert code == 1
    assert f"metric    preference: MISSING: {said}" in out.splitlines()
    code, out, err = harness(
        capsys, "run", str(benchmark), "--workers", "0", "--results", str(benchmark.parent / "results")
    )
    assert code == 0, err
    (row,) = [line for line in out.splitlines() if line.split()[:1] == ["plain"]]
    assert "–" in row or "-" in row.split()
    assert "`harness fetch aesthetic clip-l-14`" in " ".join(out.split())


def test_a_metric_s_name_stands_for_all_that_it_needs(
    benchmark: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(benchmark.parent))
    assert fetch.names_of("stub_preference:Preference") == ["aesthetic", "clip-l-14"]
    needy = STUB.replace("weights: str = ", "reference: str\n    weights: str = ")
    (benchmark.parent / "stub_needy.py").write_text(needy)
    assert fetch.names_of("stub_needy:Preference") == ["aesthetic", "clip-l-14"]
    assert fetch.names_of("geneval-shapes") == []
    assert fetch.names_of("hpsv2.1")[0] == "hpsv2.1"


def test_a_size_is_said_for_what_is_missing(home: Path) -> None:
    with pytest.raises(HarnessError, match=r"aesthetic is not on this machine \(sac.*, 3\.7 MB\): `harness fetch aes"):
        artifacts.find("aesthetic")
    assert artifacts.missing(["builtin:shapes-clip"]) is None
    assert "did you mean 'hpsv2.1'" in str(artifacts.missing(["hpsv2.1x"]))
