"""A laid-out table as Markdown, LaTeX, CSV, HTML, or for a terminal."""

from __future__ import annotations

import csv
import html as html_text
import io
import re
from collections.abc import Iterable, Sequence

import rich.measure
import rich.table
from rich import box
from rich.console import Console, Group
from rich.text import Text

from harness.analysis.layout import Cell, Column, Table

LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
MINUS = re.compile(r"-(?=\d)")
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$",
    "−": "$-$", "≈": r"$\approx$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$", "√": r"$\surd$", "σ": r"$\sigma$",
})


def markdown(table: Table) -> str:
    """GitHub's Markdown: best bold."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def text(cell: Cell) -> str:
        body = _pipe(cell.text)
        return (f"**{body}**" if cell.rank == 1 else body) + _letters(cell)

    lines = [f"**{_pipe(table.title)}**", ""] if table.title else []
    lines.append(line([*table.labels, *(_pipe(head_text(column)) + _letters(column) for column in table.columns)]))
    lines.append(line(["---"] * len(table.labels) + ["---:"] * len(table.columns)))
    lines += [line([*map(_pipe, labels), *map(text, cells)]) for labels, cells in table.rows]
    lines += ["", table.caption]
    lines += [f"\n{_letter(i)} {note}" for i, note in enumerate(table.notes)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs table: best bold, second underlined. Needs \\usepackage{booktabs}.

    With published numbers the head has two lines, a metric over its parts, and the whole is shrunk to the line's
    width where it is wider, which needs \\usepackage{graphicx} too.
    """

    def text(cell: Cell) -> str:
        body = MINUS.sub("$-$", _tex(cell.text))
        body = rf"\textbf{{{body}}}" if cell.rank == 1 else rf"\underline{{{body}}}" if cell.rank == 2 else body
        return body + _tex_marks(cell.marks)

    notes = [rf"{_tex_marks([i])} {_tex(note)}" for i, note in enumerate(table.notes)]
    caption = _tex(f"{table.title}. {table.caption}" if table.title else table.caption)
    several = any(column.part for column in table.columns)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
        *([r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"] if several else []),
        rf"\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * len(table.columns)}}}",
        r"\toprule", *_tex_head(table, several), r"\midrule",
        *(" & ".join([*map(_tex, labels), *map(text, cells)]) + r" \\" for labels, cells in table.rows),
        r"\bottomrule", r"\end{tabular}" + "}" * several,
    ]
    if notes:
        lines.append(r"\par\smallskip\footnotesize " + r"; ".join(notes))
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex_head(table: Table, several: bool) -> list[str]:
    """One line, or two with a rule under each metric that has parts."""
    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    first, rules, second = ["" for _ in table.labels], [], [*map(_tex, table.labels)]
    for columns in _spans(table.columns):
        column = columns[0]
        name = _tex(_name(column)) + arrows[column.direction] + _tex_marks(column.marks)
        if not column.part:
            first.append("")
            second.append(name)
            continue
        start = len(second) + 1
        first.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{name}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(columns) - 1}}}")
        second += [part.part for part in columns]
    lines = [" & ".join(first) + r" \\", " ".join(rules)] if several else []
    return [*lines, " & ".join(second) + r" \\"]


def csv_text(table: Table) -> str:
    """Full precision, no marks: a column for each value, and `key:low`, `key:high`, `key:n` beside it.

    Where numbers are published for it, `key:published` and `key:difference` too; a `key` in another unit than the
    metric's own says so ("hpsv2 x100").
    """
    suffixes = []
    for place, column in enumerate(table.columns):
        names = dict.fromkeys(suffix for _, cells in table.rows for suffix in cells[place].raw)
        if not names and not column.part:
            names = {"": None}
        previous = table.columns[place - 1].key
        key = f"{previous}:p" if column.key == "p" else _name(column, " x")
        suffixes += [(place, suffix, f"{key}:{suffix}" if suffix else key) for suffix in names]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.labels, *(name for _, _, name in suffixes)])
    for labels, cells in table.rows:
        values = [cells[place].raw.get(suffix) for place, suffix, _ in suffixes]
        writer.writerow([*labels, *("" if v is None else v if isinstance(v, str) else repr(v) for v in values)])
    return out.getvalue()


def html(table: Table) -> str:
    """A `<table>` with its caption, then its footnotes; no styles of its own."""
    esc = html_text.escape

    def text(cell: Cell) -> str:
        body = esc(cell.text)
        body = f"<strong>{body}</strong>" if cell.rank == 1 else f"<u>{body}</u>" if cell.rank == 2 else body
        return f"<td>{body}{sup(cell.marks)}</td>"

    def sup(marks: Iterable[int]) -> str:
        return "".join(f"<sup>{plain_letter(mark)}</sup>" for mark in marks)

    several = any(column.part for column in table.columns)
    rows = ' rowspan="2"' if several else ""
    heads = [f"<th{rows}>{esc(label)}</th>" for label in table.labels]
    for columns in _spans(table.columns):
        span = f' colspan="{len(columns)}"' if columns[0].part else rows
        name = _name(columns[0]) + ARROWS[columns[0].direction]
        heads.append(f"<th{span}>{esc(name)}{sup(columns[0].marks)}</th>")
    caption = esc(f"{table.title}. {table.caption}" if table.title else table.caption)
    lines = ["<table>", f"<caption>{caption}</caption>", "<thead><tr>" + "".join(heads) + "</tr>"]
    if several:
        parts = "".join(f"<th>{column.part}</th>" for column in table.columns if column.part)
        lines.append(f"<tr>{parts}</tr>")
    lines[-1] += "</thead>"
    lines.append("<tbody>")
    for labels, cells in table.rows:
        line = [*(f"<th>{esc(label)}</th>" for label in labels), *map(text, cells)]
        lines.append("<tr>" + "".join(line) + "</tr>")
    lines += ["</tbody>", "</table>"]
    lines += [f"<p><sup>{plain_letter(i)}</sup> {esc(note)}</p>" for i, note in enumerate(table.notes)]
    return "\n".join(lines) + "\n"


FORMATS = {"markdown": markdown, "latex": latex, "html": html}  # a table as text


def terminal(table: Table, width: int = 100) -> Group:
    """A table for a terminal of `width` columns, its footnotes after it.

    Labels that never change stand in the title, long heads break at hyphens. A table that is too wide goes on
    below itself with the columns that are left, published, ours and difference together; where not even one fits,
    every row becomes a block of lines.
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
    """Columns that stay together: the parts of one, a difference with its p, and the cost at the end."""
    units: list[list[int]] = []
    for i, column in enumerate(columns):
        if units and (_goes_on(columns, i) or column.key == "p" or columns[i - 1].key in ("n", "NFE", "pairs")):
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
    several = any(column.part for column in table.columns)
    for i in shown:
        out.add_column(table.labels[i], no_wrap=True, vertical="bottom" if several else "top")
    for i in chosen:
        column = table.columns[i]
        head = "" if _goes_on(table.columns, i) else _name(column) + ARROWS[column.direction] + _letters(column)
        texts = [len(cells[i].text) + len(cells[i].marks) for _, cells in table.rows]
        head = head if len(head) <= max([*texts, len(column.part)]) else _broken(head)
        head = f"{head}\n{column.part}" if column.part else head
        out.add_column(head, justify="right", no_wrap=True, vertical="bottom" if several else "top")
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
            out.add_row("  " + head_text(column) + _letters(column), _styled(cell))
        out.add_section()
    return out


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style={1: "bold", 2: "underline"}.get(cell.rank, "")).append(_letters(cell), style="dim")


def _broken(head: str) -> str:
    """A head with a break after each hyphen, the arrow with the last part."""
    return head.replace("-", "-\n")


def _name(column: Column, times: str = " ×") -> str:
    return column.key + (f"{times}{column.scale:g}" if column.scale != 1 else "")


def head_text(column: Column) -> str:
    """A column's name, with the arrow that says what is better, and which part of it this is."""
    return _name(column) + ARROWS[column.direction] + (f" {column.part}" if column.part else "")


def _goes_on(columns: Sequence[Column], i: int) -> bool:
    """Whether a column is a further part of the one before it."""
    return bool(columns[i].part and i and columns[i - 1].part and columns[i - 1].key == columns[i].key)


def _spans(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns, the parts of one together."""
    spans: list[list[Column]] = []
    for i, column in enumerate(columns):
        if _goes_on(columns, i):
            spans[-1].append(column)
        else:
            spans.append([column])
    return spans


def _letter(mark: int) -> str:
    return LETTERS[mark] if mark < len(LETTERS) else f"[{mark + 1}]"


def _letters(marked: Cell | Column) -> str:
    return "".join(_letter(mark) for mark in marked.marks)


def plain_letter(mark: int) -> str:
    """A footnote's mark where superscripts are the format's own."""
    return "abcdefghijklmnoprstuvwxyz"[mark] if mark < len(LETTERS) else str(mark + 1)


def _tex_marks(marks: Iterable[int]) -> str:
    return "".join(rf"\textsuperscript{{{plain_letter(mark)}}}" for mark in marks)


def _pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tex(text: str) -> str:
    return text.translate(_LATEX)
