"""Draws docs/figures/shapes-grid.png from the run `shapes`: a row a method, a column a prompt.

    uv run harness run shapes && uv run python docs/figures/shapes_grid.py
"""

from pathlib import Path

import numpy as np

from harness.analysis.figures import grid, must_blur
from harness.store import Store

RUN = Path("results/runs/shapes")
METHODS = ("no-guidance", "cfg-3", "cfg-7.5", "cfg-5-interval", "nlg", "most-stable", "least-stable", "best-of-6")
COLUMNS = 8


def main() -> None:
    """Reads the first prompts of every method and writes the picture."""
    store = Store(RUN)
    found: dict[tuple[str, str], np.ndarray] = {}
    texts: dict[str, str] = {}
    for part in store.parts("images"):
        for row, image in zip(*store.read_images(part), strict=True):
            texts.setdefault(row["prompt_id"], row["prompt"])
            if image is not None:
                found[part.method, row["prompt_id"]] = image[0]
    prompts = list(texts)[:COLUMNS]
    images = [[found[method, prompt] for prompt in prompts] for method in METHODS]
    heads = [texts[prompt] for prompt in prompts]
    benchmark = store.read_benchmark()
    assert benchmark is not None
    blur = must_blur(benchmark, "shapes")
    grid(images, METHODS, heads, blur=blur).save(Path(__file__).with_name("shapes-grid.png"))


if __name__ == "__main__":
    main()
