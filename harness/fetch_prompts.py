"""`harness fetch` for prompt sets: the files of a manifest into `manifest.home()/<set>`, each by `harness.download`."""

from __future__ import annotations

import zipfile
from pathlib import Path

from harness import hub_prompts
from harness import manifest as manifests
from harness.benchmark import HUB
from harness.download import SUMS, Downloader, Unreachable, alone, must_fit, sums, write_sums
from harness.errors import HarnessError
from harness.files import rename, writing
from harness.manifest import DataFile, Manifest, home
from harness.prompt_sources import how_to_get
from harness.weights import sha256_of

LARGEST = 1 << 31  # bytes of a member of an archive whose size is not known
PIECE = 1 << 20


def fetch(name: str, verify: bool = False) -> str:
    """Gets what a set lacks here, and compares what is here with its manifest; says what was done.

    `name` is a known set, or `hub:ORGANISATION/NAME` with `@REVISION` where one is wanted. `verify` also compares the
    files whose hash the manifest does not know with what was fetched.

    Raises:
        HarnessError: a file cannot be had, or is not what it should be. What is finished is kept.
    """
    downloader = Downloader(manifests.WHERE)
    if name.startswith(HUB):
        hub_id, _, revision = name.removeprefix(HUB).partition("@")
        folder, here = hub_prompts.fetch(hub_id, revision or None, downloader)
        return _said(name, folder, here, _compare(folder, {}, verify))
    manifest = manifests.load(name)
    known = {file.path: file for file in manifest.files}
    if manifest.folder != home() / name:
        compared = _compare(manifest.folder, known, verify)
        return f"prompt set {name}: comes with this package, in {manifest.folder}{compared}"
    with alone(home(), name, downloader):
        lacking = [file for file in manifest.files if not (manifest.folder / file.path).is_file()]
        for file in lacking:
            if file.url:
                _file(manifest, file, downloader)
    if any(not file.url for file in lacking):
        raise HarnessError(f"prompt set {name}: {how_to_get(manifest)}")
    return _said(f"prompt set {name}", manifest.folder, not lacking, _compare(manifest.folder, known, verify))


def _said(what: str, folder: Path, here: bool, compared: str) -> str:
    return f"{what}: {'is here already, in' if here else 'fetched into'} {folder}{compared}"


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


def _compare(folder: Path, known: dict[str, DataFile], verify: bool) -> str:
    """Compares the files here with what is known of them; says what was compared."""
    kept = sums(folder) if verify else {}
    compared = 0
    for path in sorted({*known, *kept}):
        stated = known.get(path)
        expected, found = (stated.sha256 if stated else None) or kept.get(path), folder / path
        if expected and not found.is_file():
            raise HarnessError(f"{found} is listed in {folder / SUMS} and is not there: remove that list")
        if expected and sha256_of(found) != expected:
            raise HarnessError(
                f"{found} is not the file that is expected there (SHA-256 {sha256_of(found)}, expected {expected}): "
                f"remove it and fetch it again, or run with --accept LABEL"
            )
        compared += bool(expected)
    return f", {compared} of its hashes verified" if compared else ""
