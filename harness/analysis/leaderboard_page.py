"""The leaderboard as one HTML page that needs no network: its table sorts and filters by a few lines of script inside.

Everything that comes from rows passes Jinja's escaping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from harness.analysis.layout import Cell, Column, decimals, interval
from harness.analysis.leaderboard import SOURCE, Board
from harness.analysis.render import head_text, plain_letter

TEMPLATE = Path(__file__).with_name("leaderboard.html.j2")
FIRST = {1: "descending", -1: "ascending", 0: "ascending"}  # best first


def page(board: Board, title: str = "Leaderboard") -> str:
    """The page. `board` is laid out with `sources`, without `ci`: intervals stand below their values."""
    table = board.table
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    values = [[cells[place].raw.get("") for _, cells in table.rows] for place in range(len(table.columns))]
    digits = [decimals([v for v in column if isinstance(v, int | float)]) for column in values]
    rows = [
        {
            "labels": labels, "cited": place in board.cited,
            "cells": [_cell(*given) for given in zip(cells, table.columns, digits, strict=True)],
        }
        for place, (labels, cells) in enumerate(table.rows)
    ]
    heads = [(label, "ascending", True) for label in table.labels]
    heads += [(head_text(column), FIRST[column.direction], column.key == SOURCE) for column in table.columns]
    notes = [(plain_letter(place), note) for place, note in enumerate(table.notes)]
    return template.render(title=title, heads=heads, rows=rows, caption=table.caption, notes=notes)


def _cell(cell: Cell, column: Column, digits: int) -> dict[str, Any]:
    """`value` is what is sorted by: "" sorts last."""
    value = cell.raw.get("")
    source = column.key == SOURCE
    known = cell.raw.get("low") is not None
    return {
        "value": cell.text if source else "" if value is None else repr(value), "text": cell.text, "source": source,
        "best": cell.rank == 1, "marks": [plain_letter(mark) for mark in cell.marks],
        "interval": interval(cell.raw, digits).strip() if known else "",
    }
