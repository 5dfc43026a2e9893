"""Numbers that papers print, as data: results/published/<name>.yaml, one file a table.

    python -m harness.analysis.published > docs/published.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, StringConstraints, ValidationError, model_validator

from harness import registry
from harness.analysis import layout, render
from harness.analysis.beside import printed_decimals
from harness.benchmark import Paper, Strict, explain, read_mapping, resources
from harness.errors import HarnessError

# What papers print that is no metric here, or not surely one of ours.
WORDS = {
    "average": "plain mean of the row's other columns as printed, whatever their scales",
    "human": "choice of people between two images",
    "human-quality": "choice of people by image quality",
    "human-adherence": "choice of people by adherence to the prompt",
    "clip": "agreement of image and prompt by a CLIP that the source does not name",
    "geneval": "GenEval's overall score with its own detector, of mmdetection",
    "compbench-colour": "T2I-CompBench, colour",
    "compbench-shape": "T2I-CompBench, shape",
    "compbench-texture": "T2I-CompBench, texture",
    "compbench-spatial": "T2I-CompBench, spatial relations",
    "llm-grade": "grade out of 100 that a language model gives",
    "nfe": "denoiser evaluations an image",
    "guided-steps": "sampling steps with guidance",
    "seconds": "seconds an image",
    "seconds-least": "the least of a range of seconds",
    "seconds-most": "the most of a range of seconds",
    "speedup": "images a second over those of classifier-free guidance",
    "speedup-over-cfg-pag": "images a second over those of classifier-free guidance with PAG",
    "rounds": "rounds of optimisation",
    "round-seconds": "seconds that a round of optimisation adds",
    "round-overhead": "the same in percent",
    "million-parameters": "parameters of the network, in millions",
    "gflops": "cost of one evaluation, in 10^9 operations as the paper counts them",
    "gigabytes": "GPU memory",
    "mebibytes": "GPU memory",
}
COLUMNS = [
    "paper", "table", "model", "method", "prompts", "metric", "quantity", "against", "value", "scale", "source", "note",
]

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # as text it would be a mistake of the file
Cell = tuple[str, str, str, str]


class Row(Strict):
    """Values of one (model, method, prompts), in the paper's scale. A word like `any` or `unstated` may stand for a
    label. `against`: the method that a win rate or difference is to, where it is known."""

    model: Text
    method: Text
    prompts: Text
    values: dict[str, Number] = Field(min_length=1)
    against: Text | None = None
    note: Text | None = None

    def cells(self) -> list[Cell]:
        """(model, method, prompts, metric) of each value."""
        return [(self.model, self.method, self.prompts, metric) for metric in self.values]


class Misprint(Strict):
    """A number that contradicts others of its paper, and how. It is kept as printed."""

    model: Text
    method: Text
    prompts: Text
    metric: Text
    says: Text

    @property
    def cell(self) -> Cell:
        """What identifies the number in its table."""
        return self.model, self.method, self.prompts, self.metric


class Published(Strict):
    """One table of a paper.

    Attributes:
        source: where the numbers were read.
        setting: what all rows share.
        quantity: `value`; `win_rate`, the share in percent of prompts or votes where the row's method is better than
            the row's `against`; or `difference`, the row's method less that one.
        scale: by metric, where not 1: printed number = scale x ours (a win rate of ours is a share of 1).
        rows: labels as in the benchmark file that reproduces the table. A metric is one of this project, or a word of
            `WORDS`.
        misprints: numbers that contradict others of the paper.
    """

    name: Text
    paper: Paper
    source: Text
    setting: Text | None = None
    quantity: Literal["value", "win_rate", "difference"] = "value"
    scale: dict[str, Annotated[Number, Field(gt=0)]] = Field(default_factory=dict)
    rows: list[Row] = Field(min_length=1)
    misprints: list[Misprint] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Published:
        places: dict[Cell, int] = {}
        metrics = sorted({*registry.names("metric"), *WORDS})
        for i, row in enumerate(self.rows):
            if row.against is not None and self.quantity == "value":
                raise ValueError(f"rows.{i}.against: a value is against nothing: give 'quantity' too, or leave it out")
            for cell in row.cells():
                if cell[-1] not in metrics:
                    hint = registry.nearest(cell[-1], metrics)
                    raise ValueError(f"rows.{i}.values: {cell[-1]!r} is no metric of this project and no known word: "
                                     f"{hint}")
                if cell in places:
                    raise ValueError(f"rows.{i}.values.{cell[-1]}: row {places[cell]} gives the same number")
                places[cell] = i
        columns = sorted({cell[-1] for cell in places})
        for metric in self.scale:
            if metric not in columns:
                raise ValueError(f"scale.{metric}: no row has this metric: {registry.nearest(metric, columns)}")
        for i, misprint in enumerate(self.misprints):
            if misprint.cell not in places:
                raise ValueError(f"misprints.{i}: no row gives {' / '.join(misprint.cell)}")
        if len({misprint.cell for misprint in self.misprints}) < len(self.misprints):
            raise ValueError("misprints: the same number stands there twice")
        return self

    def note(self, row: Row) -> str | None:
        """What the row is compared with and its note: `against unstable; a bound`."""
        compared = f"{'less' if self.quantity == 'difference' else 'against'} {row.against}" if row.against else None
        return "; ".join(part for part in (compared, row.note) if part) or None

    def said(self) -> dict[Cell, str]:
        """What contradicts each misprinted number."""
        return {misprint.cell: misprint.says for misprint in self.misprints}


def known() -> dict[str, Path]:
    """The tables by name."""
    return {path.stem: path for path in sorted(resources("published").glob("*.yaml"))}


def load(name: str) -> Published:
    """The table of this name.

    Raises:
        HarnessError: unknown name, not YAML, an unknown or missing key, a value that is no finite number, an unknown
            metric, a number that stands there twice.
    """
    paths = known()
    if name not in paths:
        raise HarnessError(f"unknown published table {name!r}: {registry.nearest(name, sorted(paths))}")
    return read(paths[name])


def read(path: Path) -> Published:
    """The table in a file of one's own, named like the file. Raises as `load` does."""
    content = read_mapping(path, "name, paper, source and rows")
    try:
        table = Published.model_validate(content)
    except ValidationError as error:
        raise HarnessError(explain(str(path), error, _keys_at)) from error
    if table.name != path.stem:
        raise HarnessError(f"{path}: name: expected the file's, {path.stem!r}, got {table.name!r}")
    return table


def rows(name: str | None = None) -> pd.DataFrame:
    """One line a number: the columns `COLUMNS`, `value` and `scale` float64, of one table or of all.

    `paper` is title and arXiv number, `table` the table's name here, `against` what a win rate or difference is to,
    "" where it is not stated, `note` the row's note, with `against`, and what contradicts a misprinted number, or "".

    Raises:
        HarnessError: as `load`.
    """
    lines = []
    for table in map(load, [name] if name else known()):
        said = table.said()
        for row in table.rows:
            for cell, value in zip(row.cells(), row.values.values(), strict=True):
                misprint = f"misprint: {said[cell]}" if cell in said else None
                note = "; ".join(part for part in (table.note(row), misprint) if part)
                scale = table.scale.get(cell[-1], 1.0)
                head = [cited(table.paper), table.name, *cell, table.quantity, row.against or ""]
                lines.append([*head, value, scale, table.source, note])
    return pd.DataFrame(lines, columns=COLUMNS).astype({"value": float, "scale": float})


def cited(paper: Paper) -> str:
    """Title and arXiv number."""
    return f"{paper.title} (arXiv {paper.arxiv})" if paper.arxiv else paper.title


# ------------------------------------------------------------------------------------------------- docs/published.md

PAGE = """# Published numbers

What the papers print, as data under `results/published/`: one YAML file a table, read by `harness.analysis.published`
(`load(name)`, `rows()` as a data frame). This page is written from it by `python -m harness.analysis.published`.

A number is kept as printed. Where our metric has another scale, the file says so (imagereward x 100: printed = 100
times ours). Metrics are those of [metrics.md](metrics.md) or the words at the end. Labels are those of the benchmark
file that reproduces a table; `any`: the number does not depend on it; `unstated`: the source does not say.
"""
ABSENT = """## Without numbers

- NLG (arXiv 2509.13936): its README shows pictures, its tables could not be had.
- Figure 8 of arXiv 2407.14041 (win rates with 5, 10, 30 and 50 steps): a picture; the text says that the gain is
  largest for few steps.
- InitNO, Attend-and-Excite, ReNO, DOODL, APG, PAG, SAG, SEG: tables not at hand, but for InitNO's scores in the tables
  of Noise Diffusion.
"""


def page() -> str:
    """docs/published.md."""
    tables = [load(name) for name in known()]
    papers: dict[str, list[Published]] = {}
    for table in tables:
        papers.setdefault(cited(table.paper), []).append(table)
    count = sum(len(row.values) for table in tables for row in table.rows)
    lines = [PAGE, f"{count} numbers in {len(tables)} tables of {len(papers)} papers.\n", _misprints(tables)]
    for paper, mine in papers.items():
        lines += [f"## {paper}\n", *map(_section, mine)]
    lines += [ABSENT, "## Words\n", "| word | what it is |\n| --- | --- |"]
    lines += [f"| `{word}` | {meaning} |" for word, meaning in WORDS.items()]
    return "\n".join(lines) + "\n"


def _misprints(tables: list[Published]) -> str:
    lines = ["## Misprints\n", "Numbers that contradict others of their paper, found by arithmetic "
             "(`tests/analysis/test_published.py` finds exactly these).\n",
             "| table | row | metric | printed | what contradicts it |", "| --- | --- | --- | ---: | --- |"]
    for table in tables:
        printed = {cell: row.values[cell[-1]] for row in table.rows for cell in row.cells()}
        for cell, says in table.said().items():
            labels = ", ".join(cell[:3])
            lines.append(f"| {table.name} | {labels} | {cell[-1]} | {printed[cell]:.10g} | {says} |")
    return "\n".join(lines) + "\n"


def _section(table: Published) -> str:
    where = table.paper.table
    title = f"table {where}" if isinstance(where, int) else where or "not printed"
    return f"### {table.name}: {title}\n\n{render.markdown(_laid_out(table))}"


def _laid_out(table: Published) -> layout.Table:
    """Labels that never change stand in the caption, notes and misprints below the table."""
    labels = {label: [getattr(row, label) for row in table.rows] for label in layout.LABELS}
    varying = [label for label, found in labels.items() if len(set(found)) > 1] or ["method"]
    metrics = list(dict.fromkeys(metric for row in table.rows for metric in row.values))
    digits = {m: printed_decimals([row.values[m] for row in table.rows if m in row.values]) for m in metrics}
    laid = layout.Table(varying, [layout.Column(metric) for metric in metrics], [], "")
    said = table.said()
    notes = dict.fromkeys(table.note(row) for row in table.rows)
    common = next(iter(notes)) if len(notes) == 1 else None
    for row in table.rows:
        cells = [layout.Cell(f"{row.values[m]:.{digits[m]}f}" if m in row.values else "") for m in metrics]
        for metric, cell in zip(metrics, cells, strict=True):
            if metric in row.values and (said_of := table.note(row)) and said_of != common:
                cell.marks.append(laid.note(said_of))
            if (row.model, row.method, row.prompts, metric) in said:
                cell.marks.append(laid.note(f"misprint: {said[row.model, row.method, row.prompts, metric]}"))
        laid.rows.append(([getattr(row, label) for label in varying], cells))
    constant = [f"{label} {found[0]}" for label, found in labels.items() if label not in varying]
    scale = [f"{metric} x {factor:g}" for metric, factor in table.scale.items()]
    facts = [
        {"win_rate": "win rates in percent", "difference": "differences"}.get(table.quantity), ", ".join(constant),
        common, table.setting, f"scale: {', '.join(scale)}" if scale else None, f"source: {table.source}",
    ]
    laid.caption = " ".join(f"{fact[0].upper()}{fact[1:]}." for fact in facts if fact)
    return laid


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    blocks: dict[str, type[Strict]] = {"paper": Paper, "rows": Row, "misprints": Misprint}
    return sorted(blocks.get(str(place[0]) if place else "", Published).model_fields)


if __name__ == "__main__":
    print(page(), end="")
