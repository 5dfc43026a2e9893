"""Files of prompts: rows made into prompts and checked; every fault with its file, row and column."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import is_inside
from harness.identity import digest
from harness.prompt_formats import LONGEST, Row, read_rows

WHOLE = "*"  # in place of a column's name: the whole row, as an object
NUMBER = "#"  # in place of a column's name: the row's number from 0
LONGEST_ID = 200  # characters


@dataclass(frozen=True)
class Prompt:
    """One prompt. `truth` is structured knowledge of what the image must show: GenEval's metadata, or the pictures of
    an orbit. `image` is the path of its own picture: below the set's folder as read, absolute once the set is loaded.
    """

    id: str
    text: str
    category: str | None = None
    class_label: int | None = None
    image: str | None = None
    truth: dict[str, Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)  # further columns of the set's file


def read_file(path: Path, form: str, columns: dict[str, str], allow_empty: bool = False) -> list[Prompt]:
    """The prompts of a file.

    Args:
        form: one of `harness.prompt_formats.READERS`.
        columns: which column is `id`, `text`, `category`, `class_label`, `image`, `truth` (`*`: the whole row; `#`:
            the row's number). Empty: the text is looked for under prompt, text or caption in any case (a .txt file is
            a prompt a line), the id under id, the prompt's own picture under image (a path below the file's folder),
            the class under class_label (in these letters), the truth under truth, or it is the whole row where that
            is GenEval's (tag, include). Without a column of ids the row's place is the id: its number from 0, or
            `category/number` in a file divided into categories.
        allow_empty: whether a prompt may be the empty text.

    Raises:
        HarnessError: the file, its row and column, and what is wrong there.
    """
    rows = read_rows(path, form)
    if form == "seeds":  # made by rule: there is no text, and nothing that could be wrong in a row
        if columns:
            raise HarnessError(f"{path}: 'columns' has no meaning for ranges of seeds: leave it out")
        roles = {"id": "seed"}
        prompts = [Prompt(str(row["seed"]), "", row["category"], columns={"seed": row["seed"]}) for _, row in rows]
    else:
        roles = columns or _guess(path, list(rows[0][1]))
        prompts = [_prompt(path, row, roles, allow_empty) for row in rows]
    seen: dict[str, str] = {}
    for (place, _), prompt in zip(rows, prompts, strict=True):
        if prompt.id in seen:
            raise HarnessError(
                f"{path}: rows {seen[prompt.id]} and {place} have the same id {prompt.id!r}"
                + (f" (column {roles['id']})" if "id" in roles else "")
            )
        seen[prompt.id] = place
    return prompts


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over the ids and texts in their order, whatever file they were read from."""
    return digest([[prompt.id, prompt.text] for prompt in prompts])


def _guess(path: Path, header: list[str]) -> dict[str, str]:
    lower = {name.lower(): name for name in header}
    text = next((lower[name] for name in ("prompt", "prompts", "text", "caption") if name in lower), None)
    if text is None:
        raise HarnessError(f"{path}: no column called prompt, text or caption; it has {str(header)[:200]}")
    roles: dict[str, str] = {role: lower[role] for role in ("id", "category", "image", "truth") if role in lower}
    if "class_label" in header:
        roles["class_label"] = "class_label"
    if {"tag", "include"} <= set(header):  # GenEval's own metadata
        roles |= {"category": "tag", "truth": WHOLE}
    return {"text": text} | roles


def _prompt(path: Path, placed: Row, roles: dict[str, str], allow_empty: bool) -> Prompt:
    place, row = placed

    def value(role: str) -> Any:
        column = roles.get(role)
        if column is None:
            return None
        if column == WHOLE:
            return row
        if column == NUMBER:
            return int(place.rpartition("/")[2])
        if column not in row:
            raise HarnessError(f"{path}: row {place} has no {column!r} (the prompt's {role})")
        return row[column]

    def wrong(role: str, expected: str) -> HarnessError:
        return HarnessError(
            f"{path}: row {place}: {roles.get(role, role)}: expected {expected}, got {str(value(role))[:60]!r}"
        )

    text = value("text")
    if not isinstance(text, str) or len(text) > LONGEST or not _clean(text, "\t\r\n"):
        raise wrong("text", f"a text of at most {LONGEST} characters without control characters")
    if not text.strip() and not allow_empty:
        raise wrong("text", "a prompt, not an empty text")

    key = value("id") if "id" in roles else place
    if type(key) is int:
        key = str(key)
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_ID or not key.strip() or not _clean(key):
        raise wrong("id", f"a whole number or a text of 1 to {LONGEST_ID} characters without control characters")
    if "id" in roles and ("/" in key or "\\" in key or key in (".", "..")):
        raise wrong("id", "a name and not a path (without '/' and '\\')")
    if "id" not in roles and not is_inside(key):  # of a category's name in a JSON file
        raise wrong("id", "a category that is no path")

    category = value("category")
    if category is not None:
        if type(category) not in (str, int) or len(str(category)) > LONGEST_ID or not _clean(str(category)):
            raise wrong("category", f"a text of at most {LONGEST_ID} characters without control characters")
        category = str(category).strip() or None  # DrawBench has a trailing blank in one

    label = value("class_label")
    if label is not None:
        if not str(label).isascii() or not str(label).isdigit() or len(str(label)) > 9:
            raise wrong("class_label", "a whole number from 0")
        label = int(label)

    image = value("image") or None
    if image is not None and not (isinstance(image, str) and _clean(image) and is_inside(image)):
        raise wrong("image", "a path below the folder of this file")

    truth = value("truth")
    if truth is not None and not isinstance(truth, dict):
        raise wrong("truth", "an object")
    frames = (truth or {}).get("frames")
    for each in frames if isinstance(frames, list) else ():
        if not (isinstance(each, str) and _clean(each) and is_inside(each)):
            raise HarnessError(
                f"{path}: row {place}: {roles['truth']}.frames: expected paths below the folder of this file, got "
                f"{str(each)[:60]!r}"
            )
    for name, cell in row.items():
        if isinstance(cell, str) and "\0" in cell:
            raise HarnessError(f"{path}: row {place}: {name}: holds a NUL character (U+0000): {cell[:60]!r}")
    further = {name: cell for name, cell in row.items() if name not in roles.values()}
    return Prompt(key, text, category, label, image, truth, further)


def _clean(text: str, allowed: str = "") -> bool:
    """Whether a text has no control characters but the allowed ones, and no half of a surrogate pair."""
    return text.isprintable() or all(
        character in allowed or unicodedata.category(character) not in ("Cc", "Cs") for character in text
    )
