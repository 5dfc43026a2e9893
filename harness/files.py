"""Files written whole or not at all, and failures of the file system said so that a person can act."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from harness.errors import HarnessError

REASONS = {
    errno.ENOSPC: "the disk is full: free some space or give another folder with --results",
    errno.EDQUOT: "the disk quota is used up: free some space or give another folder with --results",
    errno.EROFS: "the file system is read-only: give another folder with --results",
    errno.EACCES: "this user may not write there: change the permissions or give another folder with --results",
    errno.EPERM: "this user may not write there: change the permissions or give another folder with --results",
    errno.EEXIST: "a part of the path is a file, not a folder: move it away or give another folder with --results",
    errno.ENOTDIR: "a part of the path is a file, not a folder: move it away or give another folder with --results",
    errno.EISDIR: "a folder has the name of this file: move it away or give another folder with --results",
    errno.ENAMETOOLONG: "the path is too long for this file system: use shorter labels or another --results",
}


class StoreError(HarnessError):
    """The run folder cannot be written. No further unit can succeed, so the run stops here."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, f"{error.strerror or error}; check the disk")
        raise StoreError(
            f"cannot write {path}: {reason}. What is finished is kept; the same command resumes"
        ) from error


def write_atomic(path: Path, data: bytes | pa.Buffer) -> None:
    """Writes `data` beside `path`, syncs it to the disk and renames: the name never shows a partial file.

    Raises:
        StoreError: no space, no permission, ...; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()  # gone already when all went well


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; empty where there is no such folder."""
    try:
        return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
