"""A reproduced table as text: for a terminal, as Markdown, as CSV and as LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnmosaic.tables.reproduced import Cell, Reproduced, Row

Lines = list[list[str]]
HEADINGS = ["row", "runs", "metric", "published", "mean", "std", "n", "difference", "verdict"]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def long_lines(table: Reproduced, form: str = ".3f") -> Lines:
    """Returns a line for each number, under `HEADINGS`; a row without any has one line of its own."""
    lines = []
    for row in table.rows:
        told = [cell for cell in row.cells if cell.values or cell.published is not None] or [Cell("", ())]
        for cell in told:
            sign = form if form == "" else f"+{form}"
            lines.append([
                row.name, row.state, cell.metric, _number(cell.published, ".4g"), _number(cell.mean, form),
                _number(cell.std, form), str(len(cell.values)), _number(row.difference(cell), sign), row.verdict(cell),
            ])  # fmt: skip
    return lines


def matrices(table: Reproduced) -> list[tuple[str, Lines]]:
    """Returns three blocks for a table whose rows and columns are of one kind: reproduced, published, difference."""
    shown = table.published.shown
    heading = ["", *table.published.columns]

    def block(value: Callable[[Row, Cell], float | None], form: str) -> Lines:
        lines = [heading]
        for row in table.rows:
            cells = {cell.metric: cell for cell in row.cells}
            lines.append(
                [table.label(row), *(_number(value(row, cells[m]), form) if m in cells else "" for m in shown)]
            )
        return lines

    rows = table.published.rows
    known = [[table.published.label(row), *(_number(rows[row].get(m), ".2f") for m in shown)] for row in rows]
    blocks = [
        ("reproduced", block(lambda _, cell: cell.mean, ".2f")),
        ("published", [heading, *known]),
        ("difference", block(Row.difference, "+.2f")),
    ]
    if any(cell.std is not None for row in table.rows for cell in row.cells):
        blocks.append(("standard deviation over seeds", block(lambda _, cell: cell.std, ".3f")))
    return blocks


def _data(table: Reproduced) -> str:
    kinds = sorted({row.data for row in table.rows if row.data})
    return f"Data: {', '.join(kinds)}. " if kinds else ""


def _short(table: Reproduced) -> Lines:
    """Returns the long lines with what repeats left out."""
    before: list[str] = []
    lines = []
    for line in long_lines(table):
        same = before[:2] == line[:2]
        lines.append(["", "", *line[2:]] if same else [table.published.label(line[0]), *line[1:]])
        before = line
    return lines


def _told(table: Reproduced) -> list[str]:
    """Returns what is told of rows beside their numbers: other settings, and in a matrix what became of the runs."""
    told = []
    for row in table.rows:
        notes = [note for note in row.notes if not row.smoke]
        if table.published.matrix or notes:
            state = [row.state] if table.published.matrix else []
            told.append(f"{table.label(row)}: {'; '.join([*state, *notes])}")
    return told


def terminal(table: Reproduced, width: int | None = None) -> str:
    """Draws a table for a terminal; for a narrow one in fewer columns."""
    if width is None:
        screen = Console()
        width = screen.width if screen.is_terminal else max(WIDE, screen.width)
    # What runs are called, and failed with, is no markup.
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    console.print(table.title, style="bold")
    told = _told(table)
    if table.published.matrix:
        for title, (heading, *lines) in matrices(table):
            _draw(console, title, heading, lines)
    elif width >= WIDE:
        _draw(console, "", HEADINGS, _short(table))
    else:
        _draw(console, "", *_narrow(table))
        told = [*_states(table), *told]
    console.print("\n".join([*told, f"{_data(table)}{table.summary}. Source: {table.published.source}"]))
    return console.file.getvalue()  # type: ignore[attr-defined]


WIDE = 110
"""Columns that a table takes with all there is to tell of it."""


def _narrow(table: Reproduced) -> tuple[list[str], Lines]:
    """Returns heading and lines of 80 columns: without what became of the runs, and in shorter words."""
    lines = [line for line in _short(table) if line[2]]
    for line in lines:
        line[-1] = line[-1].replace("the seeds' range", "range").replace("other settings", "other")
        del line[1]
    heading = [name.replace("difference", "diff") for name in HEADINGS if name != "runs"]
    return heading, lines


def _states(table: Reproduced) -> list[str]:
    """Returns a line for each kind of thing that became of rows' runs."""
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        rows.setdefault(row.state, []).append(table.label(row))
    return [f"{state}: {', '.join(labels)}" for state, labels in rows.items()]


def _draw(console: Console, title: str, heading: Sequence[str], lines: Lines) -> None:
    drawn = Table(title=title or None, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in heading:
        numbers = name not in ("", "row", "runs", "metric", "verdict")
        wraps = name == "runs"  # may be a sentence
        drawn.add_column(name, justify="right" if numbers else "left", no_wrap=not wraps, min_width=10 if wraps else 1)
    for line in lines:
        drawn.add_row(*line)
    console.print(drawn)


def markdown(table: Reproduced) -> str:
    """Writes a table as Markdown."""

    def block(heading: Sequence[str], lines: Lines) -> str:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in [heading, *lines]]
        head, *rest = (f"| {' | '.join(line)} |" for line in cells)
        return "\n".join([head, f"|{' --- |' * len(heading)}", *rest])

    parts = [f"**{table.title}**"]
    if table.published.matrix:
        for title, (heading, *lines) in matrices(table):
            parts += [f"{title}:", block(heading, lines)]
    else:
        parts.append(block(HEADINGS, _short(table)))
    if told := _told(table):
        parts.append("\n".join(f"- {line}" for line in told))
    parts.append(f"{_data(table)}{table.summary}. Source: {table.published.source}")
    return "\n\n".join(parts) + "\n"


def as_csv(table: Reproduced) -> str:
    """Writes a table as CSV: one line a number, in full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", *HEADINGS])
    writer.writerows([table.published.key, *line] for line in long_lines(table, form=""))
    return file.getvalue()


def latex(table: Reproduced) -> str:
    """Writes a table as LaTeX, for the booktabs package."""

    def block(heading: Sequence[str], lines: Lines) -> str:
        head, *rest = (" & ".join(map(_escape, line)) + r" \\" for line in [heading, *lines])
        columns = "l" * len(heading)
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rest,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )

    if table.published.matrix:
        blocks = [f"{_escape(title)}\n\n{block(heading, lines)}" for title, (heading, *lines) in matrices(table)]
    else:
        blocks = [block(HEADINGS, _short(table))]
    caption = _escape(f"{table.title}. {_data(table)}{table.summary}.")
    body = "\n\n".join([*blocks, *(_escape(line) for line in _told(table))])
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", body, r"\end{table}"]) + "\n"


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


FORMATS: dict[str, Callable[[Reproduced], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": as_csv,
    "latex": latex,
}
