"""Files of prompts: each format read into rows, and rows into prompts; every fault with its file and row."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness.errors import HarnessError

FORMATS = ("csv", "tsv", "jsonl", "txt")
ROW = "*"  # in place of a column's name: the whole row, as an object
LONGEST = 100_000  # characters of one prompt; far above any real one, far below what stalls a tokenizer


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


def read_file(path: Path, form: str, columns: dict[str, str]) -> list[Prompt]:
    """The prompts of a file.

    `columns` says which column is `id`, `text`, `category`, `truth`, ... (`*`: the whole row). Without it the text is
    looked for under prompt, text or caption in any case (a .txt file is a prompt a line), the id under id, else the
    row number, the prompt's own picture under image (a path below the file's folder), the truth under truth, or it is
    the whole row where that is GenEval's (tag, include).
    """
    if form not in FORMATS:
        raise HarnessError(f"{path}: files of kind {form!r} are not read as prompts; expected {', '.join(FORMATS)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # a byte-order mark is no part of the first column's name
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    rows = _rows(path, text, form)
    if not rows:
        raise HarnessError(f"{path}: holds no prompts")
    roles = columns or _guess(path, list(rows[0]))
    prompts = [_prompt(path, number, row, roles) for number, row in enumerate(rows)]
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        if prompt.id in seen:
            raise HarnessError(f"{path}: rows {seen[prompt.id]} and {number} have the same id {prompt.id!r}")
        seen[prompt.id] = number
    return prompts


def _rows(path: Path, text: str, form: str) -> list[dict[str, Any]]:
    if form == "txt":
        return [{"prompt": line} for line in text.split("\n") if line.strip()]
    if form == "jsonl":
        rows = []
        for number, line in enumerate(text.split("\n")):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise HarnessError(f"{path}: line {number + 1} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise HarnessError(f"{path}: line {number + 1}: expected an object, got {line[:80]!r}")
            rows.append(row)
        return rows
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if form == "tsv" else {"strict": True}
    csv.field_size_limit(10 * LONGEST)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), **dialect))
    except csv.Error as error:
        raise HarnessError(f"{path}: malformed {form}: {error}") from error
    table = [cells for cells in table if cells]
    for number, cells in enumerate(table[1:]):
        if len(cells) != len(table[0]):
            raise HarnessError(
                f"{path}: row {number} has {len(cells)} cells, the header has {len(table[0])}: {str(cells)[:200]}"
            )
    return [dict(zip(table[0], cells, strict=True)) for cells in table[1:]]


def _guess(path: Path, header: list[str]) -> dict[str, str]:
    lower = {name.lower(): name for name in header}
    text = next((lower[name] for name in ("prompt", "prompts", "text", "caption") if name in lower), None)
    if text is None:
        raise HarnessError(f"{path}: no column called prompt, text or caption; it has {', '.join(header)}")
    roles: dict[str, str] = {role: lower[role] for role in ("id", "category", "image", "truth") if role in lower}
    if {"tag", "include"} <= set(header):  # GenEval's own metadata
        roles |= {"category": "tag", "truth": ROW}
    return {"text": text} | roles


def _prompt(path: Path, number: int, row: dict[str, Any], roles: dict[str, str]) -> Prompt:
    for role, column in roles.items():
        if column not in row and column != ROW:
            raise HarnessError(f"{path}: row {number} has no {column!r} (the prompt's {role})")
    text = row[roles["text"]]
    if not isinstance(text, str) or len(text) > LONGEST or any(ord(c) < 32 and c not in "\t\r\n" for c in text):
        raise HarnessError(
            f"{path}: row {number}: {roles['text']}: expected a text of at most {LONGEST} characters without "
            f"control characters, got {str(text)[:60]!r}"
        )
    truth = (row if roles["truth"] == ROW else row[roles["truth"]]) if "truth" in roles else None
    if truth is not None and not isinstance(truth, dict):
        raise HarnessError(f"{path}: row {number}: {roles['truth']}: expected an object, got {str(truth)[:60]!r}")
    category = row[roles["category"]] if "category" in roles else None
    image = str(row[roles["image"]]) if "image" in roles and row[roles["image"]] else None
    if image is not None and (PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts):
        raise HarnessError(
            f"{path}: row {number}: {roles['image']}: expected a path below the folder of this file, got {image!r}"
        )
    return Prompt(
        id=str(row[roles["id"]]) if "id" in roles else str(number),
        text=text,
        category=None if category is None else str(category).strip(),
        class_label=int(row[roles["class_label"]]) if "class_label" in roles else None,
        image=image,
        truth=truth,
        columns={name: value for name, value in row.items() if name not in roles.values()},
    )
