"""Where the prompts of a benchmark come from: the files of a known set, of one's own, or of a data set on the Hub.

They are found on this machine, and compared with what is known of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from harness import hub_prompts
from harness import manifest as manifests
from harness.benchmark import HUB, PromptSpec
from harness.errors import HarnessError
from harness.manifest import Manifest
from harness.prompt_files import read_file
from harness.registry import nearest
from harness.weights import sha256_of


class NotHere(HarnessError):
    """The files of a prompt set are not on this machine."""


@dataclass(frozen=True)
class Source:
    """A set's files on this machine. `id` seeds the noise of its prompts: it is the set's name, the stem of a file of
    one's own, or `organisation--name--config--split` of a data set on the Hub; where files lie has no part in it."""

    id: str
    paths: tuple[Path, ...]
    form: str
    columns: dict[str, str]
    nsfw: bool = False
    manifest: Manifest | None = None
    revision: str | None = None  # the commit of a data set on the Hub

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files, by name."""
        names = [path.name for path in self.paths]
        if self.manifest and len(names) > 1:
            names = [file.path for file in self.manifest.files]
        return {name: sha256_of(path) for name, path in zip(names, self.paths, strict=True)}


def find(spec: PromptSpec, folder: Path) -> Source:
    """The files that a prompts block names; `folder` is where its relative paths start.

    Raises:
        NotHere: the set is known, but not on this machine.
        HarnessError: neither a known set nor a file, or the Hub's data set cannot be had.
    """
    if spec.set.startswith(HUB):
        found = hub_prompts.find(spec.set.removeprefix(HUB), spec.revision, spec.config, spec.split)
        return Source(found.id, found.paths, "parquet", spec.columns, spec.nsfw, revision=found.revision)
    path = None if spec.path is None else folder / Path(spec.path).expanduser()
    if spec.set in manifests.known():
        return _known(spec, path)
    if path is None:
        raise HarnessError(
            f"unknown prompt set {spec.set!r}: {nearest(spec.set, sorted(manifests.known()))} (a file of your own: "
            f"{{set: FILE}}; a data set on the Hub: {{set: 'hub:ORGANISATION/NAME'}})"
        )
    if not path.is_file():
        raise HarnessError(f"prompt set {spec.set!r}: no file {path}")
    return Source(spec.set, (path,), _form(path), spec.columns, spec.nsfw)


def _known(spec: PromptSpec, path: Path | None) -> Source:
    manifest = manifests.load(spec.set)
    if path is None or path.is_dir():
        place = path or manifest.folder
        paths = tuple(place / file.path for file in manifest.files)
    elif len(manifest.files) == 1:
        paths = (path,)
    else:
        names = ", ".join(file.path for file in manifest.files)
        raise HarnessError(f"prompt set {spec.set!r}: path: expected the folder that holds {names}, got {path}")
    lacking = [found for found in paths if not found.is_file()]
    if lacking:
        raise NotHere(f"prompt set {spec.set!r} is not on this machine: no file {lacking[0]}; {how_to_get(manifest)}, "
                      f"or give its place with 'path: FILE'")
    own_form = Path(manifest.files[0].path).suffix != paths[0].suffix  # an accepted file of another kind
    return Source(
        manifest.name, paths, _form(paths[0]) if own_form else manifest.format,
        spec.columns or ({} if own_form else manifest.columns), manifest.nsfw or spec.nsfw, manifest,
    )


def how_to_get(manifest: Manifest) -> str:
    """What a person does to have a set here."""
    if all(file.url for file in manifest.files):
        return f"`harness fetch {manifest.name}` gets it"
    by_hand = ", ".join(file.path for file in manifest.files if not file.url)
    fetched = f"`harness fetch {manifest.name}` gets the others, " if any(file.url for file in manifest.files) else ""
    return (
        f"{fetched}no address is known to fetch {by_hand} from (licence: {manifest.licence}); get it from "
        f"{manifest.source} and put it into {manifests.home() / manifest.name}"
    )


def _form(path: Path) -> str:
    return path.suffix.lstrip(".")


# ---- the right file? ----


def verify(source: Source, accept: list[str]) -> None:
    """Compares the files with the manifest; those whose SHA-256 is in `accept` are taken as they are.

    A file of one's own must have an accepted hash where one is given.

    Raises:
        HarnessError: the file of another known set, or another file than it should be; the message says what differs.
    """
    expected = [file.sha256 for file in source.manifest.files] if source.manifest else [None] * len(source.paths)
    for path, wanted in zip(source.paths, expected, strict=True):
        found = sha256_of(path)
        if found == wanted:
            continue
        if source.revision is None:
            _not_another_set(source, path, found)
        if found in accept or (wanted is None and not accept):
            continue
        if source.manifest is None:
            raise HarnessError(
                f"prompt set {source.id!r}: {path} has changed: its SHA-256 is {found}, the benchmark accepts "
                f"{', '.join(accept)}. Change 'accept' there, or run with --accept LABEL"
            )
        raise HarnessError(_different(source, path, wanted, found))


def to_accept(source: Source) -> list[str]:
    """The SHA-256 of those files that are not what the manifest names; of one's own files all of them.

    Raises:
        HarnessError: the file of another known set.
    """
    verify(source, list(source.hashes().values()))
    known = {file.sha256 for file in source.manifest.files} if source.manifest else set()
    return [digest for digest in source.hashes().values() if digest not in known]


def _not_another_set(source: Source, path: Path, found: str) -> None:
    """Two lists that go by one name are told apart here, and a known list is not taken under another name."""
    sets = [manifests.load(name) for name in manifests.known()]
    names = [each.name for each in sets if any(file.sha256 == found for file in each.files)]
    if names and source.id not in names:
        raise HarnessError(
            f"prompt set {source.id!r}: {path} is the file of the known set {' or '.join(map(repr, names))}: say "
            f"{{set: {names[0]}, path: {path}}}"
        )


def _different(source: Source, path: Path, wanted: str | None, found: str) -> str:
    """What sets a file apart from the one that the manifest names."""
    manifest = source.manifest
    assert manifest is not None
    file = manifest.files[source.paths.index(path)]
    lines = [f"SHA-256: expected {wanted or file.sha256 or 'another one of those accepted'}, found {found}"]
    size = path.stat().st_size
    if file.size not in (None, size):
        lines.append(f"bytes: expected {file.size:,}, found {size:,}")
    cause = _mere_form(path, wanted)
    if cause:
        lines.append(f"only {cause}: the text is the same")
    try:
        prompts = read_file(path, source.form, source.columns)
    except HarnessError as error:
        lines.append(f"it cannot be read as the manifest says: {error}")
    else:
        if len(manifest.files) == 1:
            lines.append(f"rows: expected {manifest.rows:,}, found {len(prompts):,}")
        columns = list(dict.fromkeys([*source.columns.values(), *prompts[0].columns]))
        lines.append(f"columns: expected {', '.join(manifest.columns.values())}, found {', '.join(columns)}")
        categories = Counter(prompt.category for prompt in prompts if prompt.category is not None)
        if categories:
            shown = ", ".join(f"{name} {count}" for name, count in sorted(categories.items())[:20])
            lines.append(f"categories: found {len(categories)}: {shown}")
    return (
        f"prompt set {source.id!r}: {path} is not the file that its manifest names:\n"
        + "".join(f"    {line}\n" for line in lines)
        + f"  To take it all the same run with --accept LABEL, or add 'accept: {found}' to the benchmark's prompts; "
        f"for a list of your own choose a name of your own: {{set: NAME, path: {path}}}"
    )


def _mere_form(path: Path, wanted: str | None) -> str | None:
    """How the bytes differ where the text does not: what editors, git and spreadsheets do to a file."""
    data = path.read_bytes()
    plain = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    forms = {
        "the ends of its lines differ": {plain, plain.replace(b"\n", b"\r\n")},
        "a byte-order mark differs": {data.removeprefix(b"\xef\xbb\xbf"), b"\xef\xbb\xbf" + data},
        "the end of its last line differs": {data + b"\n", data.rstrip(b"\r\n")},
    }
    for cause, others in forms.items():
        if wanted in {hashlib.sha256(other).hexdigest() for other in others}:
            return cause
    return None
