"""Prompt sets: an ordered list of prompts with ids, from a manifest or from a user's own file."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One prompt. `truth` is structured knowledge of what the image must show (GenEval's metadata form)."""

    id: str
    text: str
    category: str | None = None
    class_label: int | None = None
    image: str | None = None
    truth: dict[str, Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)  # further columns of the set's file
