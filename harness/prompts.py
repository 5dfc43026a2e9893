"""Prompt sets: an ordered list of prompts with ids, from a manifest under `datasets/`, a file or folder of one's own,
or a data set on the Hub."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.benchmark import HUB, PromptSpec
from harness.errors import HarnessError
from harness.identity import seed64
from harness.manifest import Form, Manifest
from harness.pictures import placed
from harness.prompt_differences import OR_ACCEPT
from harness.prompt_files import Prompt, prompts_sha256, read_file
from harness.prompt_sources import Located, form_as_it_is, locate, verify
from harness.registry import nearest

__all__ = ["Prompt", "PromptSet", "as_prompts", "load", "select", "to_accept"]


def as_prompts(given: "str | Sequence[str | Prompt]") -> list[Prompt]:
    """Prompts as a notebook writes them: a bare text is its own id."""
    texts = [given] if isinstance(given, str) else given
    return [Prompt(id=text, text=text) if isinstance(text, str) else text for text in texts]


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order. `id` seeds their noise; `nsfw` marks lists whose images are blurred where they are shown; the
    prompts' pictures lie below `folder` and are named by absolute paths."""

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


def load(spec: PromptSpec, folder: Path, fetch: bool = True) -> PromptSet:
    """The prompts that a benchmark asks for; `folder` is where its relative paths start.

    The `path` of a set with a manifest is its file, or the folder in which its files lie. A data set on the Hub is
    fetched where it is not here yet, unless `fetch` is False.

    Raises:
        Lacking: the set is not on this machine.
        HarnessError: unknown set, changed file, a malformed or repeated row, or nothing selected.
    """
    found = locate(spec, folder, fetch)
    as_it_is = verify(found, spec.accept)
    form = form_as_it_is(found) if as_it_is else found.form
    if spec.columns:
        form = form.model_copy(update={"columns": spec.columns})
    nsfw = spec.nsfw
    if found.manifest is not None:
        prompts, nsfw = read_set(found.manifest, form, found.paths), nsfw or found.manifest.nsfw
        if not as_it_is:
            must_agree(found.manifest, prompts, found.paths)
    else:
        prompts = _joined(found, form)
    home = (found.paths[0] if found.paths[0].is_dir() else found.paths[0].parent).resolve()
    chosen = tuple(placed(prompt, home) for prompt in select(prompts, spec))
    return PromptSet(found.id, chosen, nsfw, home, found.hashes, found.revision)


def to_accept(spec: PromptSpec, folder: Path) -> list[str]:
    """The SHA-256 of those files of a set that are not what its manifest names; of one's own files all of them.

    Raises:
        HarnessError: as `load`; or a data set on the Hub, which is known by its commit.
    """
    if spec.set.startswith(HUB):
        raise HarnessError(
            f"a data set on the Hub is not accepted by its files: pin {spec.set!r} with 'revision: COMMIT'"
        )
    found = locate(spec, folder)
    hashes = list(found.hashes.values())
    verify(found, hashes)
    known = {file.sha256 for file in found.form.files}
    return [each for each in hashes if each not in known]


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
