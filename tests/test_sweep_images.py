"""The images of a sweep: what stands above their columns."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from harness import sweep_images
from harness.analysis import figures
from harness.store import Store
from harness.units import Part
from tests.test_store import pictures, rows


def test_a_prompt_without_a_text_is_headed_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was drawn alike in all rows; a sample that failed has drawn none."""
    store, index = Store(tmp_path), []
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump({"definitions": {"prompts": {"p": {"nsfw": False}}}}))
    for k, method in enumerate(("a", "b")):
        made: list[dict[str, Any]] = [
            row | {"sample_id": f"{4 * k + i:032x}", "prompt": "a red cat" if i == 0 else "", "record": {
                "class_label": 207 if i < 3 else k}}
            for i, row in enumerate(rows(4, model="m", method=method, prompts="p"))
        ]
        images: list[Any] = pictures(4)
        if method == "a":
            made[2] |= {"error": "out of memory"}
            del made[2]["record"]
            images[2] = None
        store.write_images(Part("m", method, "p", "0-0-3"), made, images)
        index += made
    outcome: Any = SimpleNamespace(
        parameters={"a": {"guidance.scale": 1.0}, "b": {"guidance.scale": 2.0}}, rows=pd.DataFrame(index), root=tmp_path
    )
    heads: list[Any] = []
    grid = figures.grid
    monkeypatch.setattr(figures, "grid", lambda *given, **more: heads.append(given[2]) or grid(*given, **more))
    sweep_images.draw(outcome, "scale", tmp_path / "a.png")
    assert heads == [["a red cat", "class 207", "class 207", "3"]]
