"""Figures: quality against cost with intervals, and grids of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from harness.analysis.records import Record

MARKERS = "osD^v<>Pp*hX"


def quality_against_cost(records: Sequence[Record], metrics: Sequence[str], path: Path, title: str = "") -> Path:
    """Writes a PNG with a panel for each metric: the overall values with their 95 % intervals over NFE.

    Methods of equal cost are drawn side by side. Records without a value are left out; the caller's tables say
    why. One model and prompt set at a time makes a readable figure.
    """
    shown = [m for m in metrics if any(r["metric"] == m and r["value"] is not None for r in records)]
    figure = Figure(figsize=(2.6 + 3.6 * max(len(shown), 1), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(r["method"] for r in records if r["group"] is None))
    styles = dict(zip(methods, zip(cycle(f"C{i}" for i in range(10)), cycle(MARKERS)), strict=False))
    axes = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axis, metric in zip(axes, shown, strict=False):
        mine = [
            r for r in records
            if r["metric"] == metric and r["group"] is None and r["value"] is not None and r["nfe"]
        ]
        spread = _spread([r["nfe"] for r in mine])
        for record, x in zip(mine, spread, strict=True):
            colour, marker = styles[record["method"]]
            low = record["value"] if record["low"] is None else record["low"]
            high = record["value"] if record["high"] is None else record["high"]
            error = [[max(record["value"] - low, 0)], [max(high - record["value"], 0)]]
            axis.errorbar([x], [record["value"]], error, color=colour, marker=marker, ms=5, capsize=2, lw=1,
                          label=record["method"], ls="none")
        arrow = "higher is better" if mine and mine[0].get("higher_is_better", True) else "lower is better"
        axis.set(xscale="log", xlabel="denoiser evaluations an image (NFE)", ylabel=f"{metric} ({arrow})")
        costs = sorted({round(r["nfe"]) for r in mine})
        axis.set_xticks(costs, [str(c) for c in costs])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    if shown:
        handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _spread(costs: Sequence[float]) -> list[float]:
    """Places on a log axis: points of (nearly) equal cost 5 % apart, in order, around their cost."""
    places = []
    for i, cost in enumerate(costs):
        alike = [k for k, other in enumerate(costs) if abs(other / cost - 1) < 0.05]
        places.append(cost * 1.05 ** (alike.index(i) - (len(alike) - 1) / 2))
    return places


def grid(
    images: Sequence[Sequence[np.ndarray | Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    blur: bool,
    cell: int = 128,
    text: int = 13,
) -> Image.Image:
    """A grid of images, `images[row][column]` (uint8 `[H, W, 3]` or PIL; None leaves a gap), with labels.

    Images are enlarged to `cell` pixels without smoothing where `cell` is a multiple of their size. Column
    labels are wrapped above their column. `blur` has no default: whoever shows images of a run asks `must_blur`.
    """
    if len(images) != len(row_labels) or any(len(row) != len(column_labels) for row in images):
        raise ValueError(
            f"{len(row_labels)} row and {len(column_labels)} column labels for rows of "
            f"{[len(row) for row in images]} images"
        )
    font = ImageFont.load_default(text)
    gap, line = max(cell // 24, 3), round(text * 1.3)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heads = [_wrapped(measure, label, font, cell) for label in column_labels]
    left = round(max([0, *(measure.textlength(label, font) for label in row_labels)])) + 2 * gap
    top = line * max([0, *map(len, heads)]) + 2 * gap
    size = (left + len(column_labels) * (cell + gap), top + len(row_labels) * (cell + gap))
    out = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(out)
    for j, head in enumerate(heads):
        for k, words in enumerate(head):
            draw.text((left + j * (cell + gap), gap + k * line), words, "black", font)
    for i, row in enumerate(images):
        y = top + i * (cell + gap)
        draw.text((left - gap, y + cell // 2), row_labels[i], "black", font, anchor="rm")
        for j, image in enumerate(row):
            if image is None:
                continue
            picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))
            if blur:
                picture = blurred(picture)
            exact = cell % picture.width == 0 and cell % picture.height == 0
            how = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
            out.paste(picture.convert("RGB").resize((cell, cell), how), (left + j * (cell + gap), y))
    return out


def must_blur(benchmark: Mapping[str, Any], prompts: str) -> bool:
    """Whether images of a label of prompts are blurred where they are shown: its set is marked NSFW, or nothing is
    known of it. `benchmark` is the content of the run's benchmark.yaml (`Store.read_benchmark`).

    Raises:
        KeyError: the run has no such label.
    """
    definition: Mapping[str, Any] = benchmark["definitions"]["prompts"][prompts]
    return bool(definition.get("nsfw", True))


def blurred(image: Image.Image) -> Image.Image:
    """The image in RGB without anything that can be made out, of whatever size: a Gaussian whose standard deviation
    is a quarter of the longer side leaves its light and dark corners."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(max(image.size) / 4))


def _wrapped(
    draw: ImageDraw.ImageDraw, label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for word in label.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(joined, font) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines
