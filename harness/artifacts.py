"""The files that metrics need, by name: where they come from, under which licence, where they are looked for here.

`artifacts.yaml` is the catalogue. An artifact is one folder; a name in a benchmark may also be a local folder or
file of the user's own, or `builtin:NAME`.
"""

import functools
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path, PurePosixPath

import pydantic
import yaml

from harness import weights
from harness.errors import HarnessError
from harness.files import must_be_inside
from harness.identity import digest
from harness.registry import nearest
from harness.weights import home

SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".pt", ".pth", ".bin", ".npz", ".pkl")


class File(pydantic.BaseModel):
    """One file of an artifact. `url` is where it is published; none means `hub`'s own address of it.

    `others` are names that stand for it where the publisher has no `path` (an index of shards, another format), in
    the order in which they are asked for. A name that ends in `.index.json` brings the shards that it lists.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    path: str
    others: tuple[str, ...] = ()
    url: str | None = None
    size: int | None = None  # bytes, where published
    sha256: str | None = None  # where published; its first digits where only these are

    @pydantic.model_validator(mode="after")
    def _inside(self) -> "File":
        for path in (self.path, *self.others):
            must_be_inside(path)
        return self

    def held(self, folder: Path) -> list[Path]:
        """What stands for this file in a folder, shards of an index included; [] where it is not all there."""
        for name in (self.path, *self.others):
            if (folder / name).is_file():
                paths = [folder / name, *((folder / name).parent / shard for shard in shards(folder / name))]
                return paths if all(path.is_file() for path in paths) else []
        return []


class Artifact(pydantic.BaseModel):
    """Files that belong together, all needed."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    title: str
    licence: str
    source: str  # the page that a person reads
    hub: str | None = None  # the repository on the Hugging Face Hub that holds them
    revision: str | None = None
    files: tuple[File, ...]


@functools.cache
def catalogue() -> dict[str, Artifact]:
    """All artifacts by name."""
    text = (files("harness") / "artifacts.yaml").read_text(encoding="utf-8")
    return {name: Artifact.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def shards(index: Path) -> list[str]:
    """The names, beside it, of the files that an `*.index.json` of the transformers library lists; [] for others.

    Raises:
        HarnessError: the index cannot be read.
    """
    if not index.name.endswith(".index.json"):
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in names:
            must_be_inside(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"{index} is no index of shards ({error}); remove it and fetch it again") from error
    return names


def find(name: str) -> Path:
    """The folder of an artifact, or the folder or file that `name` is itself.

    Raises:
        HarnessError: it is not on this machine; the message names the missing files and the command that gets them.
    """
    if name.startswith("builtin:"):
        return weights.resolve(name)
    artifact = catalogue().get(name)
    if artifact is None:
        path = Path(name).expanduser()
        if path.exists():
            return path.resolve()
        raise HarnessError(
            f"weights {name!r}: neither a file or folder here nor known by name: {nearest(name, sorted(catalogue()))}"
        )
    for place in (home() / name, *_in_hub_cache(artifact)):
        if all(file.held(place) for file in artifact.files):
            return place
    raise HarnessError(
        f"{name} is not on this machine ({_lacking(name)}): `harness fetch {name}`, or put the files of "
        f"{artifact.source} into {home() / name}"
    )


def missing(names: Iterable[str]) -> str | None:
    """What of several artifacts is not on this machine, file by file, and the one command that gets it; None where
    all is here."""
    told, wanted = [], []
    for name in dict.fromkeys(names):
        try:
            find(name)
        except HarnessError as error:
            if name in catalogue():
                wanted.append(name)
                told.append(f"{name} ({_lacking(name)})")
            else:  # no command gets that
                return str(error)
    if not wanted:
        return None
    pronoun = "it" if len(wanted) == 1 else "them"
    return f"not on this machine: {', '.join(told)}; `harness fetch {' '.join(wanted)}` gets {pronoun}"


def _lacking(name: str) -> str:
    """The files of an artifact that are not in its own folder, with their sizes where known."""
    lacking = [file for file in catalogue()[name].files if not file.held(home() / name)]
    return ", ".join(file.path + (f", {megabytes(file.size)}" if file.size else "") for file in lacking)


def megabytes(size: int) -> str:
    """A size for reading: `3.7 MB`."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:,.1f} MB"


def _in_hub_cache(artifact: Artifact) -> list[Path]:
    """The snapshot folder of the Hub's own cache, where one of the files is in it."""
    if artifact.hub is None:
        return []
    from huggingface_hub import try_to_load_from_cache

    first = artifact.files[0].path
    cached = try_to_load_from_cache(artifact.hub, first, revision=artifact.revision)
    if not isinstance(cached, str):
        return []
    return [Path(cached).parents[len(PurePosixPath(first).parts) - 1]]


def paths(name: str) -> list[Path]:
    """The files of an artifact here; of a folder or file for a path, all weights and configuration files.

    Raises:
        HarnessError: it is not here, or holds no weights.
    """
    place, artifact = find(name), catalogue().get(name)
    if place.is_file():
        return [place]
    if artifact is not None:
        return [path for file in artifact.files for path in file.held(place)]
    found = sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise HarnessError(f"{place} holds no weights (none of {', '.join(SUFFIXES)})")
    return found


def content(name: str) -> str:
    """The digest of an artifact's files, wherever they lie; of a single file its SHA-256, whatever its name."""
    place, found = find(name), paths(name)
    if len(found) == 1:
        return weights.sha256_of(found[0])
    return digest({path.relative_to(place).as_posix(): weights.sha256_of(path) for path in found})


def file_of(name: str, suffix: str = "") -> Path:
    """The one file (of this suffix) of an artifact; `name` may be the path of a file.

    Raises:
        HarnessError: there are none or several.
    """
    place, artifact = find(name), catalogue().get(name)
    if place.is_file():
        return place
    candidates = paths(name) if artifact else sorted(place.iterdir())
    found = [path for path in candidates if path.name.endswith(suffix) and path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise HarnessError(f"{place}: expected one file{f' *{suffix}' if suffix else ''}, found {names}")
    return found[0]
