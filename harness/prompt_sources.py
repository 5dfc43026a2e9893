"""Where the prompts of a benchmark come from: files of a known set, of one's own, or of a data set on the Hub. They are
found on this machine and compared with what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import hub_prompts
from harness import manifest as manifests
from harness.benchmark import HUB, PromptSpec
from harness.errors import HarnessError, Lacking
from harness.manifest import DataFile, Form, Manifest
from harness.prompt_differences import differences
from harness.prompt_files import prompts_sha256, read_file
from harness.prompt_formats import FOLDERS, format_of, must_be_a_file
from harness.registry import nearest
from harness.weights import sha256_of


@dataclass(frozen=True)
class Located:
    """The files of a set on this machine, not yet read. `id` is the name of a known set, the stem of a file of one's
    own (or what the benchmark calls it), or `organisation--name--config--split` of a data set on the Hub: where the
    files lie has no part in it."""

    id: str
    form: Form
    paths: list[Path]
    manifest: Manifest | None = None
    revision: str | None = None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files by name; of a folder that of the ids and texts in it."""
        return {
            file.path: self._hash(path) for path, file in zip(self.paths, self.form.files, strict=True)
        }

    def _hash(self, path: Path) -> str:
        if self.form.format in FOLDERS:
            return prompts_sha256(read_file(path, self.form.format, self.form.columns))
        must_be_a_file(path)
        return sha256_of(path)


def locate(spec: PromptSpec, folder: Path, fetch: bool = True) -> Located:
    """The files that a prompts block names; `folder` is where its relative paths start.

    Raises:
        Lacking: they are not on this machine; those of a data set on the Hub where `fetch` is False.
        HarnessError: no such set.
    """
    if spec.set.startswith(HUB):
        hub = hub_prompts.find(spec.set.removeprefix(HUB), spec.revision, spec.config, spec.split, fetch)
        return Located(hub.id, _own_form(hub.paths, "parquet"), list(hub.paths), revision=hub.revision)
    given = folder / Path(spec.path).expanduser() if spec.path else None
    if spec.set in manifests.known():
        manifest = manifests.load(spec.set)
        form, paths = find(manifest, given)
        return Located(manifest.name, form, paths, manifest)
    if given is None:
        raise HarnessError(
            f"unknown prompt set {spec.set!r}: {nearest(spec.set, sorted(manifests.known()))} (a file of your own: "
            f"{{set: FILE}}; a data set on the Hub: {{set: 'hub:ORGANISATION/NAME'}})"
        )
    if not given.exists():
        raise HarnessError(f"prompt set {spec.set!r}: no file {given}")
    return Located(spec.set, _own_form([given], format_of(given)), [given])


def _own_form(paths: Sequence[Path], kind: str) -> Form:
    """The form of files that no manifest names."""
    return Form(files=tuple(DataFile(path=path.name, size=None, category=path.name) for path in paths), format=kind)


def form_as_it_is(found: Located) -> Form:
    """The form of a file that was accepted: that of the manifest, or where it is of another kind what its name says."""
    named, path = Path(found.form.files[0].path), found.paths[0]
    if named.suffix == path.suffix:
        return found.form
    return found.form.model_copy(update={"format": format_of(path), "columns": {}})


def find(manifest: Manifest, given: Path | None) -> tuple[Form, list[Path]]:
    """In which of its forms a set is at hand, and where its files lie: `given` (a file, or a folder with the files),
    else the set's own folder.

    Raises:
        Lacking: nothing is there; the message says where the set comes from.
    """
    home = manifest.folder if given is None else given
    for form in manifest.forms:
        paths = [home / file.path for file in form.files]
        if all(path.exists() for path in paths):
            return form, paths
    if given is not None and given.exists():  # the file or the folder itself, whatever it is called
        alone = [f for f in manifest.forms if len(f.files) == 1 and (f.format in FOLDERS) == given.is_dir()]
        if len(alone) > 1 and not given.is_dir():
            must_be_a_file(given)
            alone.sort(key=lambda form: form.files[0].sha256 != sha256_of(given))
        if alone:
            return alone[0], [given]
    lacking = " or ".join(", ".join(file.path for file in form.files) for form in manifest.forms)
    place = "FILE" if len(manifest.files) == 1 and manifest.format not in FOLDERS else "FOLDER"
    raise Lacking(
        f"prompt set {manifest.name!r} is not on this machine ({lacking} in {home}); {manifest.how_to_get}, or say "
        f"where it is with 'path: {place}' in the benchmark's prompts"
    )


def verify(found: Located, accept: Sequence[str]) -> bool:
    """Compares files with what is known of them; those whose SHA-256 is in `accept` are taken as they are.

    Where hashes are accepted, a file of one's own must have one of them. Returns whether a file was taken in place of
    the one that the manifest names.

    Raises:
        HarnessError: another size or SHA-256 (the message says what differs), or the file of another known set.
    """
    as_it_is = False
    for digest_, path, file in zip(found.hashes.values(), found.paths, found.form.files, strict=True):
        if digest_ == file.sha256:
            continue
        others = [other for other in manifests.sets_with(digest_) if other != found.id]
        if others and found.revision is None:
            raise HarnessError(
                f"prompt set {found.id!r}: {path}: this is {others[0]}'s file; write {{set: {others[0]}, path: {path}}}"
                + (f", or give the file from {found.manifest.source}" if found.manifest else "")
            )
        if digest_ in accept:
            as_it_is = found.manifest is not None
        elif found.manifest is None and accept:
            raise HarnessError(
                f"prompt set {found.id!r}: {path} has changed: its SHA-256 is {digest_}, and the benchmark accepts "
                f"{', '.join(accept)}. Change 'accept' there, or run with --accept LABEL"
            )
        elif found.manifest is not None and file.sha256 is not None:
            raise HarnessError(differences(found.manifest, found.form, file, path, digest_))
    return as_it_is
