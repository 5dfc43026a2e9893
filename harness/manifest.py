"""Manifests: what a prompt set under `datasets/` is, where its files come from, and how they are parsed."""

from __future__ import annotations

import os
from pathlib import Path

import pydantic
import yaml

from harness.benchmark import resources
from harness.weights import must_be_inside


def home() -> Path:
    """Where fetched prompt files lie, a folder a set: `HARNESS_PROMPTS`, else the user's cache."""
    named = os.environ.get("HARNESS_PROMPTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "diffusion-noise-harness" / "prompts"


class DataFile(pydantic.BaseModel):
    """One file of a prompt set. `category` is that of all its prompts, where the file says it by its name."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    path: str
    url: str | None = None
    size: int | None = None  # bytes
    sha256: str | None = None
    category: str | None = None

    @pydantic.model_validator(mode="after")
    def _inside(self) -> DataFile:
        must_be_inside(self.path)
        return self


class Manifest(pydantic.BaseModel):
    """What is known of a prompt set."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: str  # what a person reads: a page, a repository and its commit
    licence: str
    files: tuple[DataFile, ...]
    format: str
    rows: int
    columns: dict[str, str] = {}  # which column is id, text, category, truth, ...
    nsfw: bool = False

    @property
    def folder(self) -> Path:
        """Where its files lie: beside the manifest where they ship, else in the user's cache."""
        beside = resources("datasets")
        return beside if all((beside / file.path).is_file() for file in self.files) else home() / self.name


def known() -> dict[str, Path]:
    """Manifests by name."""
    return {path.stem: path for path in sorted(resources("datasets").glob("*.yaml"))}


def load(name: str) -> Manifest:
    """The manifest of a set. Raises KeyError for an unknown one."""
    return Manifest.model_validate(yaml.safe_load(known()[name].read_text(encoding="utf-8")))
