"""What sets a file apart from the one that a prompt set's manifest names, told so that a person can decide."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from harness.errors import HarnessError
from harness.manifest import DataFile, Form, Manifest
from harness.prompt_files import Prompt, read_file

OR_ACCEPT = "to take it all the same run with --accept LABEL"


def differences(manifest: Manifest, form: Form, file: DataFile, path: Path, found: str) -> str:
    """The difference of `path`, whose SHA-256 is `found`, from the manifest's `file`: hash, bytes, rows, columns,
    categories; and what may be done."""
    lines = [f"SHA-256: expected {file.sha256}, found {found}"]
    size = path.stat().st_size
    if file.size not in (None, size):
        lines.append(f"bytes: expected {file.size:,}, found {size:,}")
    cause = _mere_form(path, file.sha256)
    if cause is not None:
        lines.append(f"only {cause}; the text is the same")
    try:
        prompts = read_file(path, form.format, form.columns, manifest.allow_empty)
    except HarnessError as error:
        lines.append(f"as a {form.format} file with the manifest's columns it cannot be read: {error}; 'columns: "
                     f"{{text: NAME}}' beside 'accept' says which columns it has")
    else:
        lines += _in_numbers(manifest, form, file, prompts)
    own = f"; for a list of your own choose a name of its own: {{set: NAME, path: {path}}}"
    return (
        f"prompt set {manifest.name!r}: {path} is not the file that its manifest names:\n"
        + "".join(f"    {line}\n" for line in lines)
        + f"  {OR_ACCEPT[0].upper()}{OR_ACCEPT[1:]}, or add 'accept: {found}' to the benchmark's prompts"
        + (own if len(form.files) == 1 else "")
    )


def _in_numbers(manifest: Manifest, form: Form, file: DataFile, prompts: list[Prompt]) -> list[str]:
    """Rows, columns and categories, where they are known of this one file."""
    lines = []
    rows = manifest.rows if len(form.files) == 1 else manifest.categories.get(file.category or "")
    if rows is not None and manifest.first is None:
        lines.append(f"rows: expected {rows:,}, found {len(prompts):,}")
    named = set(form.columns.values())
    further = [name for name in prompts[0].columns if name not in named]
    if form.columns:
        lines.append(f"columns: {', '.join(form.columns.values())} are there"
                     + (f", and beside them {', '.join(further)}" if further else ""))
    counts = Counter(prompt.category for prompt in prompts if prompt.category is not None)
    other = sorted(name for name in {*counts, *manifest.categories} if counts[name] != manifest.categories.get(name))
    if counts and manifest.categories and other:
        shown = [f"{name} {counts[name]} (expected {manifest.categories.get(name, 0)})" for name in other[:20]]
        lines.append(f"categories: {', '.join(shown)}{', ...' if len(other) > 20 else ''}")
    return lines


def _mere_form(path: Path, wanted: str | None) -> str | None:
    """How the bytes differ where the text does not: what editors, git and spreadsheets do to a file."""
    data = path.read_bytes()
    mark = b"\xef\xbb\xbf"
    plain = data.replace(b"\r\n", b"\n")
    forms = {
        "the ends of its lines differ": (plain, plain.replace(b"\n", b"\r\n")),
        "a byte-order mark differs": (data.removeprefix(mark), mark + data),
        "the end of its last line differs": (data.rstrip(b"\r\n"), data.rstrip(b"\r\n") + b"\n"),
    }
    for cause, others in forms.items():
        if wanted in {hashlib.sha256(other).hexdigest() for other in others}:
            return cause
    return None
