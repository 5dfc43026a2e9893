"""The file formats of prompts: each reader gives the rows of a file with their places, and checks nothing else.

A place is the row's number from 0, as text; where a file is divided into categories, `category/number`. It is the id
of a prompt that has none of its own.
"""

import csv
import io
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.json_text import json_value

Row = tuple[str, dict[str, Any]]  # its place, its columns

LARGEST = 128 * 2**20  # bytes of text; the largest known one, COCO's captions, has some 30 MiB
MOST = 2_000_000  # rows of a Parquet file or of ranges, whose few bytes can stand for very many
BATCH = 1024  # rows of a Parquet file that are unpacked at a time
LONGEST = 100_000  # characters of one prompt; far above any real one, far below what stalls a tokenizer
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt",
    ".parquet": "parquet", ".seeds": "seeds",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def format_of(path: Path) -> str:
    """The format that a file's name stands for; a folder is one of .txt files.

    Raises:
        HarnessError: none is known by this ending.
    """
    if path.is_dir():
        return "folder"
    if path.suffix.lower() not in SUFFIXES:
        raise HarnessError(
            f"{path}: files of kind {path.suffix.lstrip('.')!r} are not read as prompts; expected "
            f"{', '.join(dict.fromkeys(SUFFIXES.values()))}"
        )
    return SUFFIXES[path.suffix.lower()]


def read_rows(path: Path, form: str) -> list[Row]:
    """The rows of a file, or of a folder for the formats `folder` and `orbits`.

    Raises:
        HarnessError: there is no such format; the file is missing, too large or malformed, with its line or row.
    """
    if form not in READERS:
        raise HarnessError(f"{path}: files of kind {form!r} are not read as prompts; expected {', '.join(READERS)}")
    try:
        rows = READERS[form](path)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise HarnessError(f"{path}: holds no prompts")
    return rows


def must_be_a_file(path: Path) -> None:
    """Raises HarnessError for what is no plain file: nothing, a folder, a pipe, a device."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise HarnessError(f"{path}: no such file, or it may not be read ({error})") from error
    if stat.S_ISDIR(found.st_mode):
        raise HarnessError(f"{path}: is a folder, expected a file of prompts")
    if not stat.S_ISREG(found.st_mode):
        raise HarnessError(f"{path}: is not a plain file (a pipe, a socket or a device)")


def _must_fit(path: Path, size: int) -> None:
    if size > LARGEST:
        raise HarnessError(
            f"{path}: has {size:,} bytes of text; at most {LARGEST:,} are read. Keep the prompts alone, or cut the file"
        )


# ---- text ----


def _text(path: Path) -> str:
    must_be_a_file(path)
    _must_fit(path, path.stat().st_size)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # a byte-order mark is no part of the first column's name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HarnessError(
            f"{path}: not UTF-8: line {line}, byte {error.start} is {error.object[error.start]:#04x}; save the whole "
            f"file in UTF-8"
        ) from error


def _lines(path: Path) -> list[str]:
    """The lines without their ends (LF or CRLF), and without blank ones at the end."""
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _txt(path: Path) -> list[Row]:
    return [(str(number), {"prompt": line}) for number, line in enumerate(_lines(path))]


def _csv(path: Path) -> list[Row]:
    csv.field_size_limit(LARGEST)  # how long a prompt may be is said where prompts are made
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        table = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise HarnessError(f"{path}: malformed csv: line {reader.line_num}: {error}") from error
    return _table(path, table)


def _tsv(path: Path) -> list[Row]:
    """No quoting: a quotation mark is a character like any other."""
    return _table(path, [(n + 1, line.split("\t")) for n, line in enumerate(_lines(path)) if line])


def _table(path: Path, table: list[tuple[int, list[str]]]) -> list[Row]:
    """Rows below a header; each comes with the line it ends on."""
    if not table:
        return []
    header = table[0][1]
    _once(path, header)
    for number, (line, cells) in enumerate(table[1:]):
        if len(cells) != len(header):
            raise HarnessError(
                f"{path}: row {number} has {len(cells)} cells, the header has {len(header)} (line {line}): "
                f"{str(cells)[:200]}"
            )
    return [(str(number), dict(zip(header, cells, strict=True))) for number, (_, cells) in enumerate(table[1:])]


def _once(path: Path, header: list[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise HarnessError(f"{path}: two columns are called {name!r}")


def _id_text(path: Path) -> list[Row]:
    """A header line, then `id,text` where commas and quotation marks of the text are its own."""
    rows: list[Row] = []
    for number, line in enumerate(_lines(path)[1:]):
        key, comma, text = line.partition(",")
        if not comma:
            raise HarnessError(f"{path}: row {number} (line {number + 2}): expected 'id,text', got {line[:80]!r}")
        rows.append((str(number), {"id": key, "prompt": text}))
    return rows


def _seeds(path: Path) -> list[Row]:
    """A range of whole numbers a line (`0-49999`): for each number a prompt without text, of which the number is the id
    and the column `seed`, and the line the category."""
    rows: list[Row] = []
    for line, text in enumerate(_lines(path), start=1):
        ends = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
        first, last = (int(end) for end in ends.groups()) if ends else (1, 0)
        if first > last:
            raise HarnessError(f"{path}: line {line}: expected a range of numbers like 0-49999, got {text[:60]!r}")
        if len(rows) + last - first >= MOST:
            raise HarnessError(f"{path}: line {line}: more than {MOST:,} prompts; give smaller ranges")
        rows += [
            (str(len(rows) + place), {"category": text, "seed": number})
            for place, number in enumerate(range(first, last + 1))
        ]
    return rows


# ---- JSON ----


def _jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(_lines(path)):
        if not line.strip():
            continue
        row = json_value(line, f"{path}: line {number + 1}")
        if not isinstance(row, dict):
            raise HarnessError(f"{path}: line {number + 1}: expected an object, got {line[:80]!r}")
        rows.append((str(len(rows)), row))
    return rows


def _json(path: Path) -> list[Row]:
    """A list of texts or objects, an object of such lists (a category each), or COCO's captions."""
    content = json_value(_text(path), f"{path}: the content")
    if isinstance(content, list):
        return [(str(number), _entry(path, str(number), entry)) for number, entry in enumerate(content)]
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        return _captions(path, content, every=False)
    if isinstance(content, dict) and all(isinstance(entries, list) for entries in content.values()):
        return [
            (f"{category}/{number}", {"category": category} | _entry(path, f"{category}/{number}", entry))
            for category, entries in content.items()
            for number, entry in enumerate(entries)
        ]
    raise HarnessError(
        f"{path}: expected a list of texts or objects, an object of such lists (a category each), or COCO's captions; "
        f"got {str(content)[:80]}"
    )


def _entry(path: Path, place: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"prompt": entry}
    if isinstance(entry, dict):
        return entry
    raise HarnessError(f"{path}: row {place}: expected a text or an object, got {str(entry)[:80]!r}")


def _coco(path: Path) -> list[Row]:
    """An image each, in the file's order, with that of its captions which has the lowest annotation id."""
    return _captions(path, json_value(_text(path), f"{path}: the content"), every=False)


def _coco_all(path: Path) -> list[Row]:
    """All captions, image by image in the file's order, then by annotation id; that is also the prompt's id."""
    return _captions(path, json_value(_text(path), f"{path}: the content"), every=True)


def _captions(path: Path, content: Any, every: bool) -> list[Row]:
    expected = (
        "expected COCO's captions: {\"images\": [{\"id\": 1, \"file_name\": ...}], "
        "\"annotations\": [{\"id\": 1, \"image_id\": 1, \"caption\": ...}]}"
    )
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise HarnessError(f"{path}: {expected}")
    for part, keys in (("images", ("id",)), ("annotations", ("id", "image_id"))):
        for number, entry in enumerate(content[part]):
            for key in keys:
                if not isinstance(entry, dict) or type(entry.get(key)) is not int or entry[key] < 0:
                    raise HarnessError(f"{path}: {part}, row {number}: {key}: {expected}, got {str(entry)[:80]}")
    captions: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for number, entry in enumerate(content["annotations"]):
        if entry["image_id"] not in captions:
            raise HarnessError(f"{path}: annotations, row {number}: no image has the id {entry['image_id']}")
        captions[entry["image_id"]].append(entry)
    rows: list[Row] = []
    for number, image in enumerate(content["images"]):
        found = sorted(captions[image["id"]], key=lambda entry: entry["id"])
        if not found:
            raise HarnessError(f"{path}: images, row {number}: image {image['id']} has no caption")
        for entry in found if every else found[:1]:
            key = f"{image['id']:012d}"  # as the names of COCO's image files have it, and the public lists
            rows.append((str(len(rows)), {
                "id": str(entry["id"]) if every else key, "prompt": entry.get("caption"), "image_id": key,
                "annotation_id": entry["id"], "file_name": image.get("file_name"),
            }))
    return rows


# ---- Parquet ----


def _parquet(path: Path) -> list[Row]:
    """All columns but those that hold bytes, which are images."""
    must_be_a_file(path)
    try:
        with pq.ParquetFile(path) as file:
            _once(path, file.schema_arrow.names)
            if file.metadata.num_rows > MOST:
                raise HarnessError(f"{path}: has {file.metadata.num_rows:,} rows; at most {MOST:,} are read")
            names = [field.name for field in file.schema_arrow if not _bytes(field.type)]
            rows: list[dict[str, Any]] = []
            size = 0  # counted while it is read: asked for the size of a damaged column, pyarrow ends the process
            for batch in file.iter_batches(BATCH, columns=names):
                size += batch.nbytes
                _must_fit(path, size)
                rows += batch.to_pylist()
    except (pa.ArrowException, ValueError, TypeError, OverflowError, OSError) as error:
        raise HarnessError(f"{path}: is no readable Parquet file: {str(error)[:200]}") from error
    return [(str(number), row) for number, row in enumerate(rows)]


def _bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


# ---- folders ----


def _folder(path: Path) -> list[Row]:
    """A folder of .txt files, a prompt each; the id is the file's name without its ending; sorted as text."""
    _must_be_a_folder(path, "with a .txt file for each prompt")
    files = sorted((file for file in path.iterdir() if file.suffix == ".txt"), key=lambda file: file.stem)
    return [
        (str(number), {"id": file.stem, "prompt": _text(file).strip()}) for number, file in enumerate(files)
    ]


def _orbits(path: Path) -> list[Row]:
    """OmniObject3D's renders: `<category>/<object>/render/images/<frames>`. A prompt an object: its text is the
    category's name, its image the first frame, which conditions the model, its truth all frames in order."""
    layout = "expected <category>/<object>/render/images/<frames as .png, .jpg or .webp>, as in blender_renders/"
    _must_be_a_folder(path, "of rendered objects")
    rows: list[Row] = []
    for category in _folders(path):
        objects = _folders(category)
        if not objects:
            raise HarnessError(f"{category}: holds no objects; {layout}")
        for number, found in enumerate(objects):
            images = found / "render" / "images"
            frames = [frame.relative_to(path).as_posix() for frame in _frames(images)]
            if not frames:
                raise HarnessError(f"{found}: no rendered frames in {images}; {layout}")
            _must_go_round(images, [Path(frame).stem for frame in frames])
            rows.append((f"{category.name}/{number}", {
                "id": f"{category.name}-{found.name}" if not found.name.startswith(category.name) else found.name,
                "prompt": category.name.replace("_", " "), "category": category.name, "object": found.name,
                "image": frames[0], "truth": {"frames": frames}, "frames": len(frames),
            }))
    if not rows:
        raise HarnessError(f"{path}: holds no objects; {layout}")
    return rows


def _must_go_round(path: Path, names: Sequence[str]) -> None:
    """Frames with one number each must have those of a whole orbit: a gap, or a file that is none of them, would shift
    all azimuths behind it."""
    parts = [re.findall(r"\d+", name) for name in names]
    one, other = ([name for name, each in zip(names, parts, strict=True) if (len(each) == 1) == alone]
                  for alone in (True, False))
    if one and other:
        odd, usual = (other, one) if len(other) <= len(one) else (one, other)
        raise HarnessError(
            f"{path}: {odd[0]} is not numbered as {usual[0]} is: the pictures of an orbit's folder must be its frames, "
            f"each with one number. Move what is none (depths, masks) elsewhere"
        )
    if other:
        return
    numbers = [int(number) for number, in parts]
    if numbers not in (list(range(len(names))), list(range(1, len(names) + 1))):
        first = min(numbers[0], 1)
        wrong = next(at for at, number in enumerate(numbers) if number != first + at)
        raise HarnessError(
            f"{path}: {names[wrong]} stands where number {first + wrong} was expected: the numbers of an orbit's "
            f"{len(names)} frames must run from 0 or 1 without a gap, each once"
        )


def _must_be_a_folder(path: Path, of: str) -> None:
    if not path.is_dir():
        raise HarnessError(f"{path}: expected a folder {of}")


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _frames(path: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers: r_2 before r_10."""
    found = [entry for entry in path.iterdir() if entry.suffix.lower() in PICTURES] if path.is_dir() else []
    return sorted(found, key=lambda entry: ([int(part) for part in re.findall(r"\d+", entry.stem)], entry.name))


READERS: dict[str, Callable[[Path], list[Row]]] = {
    "csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "json": _json, "txt": _txt, "parquet": _parquet, "id-text": _id_text,
    "coco": _coco, "coco-all": _coco_all, "folder": _folder, "orbits": _orbits, "seeds": _seeds,
}
FOLDERS = ("folder", "orbits")  # formats of folders, the others are of files
