"""The files that metrics need, by name: where they come from, under which licence, where they are looked for here.

`artifacts.yaml` is the catalogue. An artifact is one folder; a name in a benchmark may also be a local folder or
file of the user's own, or `builtin:NAME`.
"""

import functools
import os
from importlib.resources import files
from pathlib import Path, PurePosixPath

import pydantic
import yaml

from harness import weights
from harness.errors import HarnessError
from harness.identity import digest
from harness.registry import nearest

SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".pt", ".pth", ".bin", ".npz", ".pkl")


class File(pydantic.BaseModel):
    """One file of an artifact. `url` is where it is published; none means `hub`'s own address of it."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    path: str
    url: str | None = None
    size: int | None = None  # bytes, where published
    sha256: str | None = None  # where published

    @pydantic.field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("expected a path below the artifact's own folder")
        return path


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


def home() -> Path:
    """Where fetched artifacts lie, a folder each: `HARNESS_WEIGHTS`, else the user's cache."""
    named = os.environ.get("HARNESS_WEIGHTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "diffusion-noise-harness" / "weights"


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
    places = [home() / name, *_in_hub_cache(artifact)]
    for place in places:
        if all((place / file.path).is_file() for file in artifact.files):
            return place
    lacking = [file for file in artifact.files if not (places[0] / file.path).is_file()]
    known = sum(file.size or 0 for file in lacking)
    size = f", {known / 1e6:,.0f} MB" if known else ""
    raise HarnessError(
        f"{name} is not on this machine ({', '.join(file.path for file in lacking)}{size}): `harness fetch {name}`, "
        f"or put the files of {artifact.source} into {places[0]}"
    )


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


def content(name: str) -> str:
    """The digest of an artifact's files, wherever they lie; of a folder's or file's own bytes for a path."""
    place = find(name)
    if place.is_file():
        return weights.sha256_of(place)
    artifact = catalogue().get(name)
    paths = [place / file.path for file in artifact.files] if artifact else sorted(place.rglob("*"))
    wanted = {p.relative_to(place).as_posix(): p for p in paths if p.suffix in SUFFIXES and p.is_file()}
    if not wanted:
        raise HarnessError(f"{place} holds no weights (none of {', '.join(SUFFIXES)})")
    return digest({relative: weights.sha256_of(p) for relative, p in wanted.items()})


def file_of(name: str, suffix: str = "") -> Path:
    """The one file (of this suffix) of an artifact; `name` may be the path of a file.

    Raises:
        HarnessError: there are none or several.
    """
    place = find(name)
    if place.is_file():
        return place
    artifact = catalogue().get(name)
    paths = [place / file.path for file in artifact.files] if artifact else sorted(place.iterdir())
    found = [path for path in paths if path.name.endswith(suffix) and path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise HarnessError(f"{place}: expected one file{f' *{suffix}' if suffix else ''}, found {names}")
    return found[0]
