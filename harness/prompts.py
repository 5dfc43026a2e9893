"""Prompt sets: an ordered list of prompts with ids, from a manifest under `datasets/`, a file or folder of one's own,
or a data set on the Hub."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import hub_prompts
from harness import manifest as manifests
from harness.benchmark import HUB, PromptSpec
from harness.errors import HarnessError
from harness.identity import digest, seed64
from harness.manifest import DataFile, Form, Manifest
from harness.prompt_differences import OR_ACCEPT, differences
from harness.prompt_files import Prompt, read_file
from harness.prompt_formats import FOLDERS, format_of, must_be_a_file
from harness.registry import nearest
from harness.weights import sha256_of

__all__ = ["Prompt", "PromptSet", "as_prompts", "load", "select"]


def as_prompts(given: "str | Sequence[str | Prompt]") -> list[Prompt]:
    """Prompts as a notebook writes them: a bare text is its own id."""
    texts = [given] if isinstance(given, str) else given
    return [Prompt(id=text, text=text) if isinstance(text, str) else text for text in texts]


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order. `id` seeds their noise; `nsfw` marks lists whose images are blurred where they are shown; the
    prompts' own images are named from `folder`."""

    id: str
    prompts: tuple[Prompt, ...]
    nsfw: bool = False
    folder: Path = Path()
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by file name
    revision: str | None = None  # the commit of a data set on the Hub

    def definition(self) -> dict[str, Any]:
        """What a run keeps of it."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"set": self.id, "files": self.files, "nsfw": self.nsfw} | revision


class NotHere(HarnessError):
    """The files of a known prompt set are not on this machine."""


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


def load(spec: PromptSpec, folder: Path) -> PromptSet:
    """The prompts that a benchmark asks for; `folder` is where its relative paths start.

    The `path` of a set with a manifest is its file, or the folder in which its files lie.

    Raises:
        NotHere: the set is known, but not on this machine.
        HarnessError: unknown set, changed file, a malformed or repeated row, or nothing selected.
    """
    found = locate(spec, folder)
    as_it_is = verify(found, spec.accept)
    form = _form_as_it_is(found) if as_it_is else found.form
    if spec.columns:
        form = form.model_copy(update={"columns": spec.columns})
    nsfw = spec.nsfw
    if found.manifest is not None:
        prompts, nsfw = read_set(found.manifest, form, found.paths), nsfw or found.manifest.nsfw
        if not as_it_is:
            must_agree(found.manifest, prompts, found.paths)
    else:
        prompts = _joined(found, form)
    home = found.paths[0] if found.paths[0].is_dir() else found.paths[0].parent
    chosen = tuple(select(prompts, spec))
    return PromptSet(found.id, chosen, nsfw, home.resolve(), found.hashes(), found.revision)


def to_accept(spec: PromptSpec, folder: Path) -> list[str]:
    """The SHA-256 of those files of a set that are not what its manifest names; of one's own files all of them.

    Raises:
        HarnessError: as `load`.
    """
    found = locate(spec, folder)
    hashes = list(found.hashes().values())
    verify(found, hashes)
    known = {file.sha256 for file in found.form.files}
    return [each for each in hashes if each not in known]


def locate(spec: PromptSpec, folder: Path) -> Located:
    """The files that a prompts block names. Raises as `load`."""
    if spec.set.startswith(HUB):
        hub = hub_prompts.find(spec.set.removeprefix(HUB), spec.revision, spec.config, spec.split)
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


def _form_as_it_is(found: Located) -> Form:
    """The form of a file that was accepted: that of the manifest, or where it is of another kind what its name says."""
    named, path = Path(found.form.files[0].path), found.paths[0]
    if named.suffix == path.suffix:
        return found.form
    return found.form.model_copy(update={"format": format_of(path), "columns": {}})


def _joined(found: Located, form: Form) -> list[Prompt]:
    """The prompts of one's own file, or of the pieces that the Hub cuts a data set into, rows numbered throughout."""
    prompts: list[Prompt] = []
    for path in found.paths:
        read = read_file(path, form.format, form.columns)
        if all(prompt.id == str(number) for number, prompt in enumerate(read)):
            read = [replace(prompt, id=str(len(prompts) + number)) for number, prompt in enumerate(read)]
        prompts += read
    twice = [key for key, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if twice:
        raise HarnessError(f"prompt set {found.id!r}: two rows have the same id {twice[0]!r}, in two of its files")
    return prompts


def find(manifest: Manifest, given: Path | None) -> tuple[Form, list[Path]]:
    """In which of its forms a set is at hand, and where its files lie: `given` (a file, or a folder with the files),
    else the set's own folder.

    Raises:
        NotHere: nothing is there; the message says where the set comes from.
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
    expected = " or ".join(", ".join(file.path for file in form.files) for form in manifest.forms)
    place = "FILE" if len(manifest.files) == 1 else "FOLDER"
    raise NotHere(
        f"prompt set {manifest.name!r} is not on this machine: no file "
        f"{home / manifest.files[0].path if given is None else given} (expected {expected}); {manifest.how_to_get}, or "
        f"say where it is with 'path: {place}' in the benchmark's prompts"
    )


def verify(found: Located, accept: Sequence[str]) -> bool:
    """Compares files with what is known of them; those whose SHA-256 is in `accept` are taken as they are.

    Where hashes are accepted, a file of one's own must have one of them. Returns whether a file was taken in place of
    the one that the manifest names.

    Raises:
        HarnessError: another size or SHA-256 (the message says what differs), or the file of another known set.
    """
    as_it_is = False
    for digest_, path, file in zip(found.hashes().values(), found.paths, found.form.files, strict=True):
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


def read_set(manifest: Manifest, form: Form, paths: Sequence[Path]) -> list[Prompt]:
    """The prompts of a set's files. Of several files, or of blocks, the ids are `category/id`.

    Raises:
        HarnessError: as `read_file`; or blocks of other sizes than the manifest says.
    """
    prompts: list[Prompt] = []
    for path, file in zip(paths, form.files, strict=True):
        read = read_file(path, form.format, form.columns, manifest.allow_empty)
        if file.category is not None:
            read = [replace(p, id=f"{file.category}/{p.id}", category=file.category) for p in read]
        prompts += read
    if form.blocks:
        places = [(name, number) for name, count in manifest.categories.items() for number in range(count)]
        _must_be("rows", len(prompts), len(places), manifest, paths)
        prompts = [
            replace(prompt, id=f"{name}/{number}", category=name)
            for prompt, (name, number) in zip(prompts, places, strict=True)
        ]
    return prompts[: manifest.first]


def must_agree(manifest: Manifest, prompts: Sequence[Prompt], paths: Sequence[Path]) -> None:
    """Compares prompts as read with the manifest: how many, of which categories, and their ids and texts.

    Raises:
        HarnessError: they differ.
    """
    if manifest.rows is not None:
        _must_be("prompts", len(prompts), manifest.rows, manifest, paths)
    if manifest.categories:
        counts = Counter(prompt.category or "" for prompt in prompts)
        for name in sorted({*counts, *manifest.categories}):
            expected = manifest.categories.get(name, 0)
            _must_be(f"prompts of category {name!r}", counts[name], expected, manifest, paths)
    if manifest.prompts_sha256 is not None and prompts_sha256(prompts) != manifest.prompts_sha256:
        raise HarnessError(
            f"prompt set {manifest.name!r}: {_named(paths)}: as many prompts as expected, but other ids or texts: "
            f"their SHA-256 is {prompts_sha256(prompts)}, expected {manifest.prompts_sha256}; {OR_ACCEPT}"
        )


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over the ids and texts in their order, whatever file they were read from."""
    return digest([[prompt.id, prompt.text] for prompt in prompts])


def _must_be(what: str, found: int, expected: int, manifest: Manifest, paths: Sequence[Path]) -> None:
    if found != expected:
        raise HarnessError(
            f"prompt set {manifest.name!r}: {_named(paths)}: {found:,} {what}, expected {expected:,} (was the file cut "
            f"short or changed?); {OR_ACCEPT}"
        )


def _named(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files in {paths[0].parent}"


def select(prompts: list[Prompt], spec: PromptSpec) -> list[Prompt]:
    """The categories asked for, then the first n or a seeded random n (in the set's order)."""
    chosen = prompts
    if spec.category is not None:
        wanted = [spec.category] if isinstance(spec.category, str) else spec.category
        have = sorted({prompt.category for prompt in prompts if prompt.category is not None})
        for name in wanted:
            if name not in have:
                raise HarnessError(f"prompt set {spec.set!r} has no category {name!r}: {nearest(name, have)}")
        chosen = [prompt for prompt in prompts if prompt.category in wanted]
    if spec.first is not None:
        chosen = chosen[: spec.first]
    if spec.sample is not None:
        # Each prompt's place in the draw depends on its id alone, so a larger sample contains the smaller one.
        drawn = sorted(chosen, key=lambda prompt: seed64(f"subset/{spec.set}/{prompt.id}"))[: spec.sample]
        kept = {prompt.id for prompt in drawn}
        chosen = [prompt for prompt in chosen if prompt.id in kept]
    if not chosen:
        raise HarnessError(f"prompt set {spec.set!r} is empty")
    return chosen
