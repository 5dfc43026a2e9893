"""Files written whole or not at all, failures of the file system said so that a person can act, and paths from data
checked."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from harness.errors import HarnessError

REASONS = {
    errno.ENOSPC: "the disk is full: free some space or give another folder with {where}",
    errno.EDQUOT: "the disk quota is used up: free some space or give another folder with {where}",
    errno.EROFS: "the file system is read-only: give another folder with {where}",
    errno.EACCES: "this user may not write there: change the permissions or give another folder with {where}",
    errno.EPERM: "this user may not write there: change the permissions or give another folder with {where}",
    errno.EEXIST: "a part of the path is a file, not a folder: move it away or give another folder with {where}",
    errno.ENOTDIR: "a part of the path is a file, not a folder: move it away or give another folder with {where}",
    errno.EISDIR: "a folder has the name of this file: move it away or give another folder with {where}",
    errno.ENAMETOOLONG: "the path is too long for this file system: use shorter names or another folder with {where}",
}


class StoreError(HarnessError):
    """The run folder (or that of the weights) cannot be written. Nothing further can succeed, so work stops here."""


@contextlib.contextmanager
def writing(path: Path, where: str = "--results") -> Iterator[None]:
    """Turns a failure to write `path` into a StoreError that says what to do; `where` chooses another folder."""
    try:
        yield
    except OSError as error:
        known = REASONS.get(error.errno or 0)
        reason = known.format(where=where) if known else f"{error.strerror or error}; check the disk"
        raise StoreError(
            f"cannot write {path}: {reason}. What is finished is kept; the same command resumes"
        ) from error


def write_atomic(path: Path, data: bytes | pa.Buffer, where: str = "--results") -> None:
    """Writes `data` beside `path`, syncs it to the disk and renames: the name never shows a partial file.

    `where` is the option that chooses another folder, for the error's hint.

    Raises:
        StoreError: no space, no permission, ...; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path, where):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()  # gone already when all went well


def rename(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, so that the name itself survives a power cut where the file system can."""
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free(folder: Path) -> tuple[Path, int]:
    """The nearest folder above one that is to be written, or itself, that is there, and the bytes free on its disk."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return there, shutil.disk_usage(there).free


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; empty where there is no such folder."""
    try:
        return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_inside(path: str) -> bool:
    """Whether a relative path, as data gives it, lies below the folder that it is meant for."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path


def must_be_inside(path: str) -> None:
    """Raises ValueError for a path that is not `is_inside`."""
    if not is_inside(path):
        raise ValueError(f"{path!r}: expected a path below its folder")
