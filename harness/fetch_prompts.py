"""`harness fetch` for prompt sets: the files of a manifest into `manifest.home()/<set>`, each by `harness.download`."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path

from harness import hub_prompts, prompts
from harness import manifest as manifests
from harness.benchmark import HUB, PromptSpec
from harness.download import SUMS, Downloader, Unreachable, alone, must_fit, sums, write_sums
from harness.errors import HarnessError
from harness.files import rename, writing
from harness.manifest import DataFile, Manifest, home
from harness.weights import sha256_of

LARGEST = 1 << 31  # bytes of a member of an archive whose size is not known
PIECE = 1 << 20
# Damaged; encrypted or packed in an unknown way (RuntimeError); other content than expected.
BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


def fetch(name: str, downloader: Downloader, verify: bool = False) -> str:
    """Gets what a set lacks here, reads it and compares it with its manifest; says what was done.

    `name` is a known set, or `hub:ORGANISATION/NAME` with `@REVISION` where one is wanted. `verify` compares the files
    also with the hashes that were kept when they were fetched.

    Raises:
        HarnessError: a file cannot be had, or is not what it should be. What is finished is kept.
    """
    if name.startswith(HUB):
        hub_id, _, revision = name.removeprefix(HUB).partition("@")
        folder, here = hub_prompts.fetch(hub_id, revision or None, downloader)
        if verify:
            _compare(folder)
        return f"{name}: {'is here already, in' if here else 'fetched into'} {folder}"
    manifest = manifests.load(name)
    here = manifest.here
    if not here:
        with alone(home(), name, downloader):
            _fetch(manifest, downloader)
    elif verify:
        _compare(manifest.folder)
    read = prompts.load(PromptSpec.model_validate(name), Path())
    done = "is here already, in" if here else "fetched into"
    return f"prompt set {name}: {done} {manifest.folder}, {len(read.prompts):,} prompts, {_known(manifest)}"


def _known(manifest: Manifest) -> str:
    if manifest.prompts_sha256 or all(file.sha256 for file in manifest.files):
        return "verified"
    return "their number verified" if manifest.rows else "not verified: nothing is known of them"


def _fetch(manifest: Manifest, downloader: Downloader) -> None:
    lacking = [file for file in manifest.files if not (manifest.folder / file.path).exists()]
    for file in lacking:
        if file.url:
            _file(manifest, file, downloader)
    if any(not file.url for file in lacking):
        raise HarnessError(f"prompt set {manifest.name}: {manifest.how_to_get}")


def _file(manifest: Manifest, file: DataFile, downloader: Downloader) -> None:
    assert file.url is not None
    folder = manifest.folder
    try:
        if file.archive is None:
            downloader.file(file.url, folder, file.path, size=file.size, sha256=file.sha256)
            return
        if not (folder / file.archive).is_file():
            downloader.file(file.url, folder, file.archive)
    except Unreachable as error:
        unpack = f", unpack {file.member} from it" if file.archive else ""
        raise Unreachable(f"prompt set {manifest.name}: {error}; on another machine get {file.url}{unpack} and put "
                          f"that here as {folder / file.path}") from error
    _unpack(folder, file)


def _unpack(folder: Path, file: DataFile) -> None:
    """Makes a file of its archive's member; the archive goes, unless the disk was full."""
    assert file.archive is not None
    archive, part = folder / file.archive, folder / f"{file.path}.part"
    kept = {name: known for name, known in sums(folder).items() if name != file.archive}
    try:
        digest = _member(archive, file, part)
        with writing(part, manifests.WHERE):
            rename(part, folder / file.path)
        write_sums(folder, kept | {file.path: digest}, manifests.WHERE)
    except BAD_ARCHIVE as error:
        archive.unlink()
        write_sums(folder, kept, manifests.WHERE)
        raise HarnessError(f"{file.url}: {error}. What came is removed; has it changed at its source?") from error
    finally:
        part.unlink(missing_ok=True)
    archive.unlink()


def _member(archive: Path, file: DataFile, part: Path) -> str:
    """Writes a file of its archive's member; its SHA-256. Raises ValueError where it is not what it should be."""
    assert file.member is not None
    most = file.size or LARGEST
    with writing(part, manifests.WHERE), zipfile.ZipFile(archive) as opened:
        if file.member not in opened.namelist():
            raise ValueError(f"the archive holds no {file.member}")
        size = opened.getinfo(file.member).file_size  # no more than that is ever unpacked, whatever the archive holds
        if size > most or (file.size is not None and size < file.size):
            raise ValueError(f"{file.member} has {size:,} bytes, expected {'at most ' * (not file.size)}{most:,}")
        must_fit(part.parent, size, file.path, manifests.WHERE)
        with opened.open(file.member) as member, part.open("wb") as out:
            shutil.copyfileobj(member, out, PIECE)
            out.flush()
            os.fsync(out.fileno())
    digest = sha256_of(part)
    if file.sha256 not in (None, digest):
        raise ValueError(f"{file.member} has the SHA-256 {digest}, expected {file.sha256}")
    return digest


def _compare(folder: Path) -> None:
    """Compares files with the hashes that were kept when they were fetched."""
    for path, expected in sums(folder).items():
        if not (folder / path).is_file():
            raise HarnessError(f"{folder / path} is gone, though {SUMS} beside it lists it: remove that line or fetch "
                               f"the file again")
        if sha256_of(folder / path) != expected:
            raise HarnessError(f"{folder / path} has changed since it was fetched (SHA-256 {sha256_of(folder / path)}, "
                               f"then {expected}): remove it and fetch it again")
