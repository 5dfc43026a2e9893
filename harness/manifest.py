"""Manifests: what a prompt set under `datasets/` is, where its files come from, and how they are parsed."""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path
from typing import Annotated

import pydantic
import yaml

from harness.benchmark import ROLES, resources
from harness.files import must_be_inside
from harness.prompt_formats import READERS

Sha256 = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, pydantic.StringConstraints(min_length=1, strip_whitespace=True)]
WHERE = "HARNESS_PROMPTS"  # chooses another folder for prompt sets


def home() -> Path:
    """Where fetched prompt files lie, a folder a set: `HARNESS_PROMPTS`, else the user's cache."""
    named = os.environ.get(WHERE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "diffusion-noise-harness" / "prompts"


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """One file of a prompt set (a folder for the formats `folder` and `orbits`). `category` is that of all its
    prompts, where the file says it by its name; their ids then begin with it.

    `url` gives the file itself, or the zip `archive` whose `member` it is; size and hash are always the file's own.
    """

    path: str
    url: str | None = None  # None: no address is known that needs no login
    size: int | None = pydantic.Field(None, ge=1)  # bytes
    sha256: Sha256 | None = None  # None: the official bytes are not known
    category: Text | None = None
    archive: str | None = None
    member: str | None = None

    @pydantic.model_validator(mode="after")
    def _inside(self) -> DataFile:
        for path in (self.path, self.archive, self.member):
            if path is not None:
                must_be_inside(path)
        if (self.archive is None) != (self.member is None) or (self.archive and not self.url):
            raise ValueError("an 'archive' needs its 'member' and its 'url'")
        return self


class Form(_Strict):
    """Files that hold a set's prompts, and how they are parsed (`harness.prompt_files.read_file`)."""

    files: tuple[DataFile, ...] = pydantic.Field(min_length=1)
    format: str
    columns: dict[str, str] = {}  # which column is id, text, category, truth, ...
    blocks: bool = False  # the rows come in blocks, a category each, in the order and number of `categories`

    @pydantic.model_validator(mode="after")
    def _sound(self) -> Form:
        if self.format not in READERS:
            raise ValueError(f"format {self.format!r}: expected {', '.join(READERS)}")
        if not set(self.columns) <= set(ROLES):
            raise ValueError(f"columns: expected {', '.join(ROLES)}, got {', '.join(self.columns)}")
        categories = [file.category for file in self.files]
        if len(self.files) > 1 and (None in categories or len(set(categories)) < len(categories)):
            raise ValueError("of several files each needs a category of its own")
        return self


class Manifest(Form):
    """What is known of a prompt set."""

    name: str
    title: Text
    source: Text  # what a person reads: a page, a repository and its commit
    licence: Text
    rows: int | None = pydantic.Field(ge=1)  # prompts; None: not known
    categories: dict[str, int] = {}  # prompts of each
    first: int | None = pydantic.Field(None, ge=1)  # the set is the first rows of its file
    allow_empty: bool = False  # whether an empty prompt belongs to the set
    prompts_sha256: Sha256 | None = None  # of ids and texts, `harness.prompt_files.prompts_sha256`
    nsfw: bool = False
    made_by: str | None = None  # the command that makes its files, where FOLDER stands for their place
    also: tuple[Form, ...] = ()  # other files that hold the same prompts

    @pydantic.model_validator(mode="after")
    def _counted(self) -> Manifest:
        if self.categories and sum(self.categories.values()) != self.rows:
            raise ValueError(f"categories: sum is {sum(self.categories.values())}, rows is {self.rows}")
        return self

    @property
    def forms(self) -> tuple[Form, ...]:
        """Every form in which its prompts may come, the one that `harness fetch` gets first."""
        return (self, *self.also)

    @property
    def folder(self) -> Path:
        """Where its files lie: beside the manifest where they ship, else in the user's cache."""
        beside = resources("datasets")
        return beside if all((beside / file.path).is_file() for file in self.files) else home() / self.name

    @property
    def here(self) -> bool:
        """Whether all files of one of its forms are on this machine."""
        return any(all((self.folder / file.path).exists() for file in form.files) for form in self.forms)

    @property
    def how_to_get(self) -> str:
        """What a person does to have it here."""
        if self.made_by is not None:
            folder = shlex.quote(str(home() / self.name / self.files[0].path))
            return f"`{self.made_by.replace('FOLDER', folder)}` makes it"
        if all(file.url for file in self.files):
            return f"`harness fetch {self.name}` gets it"
        by_hand = ", ".join(file.path for file in self.files if not file.url)
        fetched = f"`harness fetch {self.name}` gets the others; " if any(file.url for file in self.files) else ""
        return (
            f"{fetched}no address is known to fetch {by_hand} from (licence: {self.licence}): get it from "
            f"{self.source} and put it into {home() / self.name}"
        )


def known() -> dict[str, Path]:
    """Manifests by name."""
    return {path.stem: path for path in sorted(resources("datasets").glob("*.yaml"))}


def load(name: str) -> Manifest:
    """The manifest of a set. Raises KeyError for an unknown one."""
    return Manifest.model_validate(yaml.safe_load(known()[name].read_text(encoding="utf-8")))


@cache
def _by_sha256(paths: tuple[Path, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        for form in load(path.stem).forms:
            for file in form.files:
                if file.sha256:
                    found.setdefault(file.sha256, []).append(path.stem)
    return found


def sets_with(sha256: str) -> list[str]:
    """The sets of which a file has this SHA-256."""
    return _by_sha256(tuple(known().values())).get(sha256, [])
