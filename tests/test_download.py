"""One file over HTTP, against a server on this machine: `harness.download`."""

import errno
import hashlib
import io
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import constants

from harness import download
from harness.download import Downloader, NotThere, Unreachable, sums
from harness.errors import HarnessError
from tests.loopback import Page, Server, serving

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.pages["/a.pt"] = Page(DATA)
        yield server


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Downloader:
    """A downloader that is quick to try again."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
    return Downloader()


def whole(folder: Path, data: bytes = DATA) -> None:
    """The file is there, and nothing of its making."""
    assert (folder / "a.pt").read_bytes() == data
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "a.pt"]
    assert sums(folder) == {"a.pt": hashlib.sha256(data).hexdigest()}


def test_a_file_is_fetched_and_verified(server: Server, net: Downloader, tmp_path: Path) -> None:
    net.file(server.url + "/a.pt", tmp_path, "a.pt", size=len(DATA), sha256=SHA256)
    whole(tmp_path)
    net.file(server.url + "/a.pt", tmp_path / "prefix", "a.pt", sha256=SHA256[:8])
    whole(tmp_path / "prefix")


def test_a_cut_connection_is_resumed(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].cuts = [400_000, 300_000]
    net.file(server.url + "/a.pt", tmp_path, "a.pt", size=len(DATA), sha256=SHA256)
    whole(tmp_path)
    assert server.statuses("/a.pt") == [200, 206, 206]
    assert sum(server.sent("/a.pt")) < len(DATA) + 3 * download.CHUNK
    assert server.noted[1][1]["If-Range"].startswith('"')


def test_many_cuts_are_survived_as_long_as_bytes_come(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].cuts = [download.CHUNK + 1] * 7
    net.file(server.url + "/a.pt", tmp_path, "a.pt")
    whole(tmp_path)
    assert len(server.statuses("/a.pt")) == 8


def test_a_server_that_always_cuts_ends_it_and_a_second_run_resumes(
    server: Server, net: Downloader, tmp_path: Path
) -> None:
    server.pages["/a.pt"].cuts = [500_000] + [0] * 20
    with pytest.raises(HarnessError, match=r"5 times in a row.*the same command resumes"):
        net.file(server.url + "/a.pt", tmp_path, "a.pt")
    assert (tmp_path / "a.pt.part").stat().st_size > 300_000
    assert not (tmp_path / "a.pt").exists()
    server.pages["/a.pt"].cuts, server.noted[:] = [], []
    Downloader().file(server.url + "/a.pt", tmp_path, "a.pt", sha256=SHA256)
    whole(tmp_path)
    assert server.sent("/a.pt")[0] < 700_000


@pytest.mark.parametrize("page", [Page(DATA, ranges=False), Page(DATA, etag=""), Page(DATA, etag='W/"weak"')])
def test_what_cannot_be_resumed_begins_anew(page: Page, server: Server, net: Downloader, tmp_path: Path) -> None:
    page.cuts = [400_000]
    server.pages["/a.pt"] = page
    net.file(server.url + "/a.pt", tmp_path, "a.pt", sha256=SHA256)
    whole(tmp_path)
    assert server.statuses("/a.pt") == [200, 200]


def test_without_a_length_the_hash_decides(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].length = False
    net.file(server.url + "/a.pt", tmp_path, "a.pt", sha256=SHA256)
    whole(tmp_path)
    server.pages["/a.pt"].cuts = [1000]
    with pytest.raises(HarnessError, match="SHA-256"):
        net.file(server.url + "/a.pt", tmp_path / "cut", "a.pt", sha256=SHA256)


def test_a_file_that_changed_between_two_tries_is_not_glued(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].cuts = [500_000] + [0] * 20
    with pytest.raises(HarnessError):
        net.file(server.url + "/a.pt", tmp_path, "a.pt")
    other = bytes(len(DATA))
    server.pages["/a.pt"] = Page(other)
    net.file(server.url + "/a.pt", tmp_path, "a.pt")
    whole(tmp_path, other)


def test_a_server_that_ignores_if_range_is_noticed(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].cuts = [500_000] + [0] * 20
    with pytest.raises(HarnessError):
        net.file(server.url + "/a.pt", tmp_path, "a.pt")
    other = bytes(len(DATA))
    meta = tmp_path / "a.pt.part.meta"
    server.pages["/a.pt"] = Page(other, etag='"other"')
    meta.write_text(meta.read_text().replace("etag\": \"\\\"", "etag\": \"\\\"x"))

    class Deaf(requests.Session):
        def get(self, url: Any, **kwargs: Any) -> requests.Response:
            kwargs["headers"].pop("If-Range", None)
            return super().get(url, **kwargs)

    net.session = Deaf()  # type: ignore[assignment]
    net.file(server.url + "/a.pt", tmp_path, "a.pt")
    whole(tmp_path, other)
    assert server.statuses("/a.pt")[-2:] == [206, 200]


def test_a_wrong_hash_is_refused_and_nothing_stays(server: Server, net: Downloader, tmp_path: Path) -> None:
    for _ in range(2):  # the second run does not get stuck on what the first one left
        with pytest.raises(HarnessError, match=r"SHA-256 .*, expected 0000.*removed"):
            net.file(server.url + "/a.pt", tmp_path, "a.pt", sha256="0" * 64)
        assert list(tmp_path.iterdir()) == []
    assert server.sent("/a.pt") == [len(DATA)] * 2
    net.file(server.url + "/a.pt", tmp_path, "a.pt", sha256=SHA256)
    whole(tmp_path)


def test_a_wrong_size_is_refused_before_anything_is_fetched(server: Server, net: Downloader, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"1,048,576 bytes, expected 5: it has changed"):
        net.file(server.url + "/a.pt", tmp_path, "a.pt", size=5)
    assert list(tmp_path.iterdir()) == []
    server.pages["/a.pt"].length = False
    with pytest.raises(HarnessError, match=r"1,048,576 bytes, expected 5"):
        net.file(server.url + "/a.pt", tmp_path, "a.pt", size=5)
    assert list(tmp_path.iterdir()) == []


def test_the_hub_states_the_hash_of_large_files(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/linked"] = Page(status=302, headers={"Location": "/a.pt", "X-Linked-Etag": f'"{SHA256}"'})
    net.file(server.url + "/linked", tmp_path, "a.pt")
    whole(tmp_path)
    server.pages["/linked"].headers["X-Linked-Etag"] = '"' + "0" * 64 + '"'
    with pytest.raises(HarnessError, match="SHA-256"):
        net.file(server.url + "/linked", tmp_path / "other", "a.pt")


def test_redirects_stay_with_http(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/moved"] = Page(status=301, headers={"Location": "/a.pt"})
    net.file(server.url + "/moved", tmp_path, "a.pt")
    whole(tmp_path)
    for place in ("file:///etc/passwd", "ftp://127.0.0.1/a.pt"):
        server.pages["/moved"].headers["Location"] = place
        with pytest.raises(HarnessError, match=f"redirects to {place}"):
            net.file(server.url + "/moved", tmp_path, "b.pt")
    server.pages["/moved"].headers["Location"] = "/moved"
    with pytest.raises(HarnessError, match="redirects without end"):
        net.file(server.url + "/moved", tmp_path, "b.pt")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [("https", "http", False), ("https", "https", True), ("http", "https", True), ("http", "http", True)],
)
def test_https_is_not_given_up(before: str, after: str, followed: bool, net: Downloader) -> None:
    answer = requests.Response()
    answer.status_code, answer.url = 302, f"{before}://one.example/x"
    answer.headers["Location"] = f"{after}://two.example/x"
    if followed:
        assert net.session.get_redirect_target(answer) == f"{after}://two.example/x"
    else:
        with pytest.raises(HarnessError, match="from https to http is not followed"):
            net.session.get_redirect_target(answer)


def test_what_is_not_there_or_refused(server: Server, net: Downloader, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="404"):
        net.file(server.url + "/b.pt", tmp_path, "b.pt")
    server.pages["/c.pt"] = Page(status=403)
    with pytest.raises(HarnessError, match="refused"):
        net.file(server.url + "/c.pt", tmp_path, "c.pt")
    assert server.statuses("/b.pt") + server.statuses("/c.pt") == [404, 403]  # no second try
    assert list(tmp_path.iterdir()) == []


def test_a_server_in_trouble_is_asked_again(server: Server, net: Downloader, tmp_path: Path) -> None:
    server.pages["/a.pt"].failures = [503, 429, 500]
    server.pages["/a.pt"].headers = {"Retry-After": "3600"}
    net.file(server.url + "/a.pt", tmp_path, "a.pt")
    whole(tmp_path)
    assert server.statuses("/a.pt") == [503, 429, 500, 200]


def test_the_token_goes_to_the_hub_alone(
    server: Server, net: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = f"http://localhost:{server.server_address[1]}"  # another name, so another host
    server.pages["/linked"] = Page(status=302, headers={"Location": elsewhere + "/a.pt"})
    net.file(server.url + "/linked", tmp_path, "a.pt")
    assert [headers.get("Authorization") for _, headers, _, _ in server.noted] == ["Bearer hf_secret", None]
    server.noted.clear()
    net.file(elsewhere + "/a.pt", tmp_path / "other", "a.pt")
    assert "Authorization" not in server.noted[0][1]


def test_without_a_way_to_the_server_it_ends_at_once(net: Downloader, tmp_path: Path) -> None:
    with serving() as gone:
        pass
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+ cannot be reached \(.*refused"):
            net.file(gone.url + "/a.pt", tmp_path, "a.pt")


def test_a_disk_without_room_is_told_before_anything_is_written(
    server: Server, net: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(HarnessError, match=r"1,048,576 bytes are still to be fetched.*1,000 free.*HARNESS_WEIGHTS"):
        net.file(server.url + "/a.pt", tmp_path, "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_came(
    server: Server, net: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Filling(io.FileIO):
        room = 3

        def write(self, data: Any) -> int:
            if Filling.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            Filling.room -= 1
            return super().write(data)

    monkeypatch.setattr(download, "open", Filling, raising=False)
    with pytest.raises(HarnessError, match=r"a.pt.part: the disk is full.*HARNESS_WEIGHTS.*the same command resumes"):
        net.file(server.url + "/a.pt", tmp_path, "a.pt")
    assert (tmp_path / "a.pt.part").stat().st_size == 3 * download.CHUNK
    monkeypatch.undo()
    Downloader().file(server.url + "/a.pt", tmp_path, "a.pt", sha256=SHA256)
    whole(tmp_path)
    assert server.sent("/a.pt")[-1] == len(DATA) - 3 * download.CHUNK


def test_a_beginning_that_is_already_all_of_it_is_not_asked_for_again(
    server: Server, net: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            net.file(server.url + "/a.pt", tmp_path, "a.pt")
    net.file(server.url + "/a.pt", tmp_path, "a.pt")
    whole(tmp_path)
    assert len(server.noted) == 1


def test_nothing_is_written_outside_the_folder(server: Server, net: Downloader, tmp_path: Path) -> None:
    for path in ("../a.pt", "/tmp/a.pt", "x/../../a.pt", "..\\a.pt"):
        with pytest.raises(HarnessError, match="below its folder"):
            net.file(server.url + "/a.pt", tmp_path / "inside", path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    with pytest.raises(HarnessError, match="outside"):
        net.file(server.url + "/a.pt", tmp_path / "inside", "link/a.pt")
    assert server.noted == []
