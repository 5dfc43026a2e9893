"""`harness fetch` for prompt sets: the files of a manifest into `manifest.home()/<set>`, each by `harness.download`."""

from __future__ import annotations

import zipfile
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


def fetch(name: str, verify: bool = False) -> str:
    """Gets what a set lacks here, reads it and compares it with its manifest; says what was done.

    `name` is a known set, or `hub:ORGANISATION/NAME` with `@REVISION` where one is wanted. `verify` compares the files
    also with the hashes that were kept when they were fetched.

    Raises:
        HarnessError: a file cannot be had, or is not what it should be. What is finished is kept.
    """
    downloader = Downloader(manifests.WHERE)
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
        what = file.path if file.archive is None else f"{file.archive}, unpack {file.member},"
        raise Unreachable(f"prompt set {manifest.name}: {error}; on another machine get {what} from {file.url} and put "
                          f"it into {folder} as {file.path}") from error
    _unpack(folder, file)


def _unpack(folder: Path, file: DataFile) -> None:
    """Makes a file of its archive's member; the archive goes, whether that is good or not."""
    assert file.archive is not None
    assert file.member is not None
    archive, part = folder / file.archive, folder / f"{file.path}.part"
    try:
        with writing(part, manifests.WHERE), zipfile.ZipFile(archive) as opened, opened.open(file.member) as member:
            size, most = opened.getinfo(file.member).file_size, file.size or LARGEST
            if size > most or (file.size is not None and size != file.size):
                raise HarnessError(f"{file.url}: {file.member} has {size:,} bytes, expected "
                                   f"{'at most ' if file.size is None else ''}{most:,}")
            must_fit(folder, size, file.path, manifests.WHERE)
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as out:
                while piece := member.read(PIECE):  # never more than the size above, whatever the archive holds
                    out.write(piece)
        digest = sha256_of(part)
        if file.sha256 not in (None, digest):
            raise HarnessError(f"{file.url} gave {file.member} of SHA-256 {digest}, expected {file.sha256}: it has "
                               f"changed at its source")
        with writing(part, manifests.WHERE):
            rename(part, folder / file.path)
    except KeyError as error:
        raise HarnessError(f"{file.url} holds no {file.member}: it has changed at its source") from error
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # damaged; encrypted; unknown
        raise HarnessError(f"{file.url} gave an archive that cannot be opened ({error})") from error
    finally:
        part.unlink(missing_ok=True)
        archive.unlink()
    kept = {name: known for name, known in sums(folder).items() if name != file.archive}
    write_sums(folder, kept | {file.path: digest})


def _compare(folder: Path) -> None:
    """Compares files with the hashes that were kept when they were fetched."""
    for path, expected in sums(folder).items():
        if not (folder / path).is_file():
            raise HarnessError(f"{folder / path} is gone, though {SUMS} beside it lists it: remove that line or fetch "
                               f"the file again")
        if sha256_of(folder / path) != expected:
            raise HarnessError(f"{folder / path} has changed since it was fetched (SHA-256 {sha256_of(folder / path)}, "
                               f"then {expected}): remove it and fetch it again")
