"""Prompt sets: an ordered list of prompts with ids, from a manifest under `datasets/` or a user's own file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import prompt_sources
from harness.benchmark import PromptSpec
from harness.errors import HarnessError
from harness.identity import seed64
from harness.prompt_files import Prompt, read_file
from harness.registry import nearest

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


def load(spec: PromptSpec, folder: Path) -> PromptSet:
    """The prompts that a benchmark asks for; `folder` is where its relative paths start.

    Raises:
        HarnessError: unknown set, missing or changed file, a malformed or repeated row, or nothing selected.
    """
    source = prompt_sources.find(spec, folder)
    prompt_sources.verify(source, spec.accept)
    prompts = [prompt for path in source.paths for prompt in read_file(path, source.form, source.columns)]
    if source.manifest and not spec.accept and len(prompts) != source.manifest.rows:
        raise HarnessError(
            f"prompt set {spec.set!r}: {source.paths[0].parent} holds {len(prompts):,} prompts, its manifest says "
            f"{source.manifest.rows:,}; to take them all the same run with --accept LABEL"
        )
    place = source.paths[0].parent.resolve()
    return PromptSet(source.id, tuple(select(prompts, spec)), source.nsfw, place, source.hashes(), source.revision)


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
