"""`harness fetch` for prompt sets and data sets on the Hub; both come from a server on this machine."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from harness import artifacts, benchmark, download, fetch, manifest, prompts, run, weights
from harness.artifacts import Artifact, File
from harness.benchmark import PromptSpec
from harness.errors import HarnessError, Lacking
from harness.resolve import resolve
from tests.command import harness
from tests.loopback import Page, Server, empty_home, serving_as_the_hub

LIST = "id,prompt\n" + "".join(f"p{i},a thing of kind {i} {'x' * 2000}\n" for i in range(200))
DATA = LIST.encode()
CONVERTED = "refs/convert/parquet"
BOTH = "org/captions"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for prompt sets, and no Hub cache."""
    empty_home(tmp_path, monkeypatch)
    return tmp_path / "prompts"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with one list of prompts, which stands for a publisher's and for the Hub."""
    with serving_as_the_hub(monkeypatch) as started:
        started.pages["/list.csv"] = Page(DATA)
        yield started


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *files: dict[str, Any], **more: Any) -> None:
    """One known set, `things`, of these files."""
    content = {
        "name": "things", "title": "Things", "source": "the shop of things", "licence": "none", "format": "csv",
        "rows": 200, "columns": {"id": "id", "text": "prompt"}, "files": list(files),
    }
    (tmp_path / "things.yaml").write_text(yaml.safe_dump(content | more))
    monkeypatch.setattr(manifest, "known", lambda: {"things": tmp_path / "things.yaml"})


@pytest.fixture
def things(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A known set of one file with an address."""
    made(tmp_path, monkeypatch, {
        "path": "list.csv", "url": f"{server.url}/list.csv", "size": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
    })
    return "things"


def failure(name: str) -> str:
    """Why it cannot be fetched."""
    ((_, failed),) = fetch.fetch([name])
    assert failed is not None
    return str(failed)


def left(home: Path) -> list[str]:
    """The files below a folder, locks left out."""
    return sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_set_is_fetched_once_and_read(
    things: str, server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = harness(capsys, "fetch", things)
    assert (code, out) == (0, f"prompt set things: fetched into {home / 'things'}, 200 prompts, verified\n")
    assert left(home) == ["things/SHA256SUMS", "things/list.csv"]
    found = prompts.load(PromptSpec(set=things), Path("elsewhere"))
    assert (len(found.prompts), found.prompts[7].text[:17]) == (200, "a thing of kind 7")
    assert found.files == {"list.csv": hashlib.sha256(DATA).hexdigest()}
    asked = len(server.noted)
    code, out, _ = harness(capsys, "fetch", things, "--verify")
    assert (code, len(server.noted)) == (0, asked)
    assert "is here already" in out
    (home / things / "list.csv").write_bytes(DATA[:-2] + b"y\n")
    code, _, err = harness(capsys, "fetch", things, "--verify")
    assert code == 1
    assert "has changed since it was fetched" in err
    assert "is not the file that its manifest names" in failure(things)  # seen without --verify as well


def test_a_cut_download_of_a_set_is_resumed(things: str, server: Server, home: Path) -> None:
    server.pages["/list.csv"].cuts = [3 * download.CHUNK]
    assert [failed for _, failed in fetch.fetch([things])] == [None]
    assert server.statuses("/list.csv") == [200, 206]
    assert sum(server.sent("/list.csv")) == len(DATA)
    assert (home / things / "list.csv").read_bytes() == DATA


def test_what_stays_cut_is_no_set(things: str, server: Server, home: Path) -> None:
    server.pages["/list.csv"].cuts = [3 * download.CHUNK] + [0] * 20
    assert "What is here is kept; the same command resumes" in failure(things)
    with pytest.raises(Lacking, match="`harness fetch things` gets it"):
        prompts.load(PromptSpec(set=things), Path())
    server.pages["/list.csv"].cuts = []
    assert [failed for _, failed in fetch.fetch([things])] == [None]
    assert server.sent("/list.csv")[-1] == len(DATA) - 3 * download.CHUNK


@pytest.mark.parametrize(
    ("data", "expected"), [(DATA[:-2] + b"y\n", "gave SHA-256"), (DATA + b"more,x\n", "bytes, expected")]
)
def test_another_file_than_the_manifest_s_is_not_kept(
    data: bytes, expected: str, things: str, server: Server, home: Path
) -> None:
    server.pages["/list.csv"] = Page(data)
    assert expected in failure(things)
    assert left(home) == []


def test_a_full_disk_is_said_before_anything_is_written(
    things: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore
    assert "or give another folder with HARNESS_PROMPTS" in failure(things)
    assert left(home) == []


def test_offline_it_is_said_where_to_put_what(things: str, server: Server, home: Path) -> None:
    server.shutdown()
    server.server_close()
    said = failure(things)
    assert f"get {server.url}/list.csv and put that here as {home / things / 'list.csv'}" in said


def test_a_file_without_an_address_is_described(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(
        tmp_path, monkeypatch, {"path": "a.csv", "category": "a", "url": f"{server.url}/list.csv"},
        {"path": "b.csv", "category": "b"}, rows=400,
    )
    code, _, err = harness(capsys, "fetch", "things")
    assert code == 1
    assert f"get it from the shop of things and put it into {home / 'things'}" in " ".join(err.split())
    assert "b.csv" in err
    (home / "things" / "b.csv").write_bytes(DATA)  # by hand
    assert [failed for _, failed in fetch.fetch(["things"])] == [None]
    found = prompts.load(PromptSpec(set="things", category="b", first=2), Path()).prompts
    assert [p.id for p in found] == ["b/p0", "b/p1"]


def test_a_name_of_weights_and_of_a_set_brings_both(
    things: str, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_WEIGHTS", str(home.parent / "weights"))
    files = (File(path="head.bin", url=f"{server.url}/head"),)
    entry = Artifact(title="a thing", licence="none", source="https://example.org", files=files)
    monkeypatch.setitem(artifacts.catalogue(), things, entry)
    server.pages["/head"] = Page(b"head")
    code, out, _ = harness(capsys, "fetch", things)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["prompt set things", "things"]
    assert (weights.home() / "things" / "head.bin").read_bytes() == b"head"


def test_sets_are_listed_with_what_a_person_asks_for(
    things: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness(capsys, "list", "prompts")[1] == "things     200  not here        Things; licence: none\n"
    assert harness(capsys, "fetch")[1].splitlines()[-1].split()[:2] == ["prompts", "things"]
    assert harness(capsys, "fetch", things)[0] == 0
    (entry,) = json.loads(harness(capsys, "list", "prompts", "--json")[1])
    assert (entry["here"], entry["rows"], entry["nsfw"]) == (True, 200, False)
    code, _, err = harness(capsys, "fetch", "thing")
    assert code == 2
    assert "did you mean 'things'" in err


def test_addresses_of_the_known_sets_are_safe() -> None:
    for name in manifest.known():
        for form in manifest.load(name).forms:
            for file in form.files:
                assert file.url is None or file.url.startswith("https://"), name


# ---- a file out of an archive


def archived(data: bytes, name: str = "inside/list.csv") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made_zip:
        made_zip.writestr("../evil", b"x")
        made_zip.writestr(name, data)
    return out.getvalue()


def zipped(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, **known: Any) -> None:
    server.pages["/all.zip"] = Page(data)
    made(tmp_path, monkeypatch, {
        "path": "list.csv", "url": f"{server.url}/all.zip", "archive": "all.zip", "member": "inside/list.csv", **known,
    })


def test_a_member_of_an_archive_is_unpacked_and_nothing_else(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(server, tmp_path, monkeypatch, archived(DATA))
    ((said, failed),) = fetch.fetch(["things"])
    assert failed is None
    assert said.endswith("200 prompts, their number verified")
    assert left(home) == ["things/SHA256SUMS", "things/list.csv"]
    assert download.sums(home / "things") == {"list.csv": hashlib.sha256(DATA).hexdigest()}
    assert not list(tmp_path.rglob("evil"))
    assert "is here already" in next(iter(fetch.fetch(["things"], verify=True)))[0]


@pytest.mark.parametrize(
    ("data", "known", "expected"),
    [
        (archived(DATA, "other.csv"), {}, "holds no inside/list.csv"),
        (archived(DATA)[:-30], {}, "File is not a zip file"),
        (archived(DATA), {"sha256": "0" * 64}, "has the SHA-256"),
        (archived(DATA), {"size": len(DATA) - 1}, f"has {len(DATA):,} bytes, expected {len(DATA) - 1:,}"),
        (archived(b"\0" * (1 << 22)), {}, "expected at most"),
    ],
    ids=["other member", "cut", "other hash", "other size", "too large"],  # the bytes hold the time of day
)
def test_a_bad_archive_leaves_nothing(
    data: bytes, known: dict[str, Any], expected: str, server: Server, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.fetch_prompts.LARGEST", 1 << 20)
    zipped(server, tmp_path, monkeypatch, data, **known)
    assert expected in failure("things")
    assert [name for name in left(home) if name != "things/SHA256SUMS"] == []


@pytest.mark.parametrize("member", ["../list.csv", "/etc/passwd", "a\\b"])
def test_a_manifest_cannot_name_a_member_elsewhere(member: str) -> None:
    with pytest.raises(ValueError, match="below its folder"):
        manifest.DataFile(path="x.csv", url="https://example.org/a.zip", archive="a.zip", member=member)


# ---- data sets on the Hub


def parquet(first: int, number: int, **columns: list[Any]) -> bytes:
    out = io.BytesIO()
    texts = [f"caption {i}" for i in range(first, first + number)]
    pq.write_table(pa.table({"caption": texts, "image": [b"jpg"] * number, **columns}), out)
    return out.getvalue()


@pytest.fixture
def hub(server: Server) -> Server:
    """A data set with a split of two pieces and one of one."""
    files = {
        "default/train/0000.parquet": parquet(0, 3), "default/train/0001.parquet": parquet(3, 2),
        "default/test/0000.parquet": parquet(10, 2),
    }
    server.repository(BOTH, files, kind="datasets", branch=CONVERTED)
    return server


def load(**block: Any) -> prompts.PromptSet:
    return prompts.load(PromptSpec.model_validate({"set": f"hub:{BOTH}", **block}), Path())


def test_a_split_of_a_hub_data_set_is_a_prompt_set(hub: Server, home: Path, tmp_path: Path) -> None:
    found = load(split="train")
    assert [(p.id, p.text) for p in found.prompts] == [(str(i), f"caption {i}") for i in range(5)]
    assert (found.id, found.revision) == ("org--captions--default--train", "c0ffee")
    assert list(found.files) == ["0000.parquet", "0001.parquet"]
    asked = len(hub.noted)
    assert not any("test" in path for path, *_ in hub.noted)  # only what is needed
    assert load(split="train") == found
    assert len(hub.noted) == asked
    assert load(split="test").id == "org--captions--default--test"
    hub.shutdown()
    hub.server_close()
    assert [p.text for p in load(split="test", revision="c0ffee", sample=1, columns={"text": "caption"}).prompts]


def test_all_of_a_hub_data_set_is_fetched_beforehand(
    hub: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = harness(capsys, "fetch", f"hub:{BOTH}")
    assert (code, out) == (0, f"hub:{BOTH}: fetched into {home / 'hub' / 'org--captions' / 'c0ffee'}\n")
    asked = len(hub.noted)
    assert "is here already" in harness(capsys, "fetch", f"hub:{BOTH}", "--verify")[1]
    load(split="train")
    assert len(hub.noted) == asked


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, r"has 2 splits: say which with 'split:', of test, train"),
        ({"split": "tset"}, r"has no split 'tset': did you mean 'test'"),
        ({"split": "test", "config": "en"}, r"has no config 'en': known: default"),
        ({"split": "test", "revision": "beef"}, r"has no Parquet of commit beef"),
        ({"set": "hub:org/none", "split": "test"}, r"has no Parquet \(the Hub makes it of public data sets alone\)"),
        ({"split": "test", "columns": {"text": "prompt"}}, r"row 0 has no 'prompt'"),
    ],
)
def test_what_a_hub_data_set_lacks(block: dict[str, Any], expected: str, hub: Server) -> None:
    with pytest.raises(HarnessError, match=expected):
        load(**block)


def test_a_hub_data_set_is_pinned_and_not_accepted(
    hub: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "name": "pins", "models": {"sd": {"family": "stable_diffusion", "weights": "builtin:shapes-sd"}},
        "prompts": {"tests": {"set": f"hub:{BOTH}", "split": "test"}}, "methods": {"plain": {}},
    }
    (tmp_path / "pins.yaml").write_text(yaml.safe_dump(content))
    code, _, err = harness(capsys, "run", str(tmp_path / "pins.yaml"), "--accept", "tests", "--workers", "0",
                           "--results", str(tmp_path / "results"))
    assert code == 2
    assert f"--accept tests: a data set on the Hub is not accepted by its files: pin 'hub:{BOTH}' with 'revision" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["org/a--b", "org/x.git", "org/x."])
def test_what_is_no_id_of_the_hub_is_said(name: str, home: Path) -> None:
    with pytest.raises(HarnessError, match=f"data set '{name}': no id of the Hugging Face Hub: "):
        load(set=f"hub:{name}")
    with pytest.raises(HarnessError, match=rf"weights '{name}' \(no folder here\): no id of the Hugging Face Hub: "):
        weights.resolve(name)


def test_the_hub_s_own_cache_is_looked_into_offline(hub: Server, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="split"):
        load()
    shutil.rmtree(tmp_path / "prompts")
    cache = tmp_path / "hub" / "datasets--org--captions"
    (cache / "refs" / CONVERTED).parent.mkdir(parents=True)
    (cache / "refs" / CONVERTED).write_text("abc123")
    file = cache / "snapshots" / "abc123" / "default" / "test" / "0000.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(parquet(0, 2))
    hub.shutdown()
    hub.server_close()
    found = load()
    assert (found.id, found.revision, len(found.prompts)) == ("org--captions--default--test", "abc123", 2)


def test_commits_of_a_hub_data_set_are_kept_apart(hub: Server) -> None:
    assert load(split="test").revision == "c0ffee"
    hub.repository(BOTH, {"default/test/0000.parquet": parquet(70, 1)}, "beef", kind="datasets", branch=CONVERTED)
    assert load(split="test").revision == "c0ffee"  # what is here stays in use
    newer = load(split="test", revision="beef")
    assert (newer.revision, [p.text for p in newer.prompts]) == ("beef", ["caption 70"])
    assert len(load(split="test", revision="c0ffee").prompts) == 2
    with pytest.raises(HarnessError, match="is here in 2 states: say which with 'revision:', of beef, c0ffee"):
        load(split="test")


def test_a_run_keeps_the_commit_that_it_was_made_from(hub: Server, tmp_path: Path) -> None:
    content = {
        "name": "some", "models": {"sd": {"family": "stable_diffusion", "weights": "builtin:shapes-sd"}},
        "prompts": {"tests": {"set": f"hub:{BOTH}", "split": "test"}}, "methods": {"plain": {}},
    }
    resolved = resolve(benchmark.parse(content, "some.yaml"), tmp_path / "some.yaml")
    kept = run._grown(None, resolved, tmp_path / "some.yaml")
    assert kept["prompts"]["tests"] == {"set": f"hub:{BOTH}", "split": "test", "revision": "c0ffee"}
    assert kept["definitions"]["prompts"]["tests"]["revision"] == "c0ffee"
    benchmark.parse({key: kept[key] for key in content}, "again")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", rf"/datasets/{BOTH} is gated .*accept the licence at http://127.*/datasets/{BOTH} and set"),
        (401, "RepoNotFound", rf"/datasets/{BOTH}: no such repository, or a private one"),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, message: str, hub: Server) -> None:
    refused = Page(status=status, headers={"X-Error-Code": code})
    hub.pages[f"/api/datasets/{BOTH}/revision/{CONVERTED}"] = refused
    with pytest.raises(HarnessError, match=message):
        load(split="test")
    hub.repository(BOTH, {"default/test/0000.parquet": parquet(0, 1)}, kind="datasets", branch=CONVERTED)
    hub.pages[f"/datasets/{BOTH}/resolve/c0ffee/default/test/0000.parquet"] = refused
    with pytest.raises(HarnessError, match=message):
        load(split="test")


def test_a_check_does_not_fetch(hub: Server, home: Path) -> None:
    spec = PromptSpec(set=f"hub:{BOTH}", split="test")
    for _ in range(2):  # nothing here; its listing alone
        with pytest.raises(Lacking, match=f"`harness fetch hub:{BOTH}` gets it"):
            prompts.load(spec, Path(), fetch=False)
        load(split="train")
    load(split="test")
    assert len(prompts.load(spec, Path(), fetch=False).prompts) == 2


def test_offline_it_is_said_how_to_bring_a_hub_data_set(hub: Server, home: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(HarnessError, match=f"`hf download {BOTH} --repo-type dataset --revision {CONVERTED}`"):
        load(split="test")
    assert left(home) == []


def test_a_listing_cannot_write_elsewhere(hub: Server, home: Path) -> None:
    hub.repository("org/evil", {"../../evil.parquet": b"x"}, kind="datasets", branch=CONVERTED)
    with pytest.raises(HarnessError, match="below its folder"):
        load(set="hub:org/evil")
    assert not list(home.parent.rglob("evil.parquet"))
