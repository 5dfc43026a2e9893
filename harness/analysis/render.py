"""A laid-out table as Markdown, LaTeX, CSV, HTML, or for a terminal."""

from __future__ import annotations

import csv
import html as html_text
import io

import rich.measure
import rich.table
from rich import box
from rich.console import Console, Group
from rich.text import Text

from harness.analysis.layout import Cell, Column, Table

LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$",
})


def markdown(table: Table) -> str:
    """GitHub's Markdown: best bold."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def text(cell: Cell) -> str:
        body = _pipe(cell.text)
        return (f"**{body}**" if cell.rank == 1 else body) + _letters(cell)

    lines = [f"**{_pipe(table.title)}**", ""] if table.title else []
    lines.append(line([*table.labels, *(_pipe(head_text(column)) for column in table.columns)]))
    lines.append(line(["---"] * len(table.labels) + ["---:"] * len(table.columns)))
    lines += [line([*map(_pipe, labels), *map(text, cells)]) for labels, cells in table.rows]
    lines += ["", table.caption]
    lines += [f"\n{_letter(i)} {note}" for i, note in enumerate(table.notes)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs table: best bold, second underlined. Needs \\usepackage{booktabs}."""

    def text(cell: Cell) -> str:
        body = _tex(cell.text)
        body = rf"\textbf{{{body}}}" if cell.rank == 1 else rf"\underline{{{body}}}" if cell.rank == 2 else body
        return body + "".join(rf"\textsuperscript{{{plain_letter(mark)}}}" for mark in cell.marks)

    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    head = [*map(_tex, table.labels), *(_tex(column.key) + arrows[column.direction] for column in table.columns)]
    notes = [rf"\textsuperscript{{{plain_letter(i)}}} {_tex(note)}" for i, note in enumerate(table.notes)]
    caption = _tex(f"{table.title}. {table.caption}" if table.title else table.caption)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * len(table.columns)}}}",
        r"\toprule", " & ".join(head) + r" \\", r"\midrule",
        *(" & ".join([*map(_tex, labels), *map(text, cells)]) + r" \\" for labels, cells in table.rows),
        r"\bottomrule", r"\end{tabular}",
    ]
    if notes:
        lines.append(r"\par\smallskip\footnotesize " + r"; ".join(notes))
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def csv_text(table: Table) -> str:
    """Full precision, no marks: a column for each value, and `key:low`, `key:high`, `key:n` beside it."""
    suffixes = []
    for place, column in enumerate(table.columns):
        names = dict.fromkeys(suffix for _, cells in table.rows for suffix in cells[place].raw) or {"": None}
        previous = table.columns[place - 1].key
        key = f"{previous}:p" if column.key == "p" else column.key
        suffixes += [(place, suffix, f"{key}:{suffix}" if suffix else key) for suffix in names]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.labels, *(name for _, _, name in suffixes)])
    for labels, cells in table.rows:
        values = [cells[place].raw.get(suffix) for place, suffix, _ in suffixes]
        writer.writerow([*labels, *("" if value is None else repr(value) for value in values)])
    return out.getvalue()


def html(table: Table) -> str:
    """A `<table>` with its caption, then its footnotes; no styles of its own."""
    esc = html_text.escape

    def text(cell: Cell) -> str:
        body = esc(cell.text)
        body = f"<strong>{body}</strong>" if cell.rank == 1 else f"<u>{body}</u>" if cell.rank == 2 else body
        return "<td>" + body + "".join(f"<sup>{plain_letter(mark)}</sup>" for mark in cell.marks) + "</td>"

    caption = esc(f"{table.title}. {table.caption}" if table.title else table.caption)
    head = [*table.labels, *(head_text(column) for column in table.columns)]
    lines = ["<table>", f"<caption>{caption}</caption>"]
    lines.append("<thead><tr>" + "".join(f"<th>{esc(name)}</th>" for name in head) + "</tr></thead>")
    lines.append("<tbody>")
    for labels, cells in table.rows:
        line = [*(f"<th>{esc(label)}</th>" for label in labels), *map(text, cells)]
        lines.append("<tr>" + "".join(line) + "</tr>")
    lines += ["</tbody>", "</table>"]
    lines += [f"<p><sup>{plain_letter(i)}</sup> {esc(note)}</p>" for i, note in enumerate(table.notes)]
    return "\n".join(lines) + "\n"


def terminal(table: Table, width: int = 100) -> Group:
    """A table for a terminal of `width` columns, its footnotes after it.

    Labels that never change stand in the title, long heads break at hyphens. A table that is too wide goes on
    below itself with the columns that are left; where not even one fits, every row becomes a block of lines.
    """
    fixed = [i for i in range(len(table.labels)) if len({labels[i] for labels, _ in table.rows}) == 1]
    if len(fixed) == len(table.labels):
        fixed = fixed[:-1]
    shown = [i for i in range(len(table.labels)) if i not in fixed]
    constant = ", ".join(f"{table.labels[i]} {table.rows[0][0][i]}" for i in fixed) if table.rows else ""
    title = " · ".join(part for part in (table.title, constant) if part) or None
    notes = "\n".join([table.caption, *(f"{_letter(i)} {note}" for i, note in enumerate(table.notes))])
    chunks: list[list[int]] = [[]]
    for unit in _units(table.columns):
        if chunks[-1] and _width(_chunk(table, shown, chunks[-1] + unit)) > width:
            chunks.append([])
        chunks[-1] += unit
    parts = [_chunk(table, shown, chunk) for chunk in chunks]
    if any(_width(part) > width for part in parts):
        parts = [_stacked(table, shown)]
    parts[0].title = title
    return Group(*parts, Text(notes))


def _units(columns: list[Column]) -> list[list[int]]:
    """Columns that stay together: a difference with its p, and the cost at the end."""
    units: list[list[int]] = []
    for i, column in enumerate(columns):
        if units and (column.key == "p" or columns[i - 1].key in ("n", "NFE", "pairs")):
            units[-1].append(i)
        else:
            units.append([i])
    return units


def _empty() -> rich.table.Table:
    return rich.table.Table(
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1)
    )


def _chunk(table: Table, shown: list[int], chosen: list[int]) -> rich.table.Table:
    """The table with the labels `shown` and the columns `chosen`."""
    out = _empty()
    for i in shown:
        out.add_column(table.labels[i], no_wrap=True)
    for i in chosen:
        head = head_text(table.columns[i])
        texts = [len(cells[i].text) + len(cells[i].marks) for _, cells in table.rows]
        out.add_column(head if len(head) <= max(texts, default=0) else _broken(head), justify="right", no_wrap=True)
    for labels, cells in table.rows:
        out.add_row(*(labels[i] for i in shown), *(_styled(cells[i]) for i in chosen))
    return out


def _width(table: rich.table.Table) -> int:
    wide = Console(width=10_000)
    return rich.measure.Measurement.get(wide, wide.options, table).maximum


def _stacked(table: Table, shown: list[int]) -> rich.table.Table:
    out = _empty()
    out.show_header = False
    out.add_column(overflow="fold")
    out.add_column(justify="right", overflow="fold")
    for labels, cells in table.rows:
        out.add_row(Text(" ".join(labels[i] for i in shown), style="bold"), "")
        for column, cell in zip(table.columns, cells, strict=True):
            out.add_row("  " + head_text(column), _styled(cell))
        out.add_section()
    return out


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style={1: "bold", 2: "underline"}.get(cell.rank, "")).append(_letters(cell), style="dim")


def _broken(head: str) -> str:
    """A head with a break after each hyphen, the arrow with the last part."""
    return head.replace("-", "-\n")


def head_text(column: Column) -> str:
    """A column's name with the arrow that says what is better."""
    return column.key + ARROWS[column.direction]


def _letter(mark: int) -> str:
    return LETTERS[mark] if mark < len(LETTERS) else f"[{mark + 1}]"


def _letters(cell: Cell) -> str:
    return "".join(_letter(mark) for mark in cell.marks)


def plain_letter(mark: int) -> str:
    """A footnote's mark where superscripts are the format's own."""
    return "abcdefghijklmnoprstuvwxyz"[mark] if mark < len(LETTERS) else str(mark + 1)


def _pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tex(text: str) -> str:
    return text.translate(_LATEX)
