"""The images of a sweep as one picture: a row a value of the parameter, a column a prompt."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import figures, sweep, tables
from harness.errors import HarnessError
from harness.run import Outcome
from harness.store import Store

COLUMNS = 8


def draw(outcome: Outcome, parameter: str, path: Path, columns: int = COLUMNS) -> None:
    """Writes them into a .png: line by line, of the first `columns` prompts each the image of its first seed.

    Models and prompt sets follow below each other. Images of prompt sets that are marked NSFW are blurred.

    Raises:
        HarnessError: no two methods differ in the parameter alone, there are no images, or `path` is no .png.
    """
    tables.must_be_png("--images", path)
    name = sweep.chosen(outcome.parameters, parameter)
    rows = outcome.rows
    if rows.empty:
        raise HarnessError("--images: this run has no images yet; `harness run BENCHMARK` makes them")
    ran = rows[["model", "method"]].drop_duplicates()
    placed = sweep.placed(outcome.parameters, name, ran.itertuples(index=False, name=None))
    rows = rows[[place in placed for place in zip(rows["model"], rows["method"], strict=True)]]
    store, grids = Store(outcome.root), []
    benchmark = store.read_benchmark() or {}
    places = rows[["model", "prompts"]].drop_duplicates()
    for model, prompts in places.itertuples(index=False):
        mine = rows[(rows["model"] == model) & (rows["prompts"] == prompts)]
        shown = list(mine["prompt_id"].drop_duplicates()[:columns])
        mine = mine[mine["prompt_id"].isin(shown)].drop_duplicates(["method", "prompt_id"])
        order = sorted(mine["method"].unique(), key=lambda method: placed[model, method])
        found, heads = _images(store, mine)
        place = f"{model}, {prompts}, " if len(places) > 1 else ""
        labels = [place + _label(name, *placed[model, method]) for method in order]
        images = [[found.get((method, prompt)) for prompt in shown] for method in order]
        blur = figures.must_blur(benchmark, prompts)
        grids.append(figures.grid(images, labels, [heads.get(prompt, prompt) for prompt in shown], blur=blur))
    figures.write_images(grids, path, "--images")


def _label(name: str, line: str, at: float) -> str:
    value = f"{name.rpartition('.')[2]} {sweep.value_text(at)}"
    return f"{line}, {value}" if line else value


def _images(store: Store, rows: pd.DataFrame) -> tuple[dict[tuple[str, str], Any], dict[str, str]]:
    """The first frames of samples by method and prompt id, and by prompt id what stands above its column: its text; of
    one without a text the class that was drawn for it, where that is the same in all rows."""
    found: dict[tuple[str, str], Any] = {}
    said: dict[str, set[str]] = {}
    wanted = set(rows["sample_id"])
    for model, method, prompts in rows[["model", "method", "prompts"]].drop_duplicates().itertuples(index=False):
        for part in store.parts("images", model=model, method=method, prompts=prompts):
            for row, image in zip(*store.read_images(part, wanted), strict=True):
                drawn = json.loads(row["record"] or "{}").get("class_label")  # a sample that failed has no record
                if text := row["prompt"] or ("" if drawn is None else f"class {drawn}"):
                    said.setdefault(row["prompt_id"], set()).add(text)
                if image is not None:
                    found[method, row["prompt_id"]] = image[0]
    return found, {prompt: texts.pop() for prompt, texts in said.items() if len(texts) == 1}
