"""Figures: quality against cost or a parameter, with intervals, and grids of images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from harness.analysis.layout import COST_TEXTS
from harness.analysis.pareto import points
from harness.analysis.records import Record
from harness.analysis.sweep import value_text
from harness.files import write_atomic

MARKERS = "osD^v<>Pp*hX"
FRONT = "Pareto front"
BEST, PUBLISHED = "best of its line", "published"
FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # Pillow has none with σ and ∞
MOST_TICKS = 10  # values of a parameter that have a tick each
XLABELS = {
    "nfe": "denoiser evaluations an image (NFE)", "flops": "floating-point operations an image",
    "seconds": "seconds an image",
}


def quality_against_cost(
    records: Sequence[Record], metrics: Sequence[str], path: Path, title: str = "", cost: str = "nfe"
) -> Path:
    """Writes a PNG with a panel for each metric: the overall values with their 95 % intervals over a cost.

    The file is written whole or not at all (StoreError). `cost` is "nfe", "flops" or "seconds". A grey line joins the
    Pareto front. Methods of equal cost are drawn side by side. Records without a value are left out; the caller's
    tables say why. Each model and prompt set has a row of panels.
    """
    shown = [m for m in metrics if any(r["metric"] == m and r["value"] is not None for r in records)]
    places = list(dict.fromkeys((r["model"], r["prompts"]) for r in records)) or [("", "")]
    size = (2.6 + 3.6 * max(len(shown), 1), 0.4 + 3.8 * len(places))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(r["method"] for r in records if r["group"] is None))
    styles = dict(zip(methods, zip(cycle(f"C{i}" for i in range(10)), cycle(MARKERS)), strict=False))
    axes = figure.subplots(len(places), max(len(shown), 1), squeeze=False)
    for row, place in zip(axes, places, strict=True):
        for axis, metric in zip(row, shown, strict=False):
            mine = [
                r for r in points(records, metric, cost)
                if (r["model"], r["prompts"]) == place and r["value"] is not None and r[cost]
            ]
            _panel(axis, mine, styles)
            arrow = "higher is better" if mine and mine[0].get("higher_is_better", True) else "lower is better"
            axis.set(xlabel=XLABELS[cost], ylabel=f"{metric} ({arrow})")
            if len(places) > 1:
                axis.set_title(" · ".join(place), fontsize=9)
    if shown:
        _legend(figure, [*methods, FRONT])
    if title:
        figure.suptitle(title, fontsize=10)
    return _written(figure, path)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """One for all panels: those of `names` that one of them has, in this order."""
    handles = {h: x for axis in figure.axes for x, h in zip(*axis.get_legend_handles_labels(), strict=True)}
    here = [name for name in names if name in handles]
    figure.legend([handles[n] for n in here], here, loc="outside right upper", fontsize=8, frameon=False)


def _written(figure: Figure, path: Path) -> Path:
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_atomic(path, data.getvalue(), "--figure")
    return path


def _panel(axis: Axes, mine: Sequence[Record], styles: Mapping[str, tuple[str, str]]) -> None:
    """The points of one metric (`pareto.points`) with their intervals, and the front."""
    cost = mine[0]["cost"] if mine else "nfe"
    spread = _spread([r[cost] for r in mine])
    front = [(x, r["value"]) for r, x in zip(mine, spread, strict=True) if r["front"]]
    axis.plot([x for x, _ in front], [y for _, y in front], color="0.6", lw=1, zorder=0, label=FRONT)
    for record, x in zip(mine, spread, strict=True):
        colour, marker = styles[record["method"]]
        low, high = _ends(record)
        axis.errorbar([x], [record["value"]], [[low], [high]], color=colour, marker=marker, ms=5, capsize=2, lw=1,
                      label=record["method"], ls="none")
    axis.set_xscale("log")
    ticks = _ticks([r[cost] for r in mine])
    axis.set_xticks(ticks, [COST_TEXTS[cost](tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def quality_against_parameter(found: Sequence[Record], path: Path) -> Path:
    """Writes a PNG with a panel for each metric: `sweep.points` over their parameter, joined line by line.

    A ring marks the best of each line, a cross what was published there (`published`, in our unit). Values without a
    95 % interval have no bar. An axis of repeated evaluations says which of how many it shows ("best of 3"). Each model
    and prompt set has a row of panels. The file is written whole or not at all (StoreError).
    """
    metrics = list(dict.fromkeys(r["metric"] for r in found))
    places = list(dict.fromkeys((r["model"], r["prompts"]) for r in found))
    names = list(dict.fromkeys(r["line"] for r in found))
    figure = Figure(figsize=(2.6 + 4.2 * len(metrics), 0.4 + 3.8 * len(places)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    styles = dict(zip(names, zip(cycle(f"C{i}" for i in range(10)), cycle(MARKERS)), strict=False))
    axes = figure.subplots(len(places), len(metrics), squeeze=False)
    for row, place in zip(axes, places, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            mine = [r for r in found if (r["model"], r["prompts"], r["metric"]) == (*place, metric)]
            _lines(axis, mine, styles)
            arrow = "higher is better" if mine and mine[0].get("higher_is_better", True) else "lower is better"
            made = {f", {r['quantity']} of {len(r['repeats'])}" for r in mine if "repeats" in r}  # one, by its prompts
            axis.set(xlabel=found[0]["parameter"].rpartition(".")[2], ylabel=f"{metric}{''.join(made)} ({arrow})")
            if len(places) > 1:
                axis.set_title(" · ".join(place), fontsize=9)
    _legend(figure, [*names, BEST, PUBLISHED])
    return _written(figure, path)


def _lines(axis: Axes, mine: Sequence[Record], styles: Mapping[str, tuple[str, str]]) -> None:
    """The points of one panel; on a log axis over a decade or more, and evenly spaced where one is at infinity."""
    values = sorted({r["at"] for r in mine})
    evenly = bool(values) and math.isinf(values[-1])
    x = {value: float(i) if evenly else value for i, value in enumerate(values)}
    size = 5 if len(values) <= MOST_TICKS else 3
    for i, (name, (colour, marker)) in enumerate(styles.items()):
        line = [r for r in mine if r["line"] == name and r["value"] is not None]
        if line:
            ends = np.array([_ends(r) for r in line]).T
            axis.errorbar([x[r["at"]] for r in line], [r["value"] for r in line], ends, color=colour, marker=marker,
                          ms=size, lw=1, elinewidth=0.7, capsize=size / 3 + i % 4, label=name)  # caps tell bars apart
        best = [(x[r["at"]], r["value"]) for r in line if r["best"]]
        theirs = [(x[r["at"]], r["published"]) for r in mine if r["line"] == name and r.get("published") is not None]
        _marks(axis, best, BEST, colour, marker="o", mfc="none", ms=2.4 * size)
        _marks(axis, theirs, PUBLISHED, colour, marker="x", mew=1.6, ms=6)
    if evenly:
        ticks = values[::-1][:: -(-len(values) // MOST_TICKS)]
        axis.set_xticks([x[tick] for tick in ticks], [value_text(tick) for tick in ticks])
    elif values and values[0] > 0 and values[-1] / values[0] >= 10:
        axis.set_xscale("log")
        ticks = _ticks(values)
        axis.set_xticks(ticks, [value_text(tick) for tick in ticks])
        axis.minorticks_off()
    axis.grid(alpha=0.25)


def _marks(axis: Axes, places: Sequence[tuple[float, float]], name: str, colour: str, **style: Any) -> None:
    """Marks in the colour of their line; the legend has one in grey."""
    if places:
        axis.plot([], [], color="0.3", ls="none", label=name, **style)
        axis.plot([a for a, _ in places], [b for _, b in places], color=colour, ls="none", **style)


def _ends(record: Record) -> tuple[float, float]:
    """How far a value's interval goes below and above it; 0 where it has none."""
    low, high = (record["value"] if record[end] is None else record[end] for end in ("low", "high"))
    return max(record["value"] - low, 0.0), max(high - record["value"], 0.0)


def _ticks(costs: Sequence[float]) -> list[float]:
    """The costs that are there, but for those too near the one before to have a label of their own."""
    ticks: list[float] = []
    gap = max(1.15, (max(costs) / min(costs)) ** (1 / 6)) if costs else 1.0
    for cost in sorted(costs):
        if not ticks or cost > ticks[-1] * gap:
            ticks.append(cost)
    return ticks


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
    font = ImageFont.truetype(FONT, text)
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


def write_images(images: Sequence[Image.Image], path: Path, what: str) -> Path:
    """Writes images below each other as one PNG, whole or not at all (StoreError, which names `what`)."""
    out = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        out.paste(image, (0, top))
        top += image.height
    data = io.BytesIO()
    out.save(data, format="png")
    write_atomic(path, data.getvalue(), what)
    return path


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
