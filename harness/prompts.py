"""Prompt sets: an ordered list of prompts with ids, from a manifest under `datasets/` or a user's own file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import manifest as manifests
from harness.benchmark import PromptSpec
from harness.errors import HarnessError, Lacking
from harness.identity import digest, seed64
from harness.manifest import Form, Manifest
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
    """Prompts in order. `id` seeds their noise; `nsfw` marks lists whose images reports should blur; the prompts'
    own images are named from `folder`."""

    id: str
    prompts: tuple[Prompt, ...]
    nsfw: bool = False
    folder: Path = Path()


def load(spec: PromptSpec, folder: Path) -> PromptSet:
    """The prompts that a benchmark asks for; `folder` is where its relative paths start.

    The `path` of a set with a manifest is its file, or the folder in which its files lie.

    Raises:
        HarnessError: unknown set, changed file, a malformed or repeated row, or nothing selected.
        Lacking: a known set's file is not on this machine.
    """
    given = folder / spec.path if spec.path else None
    nsfw = False
    if spec.set in manifests.known():
        manifest = manifests.load(spec.set)
        form, paths = find(manifest, given)
        verify(manifest, form, paths)
        prompts, nsfw = read_set(manifest, form, paths), manifest.nsfw
        must_agree(manifest, prompts, paths)
    elif given is not None:
        paths = [given]
        prompts = read_file(given, format_of(given), {})
    else:
        raise HarnessError(
            f"unknown prompt set {spec.set!r}: {nearest(spec.set, sorted(manifests.known()))} "
            f"(for a file of your own add 'path: FILE')"
        )
    home = paths[0] if paths[0].is_dir() else paths[0].parent
    return PromptSet(spec.set, tuple(select(prompts, spec)), nsfw, home.resolve())


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
    expected = " or ".join(", ".join(file.path for file in form.files) for form in manifest.forms)
    place = "FILE" if len(manifest.files) == 1 else "FOLDER"
    raise Lacking(
        f"prompt set {manifest.name!r}: no file {home / manifest.files[0].path if given is None else given} (expected "
        f"{expected}). Its source is {manifest.source}; save it and add 'path: {place}' to the benchmark's prompts"
    )


def verify(manifest: Manifest, form: Form, paths: Sequence[Path]) -> None:
    """Compares files with what the manifest knows of them.

    Raises:
        HarnessError: another size or SHA-256, or the file of another known set.
    """
    for path, file in zip(paths, form.files, strict=True):
        if form.format in FOLDERS:
            continue
        must_be_a_file(path)
        found, size = sha256_of(path), path.stat().st_size
        if found == file.sha256:
            continue
        others = [name for name in manifests.sets_with(found) if name != manifest.name]
        if others:
            raise HarnessError(
                f"prompt set {manifest.name!r}: {path}: this is {others[0]}'s file; write 'set: {others[0]}', or give "
                f"the file from {manifest.source}"
            )
        if file.sha256 is not None:
            counted = f"it has {size:,} bytes, expected {file.size:,}; " if file.size not in (None, size) else ""
            raise HarnessError(
                f"prompt set {manifest.name!r}: {path} is not the file that its manifest names: {counted}"
                f"SHA-256 is {found}, expected {file.sha256}"
            )


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
            f"their SHA-256 is {prompts_sha256(prompts)}, expected {manifest.prompts_sha256}"
        )


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over the ids and texts in their order, whatever file they were read from."""
    return digest([[prompt.id, prompt.text] for prompt in prompts])


def _must_be(what: str, found: int, expected: int, manifest: Manifest, paths: Sequence[Path]) -> None:
    if found != expected:
        raise HarnessError(
            f"prompt set {manifest.name!r}: {_named(paths)}: {found:,} {what}, expected {expected:,} (was the file cut "
            f"short or changed?)"
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
