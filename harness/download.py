"""One file over HTTP: resumed where the connection was cut, verified before it gets its name.

It grows under `<name>.part`; `<name>.part.meta` beside it keeps what the server said of the file (ETag, length, hash),
so that what is resumed is the same file. Hashes of what was fetched are kept in the folder's `SHA256SUMS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import filelock
import requests
from requests.auth import AuthBase
from urllib3.exceptions import NewConnectionError

from harness import weights
from harness.display import Transfers
from harness.errors import HarnessError
from harness.files import free, must_be_inside, rename, write_atomic, writing

T = TypeVar("T")
CHUNK = 1 << 17  # bytes
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
TRIES = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second try; doubled with each further one
LONGEST_PAUSE = 60.0  # however long a server asks for
SUMS = weights.SUMS
WHERE = "HARNESS_WEIGHTS"  # chooses another folder for weights


class NotThere(HarnessError):
    """The publisher has no file of this name."""


class Unreachable(HarnessError):
    """There is no way to a server from here."""


class _Cut(Exception):
    """The connection or the server failed on the way: worth another try, after `pause` seconds where it said so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class _Told:
    """What a server says of a whole file."""

    etag: str | None  # only a strong one: the same tag, the same bytes
    size: int | None
    sha256: str | None  # of large files on the Hub


class _Session(requests.Session):
    """Follows redirects, but neither away from HTTP nor from HTTPS down to HTTP."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        before, after = urlsplit(resp.url).scheme, urlsplit(target or "").scheme
        if target and after not in ("", "https", before):
            raise HarnessError(f"{resp.url} redirects to {target}: from {before} to {after} is not followed")
        return target


class _Token(AuthBase):
    """The user's Hub token; requests leaves it behind where a redirect leads to another host."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class Downloader:
    """Downloads files over one session, with progress on standard error."""

    def __init__(self, where: str = WHERE) -> None:
        self.where = where  # the environment variable that chooses another folder
        self.progress = Transfers()
        self.session = _Session()
        self.answered: set[str] = set()  # hosts that answered once: a failure there is worth another try
        self.unreachable: dict[str, str] = {}  # host -> why

    def file(
        self, url: str, folder: Path, path: str, *, size: int | None = None, sha256: str | None = None
    ) -> None:
        """Fetches `url` as the file `path` below `folder`; `size` and `sha256` (or its first digits) must fit.

        Raises:
            NotThere: 404.
            Unreachable: no way to the server.
            HarnessError: refused, cut too often or the disk is full (the beginning is kept for the next time), or not
                what it should be (the beginning is removed).
        """
        try:
            must_be_inside(path)
        except ValueError as error:
            raise HarnessError(f"{url}: {error}") from error
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise HarnessError(f"{target} would lie outside {folder}, by a link: move that away")
        part = target.with_name(target.name + ".part")
        try:
            told = self._persist(lambda: self._stream(url, part, size), url, lambda: _length(part))
        finally:
            self.progress.finish()
        if _length(part) > 1e9:  # some seconds a gigabyte
            self.progress.say(f"{path}: verifying")
        expected, found, wrong = sha256 or told.sha256, weights.sha256_of(part), None
        if size is not None and _length(part) != size:
            wrong = f"{_length(part):,} bytes, expected {size:,}"
        elif expected and not found.startswith(expected):
            wrong = f"SHA-256 {found}, expected {expected}"
        if wrong:
            _remove(part)
            raise HarnessError(f"{url} gave {wrong}: it was altered on its way, or has changed at its source. What "
                               f"came is removed; the same command begins anew")
        with writing(target, self.where):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            rename(part, target)
            _remove(part)
        write_sums(folder, sums(folder) | {path: found}, self.where)

    def json(self, url: str) -> Any:
        """A small answer in JSON. Raises as `file` does."""

        def get() -> Any:
            with self._get(url, {}) as response:
                return response.json()

        try:
            return self._persist(get, url, lambda: 0)
        except requests.RequestException as error:
            raise HarnessError(f"{url} answers with something that is no JSON; is HF_ENDPOINT a Hub?") from error

    def _persist(self, attempt: Callable[[], T], url: str, length: Callable[[], int]) -> T:
        """The result of `attempt`, tried again where it was cut: without end as long as the file grows."""
        tries, before = 0, length()
        while True:
            try:
                return attempt()
            except _Cut as cut:
                tries, before = (1 if length() > before else tries + 1), length()
                if tries >= TRIES:
                    raise HarnessError(f"{url}: {cut}, {tries} times in a row. What is here is kept; the same command "
                                       f"resumes") from cut
                self.progress.say(f"{cut}; trying again")
                time.sleep(min(cut.pause if cut.pause is not None else PAUSE * 2 ** (tries - 1), LONGEST_PAUSE))

    def _stream(self, url: str, part: Path, size: int | None) -> _Told:
        """Appends to `part` what it still lacks of `url`, or writes it anew where that cannot be done."""
        kept = _kept(part)
        start = _length(part) if kept else 0
        if kept and start == kept.size:
            return kept
        with self._get(url, {"Range": f"bytes={start}-", "If-Range": str(kept.etag)} if kept else {}) as response:
            told = _told(response)
            if response.status_code == 206:
                begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                if kept is None or begin is None or int(begin[1]) != start or told != kept:
                    _remove(part)
                    raise _Cut(f"{urlsplit(url).netloc} resumes another file")
            else:
                start = 0
            if size is not None and told.size not in (None, size):
                raise HarnessError(f"{url} has {told.size:,} bytes, expected {size:,}: it has changed at its source")
            must_fit(part.parent, (told.size or 0) - start, part.name.removesuffix(".part"), self.where)
            with writing(part, self.where):
                part.parent.mkdir(parents=True, exist_ok=True)
                _meta(part).write_text(json.dumps(asdict(told)))
            self.progress.start(part.name.removesuffix(".part"), told.size, start)
            self._append(response, part, "ab" if start else "wb")
        if told.size is not None and _length(part) != told.size:
            raise _Cut(f"the connection was cut after {_length(part):,} of {told.size:,} bytes")
        return told

    def _append(self, response: requests.Response, part: Path, mode: str) -> None:
        with writing(part, self.where), open(part, mode) as file:
            for chunk in _chunks(response):
                file.write(chunk)
                self.progress.advance(len(chunk))

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        """An answer of status 200 or 206."""
        from huggingface_hub import constants, get_token

        own_hub = url.startswith(constants.ENDPOINT + "/")
        host = urlsplit(url).netloc
        if own_hub and constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{host} is not asked, because HF_HUB_OFFLINE is set")
        if host in self.unreachable:
            raise Unreachable(self.unreachable[host])
        try:
            response = self.session.get(
                url, headers={**headers, "Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT,
                auth=_Token(get_token() if own_hub else None),
            )
        except requests.TooManyRedirects as error:
            raise HarnessError(f"{url} redirects without end") from error
        except requests.RequestException as error:
            failed = urlsplit(str(error.request.url) if error.request is not None else url).netloc
            if failed not in self.answered and _no_way(error):
                self.unreachable[host] = f"{failed} cannot be reached ({_reason(error)})"
                raise Unreachable(self.unreachable[host]) from error
            raise _Cut(f"{failed} does not answer ({_reason(error)})") from error
        self.answered |= {urlsplit(step.url).netloc for step in (*response.history, response)}
        if response.status_code in (200, 206):
            return response
        with response:
            raise _failure(url, response, own_hub)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(CHUNK)
    except requests.RequestException as error:
        raise _Cut(f"the connection was cut ({_reason(error)})") from error


def must_fit(folder: Path, size: int, name: str, where: str = WHERE, done: str = "fetched") -> None:
    """Raises HarnessError where the disk that `folder` is to lie on has less than `size` bytes free, still to be
    `done`."""
    there, room = free(folder)
    if size > room:
        raise HarnessError(f"{name}: {size:,} bytes are still to be {done}, and the disk of {there} has {room:,} "
                           f"free: free some space, or give another folder with {where}")


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that was fetched into a folder, by relative path; {} where there is no such list."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: Path, digests: dict[str, str], where: str = WHERE) -> None:
    """Keeps what `sums` reads."""
    lines = sorted(f"{digest}  {name}\n" for name, digest in digests.items())
    write_atomic(folder / SUMS, "".join(lines).encode(), where)


@contextlib.contextmanager
def alone(home: Path, name: str, downloader: Downloader) -> Iterator[None]:
    """Lets one process fetch a name into `home`; another one waits, and then finds it."""
    path = home / ".locks" / f"{name.replace('/', '--')}.lock"
    with writing(path, downloader.where):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            downloader.progress.say(f"{name}: another process is fetching it; waiting for that")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _meta(part: Path) -> Path:
    return part.with_name(part.name + ".meta")


def _remove(part: Path) -> None:
    for path in (part, _meta(part)):
        path.unlink(missing_ok=True)


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _kept(part: Path) -> _Told | None:
    """What was said of the file that `part` is the beginning of; None where it cannot be resumed."""
    try:
        kept = _Told(**json.loads(_meta(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return kept if kept.etag and kept.size and 0 < _length(part) <= kept.size else None


def _told(response: requests.Response) -> _Told:
    etag = response.headers.get("ETag", "")
    whole = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length") if response.status_code == 200 else whole and whole[1]
    if response.headers.get("Content-Encoding", "identity") != "identity":  # compressed in spite of what was asked
        etag, length = "", None
    linked = next((step.headers["X-Linked-Etag"] for step in (*response.history, response)
                   if "X-Linked-Etag" in step.headers), "").strip('"')
    return _Told(
        etag if etag.startswith('"') else None, int(length) if length else None,
        linked if re.fullmatch(r"[0-9a-f]{64}", linked) else None,
    )


def _failure(url: str, response: requests.Response, hub: bool) -> Exception:
    """What an answer that brings no file means."""
    status, said = response.status_code, response.headers.get("X-Error-Message") or response.reason
    if status in (401, 403) and hub:
        page = re.sub(r"/(?:resolve|revision)/.*", "", url.replace("/api/models/", "/").replace("/api/", "/"))
        if response.headers.get("X-Error-Code") == "RepoNotFound":
            return HarnessError(f"{page}: no such repository, or a private one: check the name, or set HF_TOKEN")
        return HarnessError(f"{page} is gated ({status}: {said}): accept the licence at {page} and set HF_TOKEN")
    if status in (401, 403):
        return HarnessError(f"{url} is refused ({status} {said})")
    if status in (404, 410):
        return NotThere(f"{url} does not exist ({status} {said})")
    if status == 416:  # what is here is longer than the file: it begins anew
        return _Cut(f"{url} cannot be resumed")
    if status in (408, 429) or status >= 500:
        wait = response.headers.get("Retry-After", "")
        return _Cut(f"{urlsplit(url).netloc} answers {status} {said}", float(wait) if wait.isdigit() else None)
    return HarnessError(f"{url} answers {status} {said}")


def _no_way(error: requests.RequestException) -> bool:
    """Whether no connection could be made at all."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    kinds = (requests.ConnectTimeout, requests.exceptions.ProxyError, requests.exceptions.SSLError)
    return isinstance(error, kinds) or isinstance(cause, NewConnectionError)


def _reason(error: requests.RequestException) -> str:
    """The innermost cause, in its own words."""
    cause: BaseException = error
    while True:
        inner = [each for each in (getattr(cause, "reason", None), *cause.args) if isinstance(each, BaseException)]
        if not inner:
            break
        cause = inner[0]
    return (str(cause) or type(cause).__name__).rsplit(": ", 1)[-1]
