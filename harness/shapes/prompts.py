"""Writes the two prompt sets of the shapes world, ``datasets/shapes*.jsonl`` with their manifests.

``python -m harness.shapes.prompts FOLDER`` makes them anew, byte for byte the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

from harness.identity import digest
from harness.shapes.grammar import prompt_captions

TITLES = {
    "shapes": "Shapes world, held-out compositions: 40 prompts for each of GenEval's six tasks",
    "shapes-seen": "Shapes world, compositions seen in training: 40 prompts for each of GenEval's six tasks",
}


def set_name(held_out: bool) -> str:
    """The id of a prompt set."""
    return "shapes" if held_out else "shapes-seen"


def prompt_lines(held_out: bool) -> str:
    """The JSONL text of a set."""
    rows = [
        {"id": key, "prompt": c.text, "category": c.tag, "truth": c.truth()} for key, c in prompt_captions(held_out)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def manifest(held_out: bool) -> str:
    """The YAML manifest of a set."""
    name, lines = set_name(held_out), prompt_lines(held_out)
    data = lines.encode()
    counts = Counter(caption.tag for _, caption in prompt_captions(held_out))
    fields = {
        "name": name,
        "title": json.dumps(TITLES[name]),
        "source": "harness.shapes.prompts",
        "licence": "CC0-1.0",
        "files": f"[{{path: {name}.jsonl, size: {len(data)}, sha256: {hashlib.sha256(data).hexdigest()}}}]",
        "format": "jsonl",
        "columns": "{id: id, text: prompt, category: category, truth: truth}",
        "rows": lines.count("\n"),
        "categories": "{" + ", ".join(f"{task}: {count}" for task, count in counts.items()) + "}",
        "prompts_sha256": digest([[key, caption.text] for key, caption in prompt_captions(held_out)]),
        "nsfw": "false",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def write(folder: str | Path) -> list[Path]:
    """Write both sets and manifests; returns the paths."""
    paths = []
    for held_out in (True, False):
        for ending, text in (("jsonl", prompt_lines(held_out)), ("yaml", manifest(held_out))):
            path = Path(folder) / f"{set_name(held_out)}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
            paths.append(path)
    return paths


if __name__ == "__main__":
    for made in write(sys.argv[1] if len(sys.argv) > 1 else "datasets"):
        print(made)
