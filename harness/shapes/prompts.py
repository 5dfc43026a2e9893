"""Writes the prompt sets of the shapes world, ``datasets/shapes*.jsonl`` with their manifests.

``python -m harness.shapes.prompts FOLDER`` makes them anew, byte for byte the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness.identity import digest
from harness.shapes.classes import CLASSES, class_text, class_truth
from harness.shapes.grammar import prompt_captions

TITLES = {
    "shapes": "Shapes world, held-out compositions: 40 prompts for each of GenEval's six tasks",
    "shapes-seen": "Shapes world, compositions seen in training: 40 prompts for each of GenEval's six tasks",
    "shapes-classes": "Shapes world, the 36 classes of colour and shape; class_label = 6 * colour + shape",
}


def set_name(held_out: bool) -> str:
    """The id of a prompt set."""
    return "shapes" if held_out else "shapes-seen"


def prompt_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a set."""
    if name == "shapes-classes":
        return [
            {
                "id": class_text(label).replace(" ", "-"), "prompt": class_text(label), "category": shape,
                "class_label": label, "truth": class_truth(label),
            }
            for label, (_, shape) in enumerate(CLASSES)
        ]  # fmt: skip
    return [
        {"id": key, "prompt": c.text, "category": c.tag, "truth": c.truth()}
        for key, c in prompt_captions(name == set_name(True))
    ]


def prompt_lines(name: str) -> str:
    """The JSONL text of a set."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompt_rows(name))


def manifest(name: str) -> str:
    """The YAML manifest of a set."""
    rows, data = prompt_rows(name), prompt_lines(name).encode()
    counts = Counter(row["category"] for row in rows)
    columns = {"id": "id", "text": "prompt"} | {key: key for key in rows[0] if key not in ("id", "prompt")}
    fields = {
        "name": name,
        "title": json.dumps(TITLES[name]),
        "source": "harness.shapes.prompts",
        "licence": "CC0-1.0",
        "files": f"[{{path: {name}.jsonl, size: {len(data)}, sha256: {hashlib.sha256(data).hexdigest()}}}]",
        "format": "jsonl",
        "columns": "{" + ", ".join(f"{role}: {column}" for role, column in columns.items()) + "}",
        "rows": len(rows),
        "categories": "{" + ", ".join(f"{task}: {count}" for task, count in counts.items()) + "}",
        "prompts_sha256": digest([[row["id"], row["prompt"]] for row in rows]),
        "nsfw": "false",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def write(folder: str | Path) -> list[Path]:
    """Write the sets and manifests; returns the paths."""
    paths = []
    for name in TITLES:
        for ending, text in (("jsonl", prompt_lines(name)), ("yaml", manifest(name))):
            path = Path(folder) / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
            paths.append(path)
    return paths


if __name__ == "__main__":
    for made in write(sys.argv[1] if len(sys.argv) > 1 else "datasets"):
        print(made)
