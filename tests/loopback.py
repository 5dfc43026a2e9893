"""A server on this machine for tests of downloads, which does on command what servers and networks do in life."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from harness import download


@dataclass
class Page:
    """What is at one path, and how the server gives it away."""

    data: bytes = b""
    ranges: bool = True
    etag: str | None = None  # none: a strong one made of the data; "": not sent
    length: bool = True  # says Content-Length
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which the first, second, ... answer breaks off
    failures: list[int] = field(default_factory=list)  # statuses of the first answers
    wait: threading.Event | None = None  # the second half is sent once it is set


class Server(ThreadingHTTPServer):
    """Pages by path; every answer is noted as (path, request headers, status, bytes of the body that it sends).

    It is noted before its first byte leaves: whoever has read an answer finds it noted.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.noted: list[tuple[str, dict[str, str], int, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self, path: str) -> list[int]:
        """The bytes of each answer to a path."""
        return [size for asked, _, _, size in self.noted if asked == path]

    def statuses(self, path: str) -> list[int]:
        return [status for asked, _, status, _ in self.noted if asked == path]

    def repository(
        self, name: str, files: dict[str, bytes], commit: str = "c0ffee", *, kind: str = "models", branch: str = "main"
    ) -> None:
        """Serves files as a repository of the Hub: its listing, and each file by branch and by commit."""
        place = name if kind == "models" else f"{kind}/{name}"
        entries = []
        for path, data in files.items():
            entry: dict[str, object] = {"rfilename": path, "size": len(data)}
            if path.endswith((".safetensors", ".parquet")):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            entries.append(entry)
            for revision in (branch, commit):
                self.pages[f"/{place}/resolve/{revision}/{path}"] = Page(data)
        listing = json.dumps({"sha": commit, "siblings": entries}).encode()
        for revision in (branch, commit):
            self.pages[f"/api/{kind}/{name}/revision/{revision}"] = Page(listing)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        page = self.server.pages.get(path, Page(status=404))
        status = page.failures.pop(0) if page.failures else page.status
        data = page.data if status == 200 else b""
        etag = f'"{hashlib.md5(page.data).hexdigest()}"' if page.etag is None else page.etag
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and page.ranges and status == 200 and self.headers.get("If-Range") in (None, etag):
            start = int(asked[1])
            status = 206 if start < len(data) else 416
        body = data[start:] if status in (200, 206) else b""
        cut = page.cuts.pop(0) if page.cuts and body else len(body)
        self.server.noted.append((path, dict(self.headers), status, min(cut, len(body))))
        try:
            self.send_response(status)
            if page.length:
                self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if etag and status in (200, 206):
                self.send_header("ETag", etag)
            for key, value in page.headers.items():
                self.send_header(key, value)
            self.end_headers()
            half = cut // 2 if page.wait is not None else cut
            self.wfile.write(body[:half])
            if page.wait is not None:
                self.wfile.flush()
                page.wait.wait(600)
                self.wfile.write(body[half:cut])
        except OSError:  # the client has gone
            pass
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server at work."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving_as_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server at work that stands for the Hub; nothing waits before it tries again."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(download, "PAUSE", 0.0)
        yield server


def empty_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this folder weights/ and prompts/ are where fetched ones lie, both empty, and hub/ is the Hub's own cache."""
    monkeypatch.setenv("HARNESS_WEIGHTS", str(folder / "weights"))
    monkeypatch.setenv("HARNESS_PROMPTS", str(folder / "prompts"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
