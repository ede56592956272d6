"""Formats tables for a terminal, as Markdown, as CSV and as LaTeX."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Grid

from attnmosaic.core.console import render_text
from attnmosaic.core.text import short_number
from attnmosaic.tables.table import Cell, Row, Table

Lines = list[list[str]]
"""The headings, then one line for each row or cell."""

HEADINGS = ["row", "runs", "metric", "published", "mean", "std", "n", "difference", "verdict"]
COMPARED = ("published", "difference", "verdict")
"""Headings that only a table with published numbers has."""

NO_VALUE = "\N{EN DASH}"
"""The text of a cell without a value."""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# ---- lines of text


def headings(*tables: Table) -> list[str]:
    """Returns the headings of tables with one cell per line: those that any table needs, and the varied keys."""
    varied = dict.fromkeys(key for table in tables for key in table.varied)
    published = any(table.has_published for table in tables)
    row, *others = [name for name in HEADINGS if published or name not in COMPARED]
    return [row, *varied, *others]


def _texts(row: Row, cell: Cell, form: str) -> dict[str, str]:
    """Returns the texts of one cell and its row, by heading; `form` formats the numbers."""
    sign = form and f"+{form}"
    return {
        "row": row.name, "scale": "smoke" if row.smoke else "full", **row.varied,
        "runs": row.state, "metric": cell.metric,
        "published": _number(cell.published, ".4g"), "mean": _number(cell.mean, form),
        "std": _number(cell.std, form), "n": str(len(cell.values)),
        "difference": _number(row.difference(cell), sign), "verdict": row.verdict(cell),
    }  # fmt: skip


def long_lines(table: Table, brief: bool = False, folded: bool = False) -> Lines:
    """Returns the headings and one line per cell; texts of the row are only on its first line.

    A row without any value has one line.

    Args:
        table: the table.
        brief: skips rows without values and the states of the runs, and shortens verdicts.
        folded: writes the varied keys below the row's name instead of in columns.
    """
    skipped = {"runs"} if brief else set()
    skipped |= {*table.varied} if folded else set() if table.is_named else {"row"}
    names = [name for name in headings(table) if name not in skipped]
    lines = [[name.replace("difference", "diff") if brief else name for name in names]]
    before = None
    for row, cell in table.lines:
        texts = _texts(row, cell, ".3f") | {key: short_number(value) for key, value in row.varied.items()}
        texts["row"] = "\n".join(_folded(table, row)) if folded else table.short_label(row)
        if brief:
            texts["verdict"] = texts["verdict"].replace("the seeds' range", "range").replace("other settings", "other")
        if row is before:
            texts |= dict.fromkeys(("row", "runs", *table.varied), "")
        if cell.metric or not brief:
            lines.append([texts[name] for name in names])
        before = row
    return lines


def _folded(table: Table, row: Row) -> list[str]:
    name = [table.short_label(row)] if table.is_named else []
    return [*name, *(f"{key}={short_number(value)}" for key, value in row.varied.items())]


def wide_lines(table: Table, between: str = " ± ") -> Lines:
    """Returns the headings and one line per row: its varied keys, and mean and standard deviation of each metric."""
    names = ["row"] if table.is_named else []
    lines = [[*names, *table.varied, *table.measured, "n", "runs"]]
    for row in table.rows:
        cells = [row.cell(metric) for metric in table.measured]
        seeds = str(max((len(cell.values) for cell in cells), default=0))
        name = [table.short_label(row)] if table.is_named else []
        values = [*map(short_number, row.varied.values()), *(_mean_and_std(cell, between) for cell in cells)]
        lines.append([*name, *values, seeds, row.state])
    return lines


def _mean_and_std(cell: Cell, between: str) -> str:
    deviation = "" if cell.std is None else f"{between}{cell.std:.3f}"
    return NO_VALUE if cell.mean is None else f"{cell.mean:.3f}{deviation}"


def _blocks(table: Table) -> list[tuple[str, Lines]]:
    """Returns the titles and lines of a table's parts: one part per view of a matrix, otherwise a single part."""
    if table.published.matrix:
        return [
            (view.title, [["", *table.published.columns],
                          *([label, *(_number(value, view.form) for value in values)] for label, values in view.rows)])
            for view in table.matrices
        ]  # fmt: skip
    return [("", long_lines(table) if table.has_published else wide_lines(table))]


def _facts(table: Table) -> list[str]:
    """Returns sentences on the whole table: shared settings, data, and the number of cells by verdict."""
    kinds = sorted({row.data for row in table.rows if row.data})
    shared = ", ".join(f"{key}={value}" for key, value in table.shared.items())
    facts = {
        "Mean ± standard deviation over n seeds": table.has_deviations and not table.has_published,
        f"In all runs: {shared}": shared,
        f"Data: {', '.join(kinds)}": kinds and "data" not in {*table.varied, *table.shared},
        table.summary: table.published.rows,
    }
    return [fact for fact, holds in facts.items() if holds]


def _footer(table: Table) -> str:
    source = [f"Source: {table.published.source}"] if table.published.rows else []
    return ". ".join([*_facts(table), *source])


def _notes(table: Table, states: bool) -> list[str]:
    """Returns lines on single rows: the states of their runs if `states` is true, other settings, and warnings."""
    lines = [f"{state}: {', '.join(labels)}" for state, labels in table.states.items() if states]
    lines += [f"{table.label(row)}: {'; '.join(row.other_settings)}" for row in table.rows if row.other_settings]
    return [*lines, *(f"warning: {line}" for line in table.warnings)]


# ---- for a terminal


def terminal(table: Table, width: int | None = None) -> str:
    """Returns a table as text for a terminal; a narrow terminal gets fewer columns."""
    if width is None:
        screen = Console()
        width = (
            screen.width if screen.is_terminal else max(WIDE + sum(len(key) + 2 for key in table.varied), screen.width)
        )
    if table.published.matrix:
        grids, states = [_grid(title, lines, 1) for title, lines in _blocks(table)], True
    else:
        lines, padding = _fitting(table, width)
        grids, states = [_grid("", lines, padding)], "runs" not in lines[0]
    below = [line for line in (*_notes(table, states), _footer(table)) if line]
    return render_text(table.title, *grids, *(["\n".join(below)] if below else []), width=width)


WIDE = 110
"""Width of a table, in characters, if the output is not a terminal."""


def _fitting(table: Table, width: int) -> tuple[Lines, int]:
    """Returns the first layout that fits into a width in characters, and the padding of its cells."""
    layouts = [long_lines(table), long_lines(table, brief=True), long_lines(table, brief=True, folded=True)]
    if not table.has_published:
        heading, *rest = wide_lines(table, "±")
        layouts.insert(0, [[*map(_two_lines, heading)], *rest])
    fitting = ((lines, padding) for lines in layouts for padding in (1, 0) if _width(lines, padding) <= width)
    return next(fitting, (layouts[-1], 0))


def _two_lines(text: str) -> str:
    """Breaks a long heading into two lines, as the numbers below it are shorter."""
    text = text.replace("/", "\n")
    return ".\n".join(text.rsplit(".", 1)) if len(text) > 10 else text


def _width(lines: Lines, padding: int) -> int:
    """Returns the width of lines in characters; the states of runs count as 10, as they can wrap."""
    longest = [max(len(part) for cell in column for part in cell.split("\n")) for column in zip(*lines, strict=True)]
    if "runs" in lines[0]:
        longest[lines[0].index("runs")] = 10
    return sum(longest) + (1 + padding) * len(longest) + 1


def _grid(title: str, lines: Lines, padding: int) -> Grid:
    heading, *rest = lines
    grid = Grid(title=title or None, title_justify="left", box=SIMPLE, padding=(0, padding, 0, 0))
    for name, *column in zip(heading, *rest, strict=True):
        words = name in ("", "row", "runs", "metric", "verdict")
        numbers = not words and all(text[:1] in f"+-.0123456789{NO_VALUE}" for text in column)
        grid.add_column(
            name, justify="right" if numbers else "left", no_wrap=name != "runs", min_width=10 if name == "runs" else 1
        )
    for line in rest:
        grid.add_row(*line)
    return grid


# ---- for files


def markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    parts = [f"**{table.title}**"]
    for title, lines in _blocks(table):
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        head, *rest = (f"| {' | '.join(line)} |" for line in cells)
        block = "\n".join([head, f"|{' --- |' * len(lines[0])}", *rest])
        parts += [f"{title}:", block] if title else [block]
    notes = "\n".join(f"- {line}" for line in _notes(table, table.published.matrix))
    return "\n\n".join(part for part in (*parts, notes, _footer(table)) if part) + "\n"


def as_csv(*tables: Table) -> str:
    """Returns tables as one CSV text with one line per cell, in full precision.

    The columns are those of all tables; a column that a table does not have is empty in its lines. If there are smoke
    runs in a table without verdicts, a column shows the scale.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = headings(*tables)
    smoke = any(row.smoke for table in tables for row in table.rows if not table.has_published)
    if smoke and "scale" not in columns:
        columns.insert(1, "scale")
    writer.writerow(["table", *columns])
    for table in tables:
        lines = (_texts(row, cell, "") for row, cell in table.lines)
        writer.writerows([table.published.key, *(line.get(name, "") for name in columns)] for line in lines)
    return file.getvalue()


def latex(table: Table) -> str:
    """Returns a table as LaTeX, for the booktabs package."""
    blocks = []
    for title, lines in _blocks(table):
        head, *rest = (" & ".join(map(_escape, line)) + r" \\" for line in lines)
        begin = rf"\begin{{tabular}}{{{'l' * len(lines[0])}}}"
        block = "\n".join([begin, r"\toprule", head, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}"])
        blocks.append(f"{_escape(title)}\n\n{block}" if title else block)
    caption = _escape(". ".join([table.title, *_facts(table)]))
    body = "\n\n".join([*blocks, *map(_escape, _notes(table, table.published.matrix))])
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{caption}.}}", body, r"\end{table}"]) + "\n"


def _escape(text: str) -> str:
    special = {
        "±": r"$\pm$",
        NO_VALUE: "--",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _for_each(write: Callable[[Table], str]) -> Callable[[Iterable[Table]], str]:
    return lambda tables: "\n".join(map(write, tables))


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": _for_each(terminal),
    "markdown": _for_each(markdown),
    "csv": lambda tables: as_csv(*tables),
    "latex": _for_each(latex),
}
