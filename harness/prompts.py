"""Prompt sets: an ordered list of prompts with ids, from a manifest under `datasets/` or a user's own file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import manifest as manifests
from harness.benchmark import PromptSpec
from harness.errors import HarnessError
from harness.identity import seed64
from harness.prompt_files import Prompt, read_file
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

    Raises:
        HarnessError: unknown set, missing or changed file, a malformed or repeated row, or nothing selected.
    """
    if spec.set in manifests.known():
        manifest = manifests.load(spec.set)
        paths = [folder / spec.path] if spec.path else [manifest.folder / file.path for file in manifest.files]
        for path, file in zip(paths, manifest.files, strict=True):
            if not path.is_file():
                raise HarnessError(
                    f"prompt set {spec.set!r}: no file {path}. Its source is {manifest.source}; save it and add "
                    f"'path: FILE' to the benchmark's prompts"
                )
            if file.sha256 and sha256_of(path) != file.sha256:
                raise HarnessError(
                    f"prompt set {spec.set!r}: {path} is not the file that its manifest names: SHA-256 is "
                    f"{sha256_of(path)}, expected {file.sha256}"
                )
        form, columns, nsfw = manifest.format, manifest.columns, manifest.nsfw
    elif spec.path:
        paths, form, columns, nsfw = [folder / spec.path], Path(spec.path).suffix.lstrip("."), {}, False
        if not paths[0].is_file():
            raise HarnessError(f"prompt set {spec.set!r}: no file {paths[0]}")
    else:
        raise HarnessError(
            f"unknown prompt set {spec.set!r}: {nearest(spec.set, sorted(manifests.known()))} "
            f"(for a file of your own add 'path: FILE')"
        )
    prompts = [prompt for path in paths for prompt in read_file(path, form, columns)]
    return PromptSet(spec.set, tuple(select(prompts, spec)), nsfw, paths[0].parent.resolve())


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
