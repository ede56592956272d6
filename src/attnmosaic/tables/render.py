"""A reproduced table as text: for a terminal, as Markdown, as CSV and as LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table

from attnmosaic.core.console import drawn
from attnmosaic.core.text import short_number
from attnmosaic.tables.reproduced import Cell, Reproduced, Row

Lines = list[list[str]]
HEADINGS = ["row", "runs", "metric", "published", "mean", "std", "n", "difference", "verdict"]
COMPARED = ("published", "difference", "verdict")
"""Those that only a table with published numbers has."""

NOTHING = "\N{EN DASH}"
"""What stands where a row has no value of a metric."""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def headings(*tables: Reproduced) -> list[str]:
    """Returns the headings of long lines: those of `HEADINGS` that any table has, and the varied keys."""
    varied = dict.fromkeys(key for table in tables for key in table.varied)
    published = any(table.has_published for table in tables)
    row, *others = [name for name in HEADINGS if published or name not in COMPARED]
    return [row, *varied, *others]


def long_lines(table: Reproduced, form: str = ".3f", columns: Sequence[str] = ()) -> Lines:
    """Returns a line for each number; a row without any has one line of its own.

    Args:
        table: the table.
        form: how to write numbers.
        columns: the headings; those of `headings` if there are none.
    """
    sign = form if form == "" else f"+{form}"
    lines = []
    for row in table.rows:
        told = [cell for cell in row.cells if cell.values or cell.published is not None] or [Cell("", ())]
        for cell in told:
            line = {
                "row": row.name, "scale": "smoke" if row.smoke else "full", **row.varied,
                "runs": row.state, "metric": cell.metric,
                "published": _number(cell.published, ".4g"), "mean": _number(cell.mean, form),
                "std": _number(cell.std, form), "n": str(len(cell.values)),
                "difference": _number(row.difference(cell), sign), "verdict": row.verdict(cell),
            }  # fmt: skip
            lines.append([line.get(name, "") for name in columns or headings(table)])
    return lines


def wide_lines(table: Reproduced, between: str = " ± ") -> Lines:
    """Returns a heading and a line for each row: its varied keys, and mean and deviation of each metric."""
    names = ["row"] if table.is_named else []
    lines = [[*names, *table.varied, *table.measured, "n", "runs"]]
    for row in table.rows:
        own = {cell.metric: cell for cell in row.cells}
        cells = [own.get(metric, Cell(metric, ())) for metric in table.measured]
        seeds = str(max((len(cell.values) for cell in cells), default=0))
        called = [table.published.label(row.name)] if table.is_named else []
        values = [*map(short_number, row.varied.values()), *(_spread(cell, between) for cell in cells)]
        lines.append([*called, *values, seeds, row.state])
    return lines


def _spread(cell: Cell, between: str) -> str:
    deviation = "" if cell.std is None else f"{between}{cell.std:.3f}"
    return NOTHING if cell.mean is None else f"{cell.mean:.3f}{deviation}"


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


def _facts(table: Reproduced) -> list[str]:
    """Returns what holds for a table as a whole: how near it came to what was published, or what its runs share."""
    kinds = sorted({row.data for row in table.rows if row.data})
    data = [f"Data: {', '.join(kinds)}"] if kinds and "data" not in {*table.varied, *table.shared} else []
    shared = ", ".join(f"{key}={value}" for key, value in table.shared.items())
    spread = not table.has_published and any(cell.std is not None for row in table.rows for cell in row.cells)
    told = [spread and "Mean ± standard deviation over n seeds", shared and f"In all runs: {shared}"]
    return [*(fact for fact in told if fact), *data, *([table.summary] if table.published.rows else [])]


def _below(table: Reproduced) -> str:
    source = [f"Source: {table.published.source}"] if table.published.rows else []
    return ". ".join([*_facts(table), *source])


def _short(table: Reproduced) -> Lines:
    """Returns the long lines with what repeats left out."""
    before: list[str] = []
    lines = []
    same = 1 + len(table.varied) + 1
    for line in long_lines(table):
        repeated = before[:same] == line[:same]
        values = map(short_number, line[1 : same - 1])
        first = [""] * same if repeated else [table.published.label(line[0]), *values, line[same - 1]]
        lines.append([*first, *line[same:]])
        before = line
    return lines


def _notes(table: Reproduced) -> list[str]:
    """Returns the lines below the numbers: other settings, and in a matrix what became of the runs."""
    lines = []
    for row in table.rows:
        notes = [note for note in row.notes if not row.smoke]
        if table.published.matrix or notes:
            state = [row.state] if table.published.matrix else []
            lines.append(f"{table.label(row)}: {'; '.join([*state, *notes])}")
    return lines


def _warnings(table: Reproduced) -> list[str]:
    return [f"warning: {line}" for line in table.warnings]


def terminal(table: Reproduced, width: int | None = None) -> str:
    """Draws a table for a terminal; for a narrow one in fewer columns."""
    wide = WIDE + sum(len(key) + 2 for key in table.varied)
    if width is None:
        screen = Console()
        width = screen.width if screen.is_terminal else max(wide, screen.width)
    parts: list[RenderableType] = [table.title]
    notes = _notes(table)
    if table.published.matrix:
        for title, (heading, *lines) in matrices(table):
            parts.append(_grid(title, heading, lines))
    elif not table.has_published:
        lines, padding = _fitting(table, width)
        notes += [] if "runs" in lines[0] else _states(table)
        parts.append(_grid("", *_split(lines), padding))
    elif width >= wide:
        parts.append(_grid("", headings(table), _short(table)))
    else:
        parts.append(_grid("", *_narrowest(table, width)))
        notes = [*_states(table), *notes]
    if lines_below := [line for line in (*notes, _below(table), *_warnings(table)) if line]:
        parts.append("\n".join(lines_below))
    return drawn(*parts, width=width)


WIDE = 110
"""Columns that a table takes with all there is to tell of it."""


def _fitting(table: Reproduced, width: int) -> tuple[Lines, int]:
    """Returns the lines that fit into so many columns, and the padding of their cells."""
    wide, long = wide_lines(table, "±"), [headings(table), *_short(table)]
    if not table.is_named:
        long = [line[1:] for line in long]
    layouts = [(wide, 1), (wide, 0), (long, 1), (long, 0)]
    return next(((lines, space) for lines, space in layouts if _width(lines, space) <= width), (_folded(table), 1))


def _split(lines: Lines) -> tuple[list[str], Lines]:
    """Returns heading and lines; where each row is one, long names have two, as numbers are shorter than names."""
    wide = "metric" not in lines[0]
    return [_broken(name) if wide else name for name in lines[0]], lines[1:]


def _broken(name: str) -> str:
    name = name.replace("/", "\n")
    return ".\n".join(name.rsplit(".", 1)) if len(name) > 10 else name


def _width(lines: Lines, padding: int) -> int:
    """Returns the columns of a terminal that lines take; what became of the runs is a sentence, and may be broken."""
    heading, rest = _split(lines)
    columns = zip(heading, *rest, strict=True)
    longest = [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]
    if "runs" in heading:
        longest[heading.index("runs")] = min(10, longest[heading.index("runs")])
    return sum(longest) + (1 + padding) * len(longest) + 1


def _narrowest(table: Reproduced, width: int) -> tuple[list[str], Lines, int]:
    """Returns heading, lines and the padding of cells of a table with published numbers, for a narrow terminal."""
    heading, lines = _narrow(table)
    for padding in (1, 0):
        if not table.varied or _width([heading, *lines], padding) <= width:
            return heading, lines, padding
    return *_narrow(_labelled(table)), 0


def _labelled(table: Reproduced) -> Reproduced:
    """Returns a table whose rows' names say what varied keys did, a line each."""
    rows = [replace(row, name=table.label(row).replace(", ", "\n"), varied={}) for row in table.rows]
    return replace(table, rows=tuple(rows), varied=())


def _folded(table: Reproduced) -> Lines:
    """Returns long lines whose varied keys share a column, without what became of the runs."""
    lines = [["varied", *[name for name in headings(table) if name not in ("row", "runs", *table.varied)]]]
    for row in table.rows:
        part = replace(table, rows=(replace(row, varied={}),), varied=())
        values = [f"{key}={short_number(value)}" for key, value in row.varied.items()]
        called = "\n".join([*([table.published.label(row.name)] if table.is_named else []), *values])
        lines += [[called if i == 0 else "", *line[2:]] for i, line in enumerate(_short(part))]
    return lines


def _narrow(table: Reproduced) -> tuple[list[str], Lines]:
    """Returns heading and lines of 80 columns: without what became of the runs, and in shorter words."""
    heading = headings(table)
    runs, metric = heading.index("runs"), heading.index("metric")
    lines = [line for line in _short(table) if line[metric]]
    for line in lines:
        line[-1] = line[-1].replace("the seeds' range", "range").replace("other settings", "other")
        del line[runs]
    return [name.replace("difference", "diff") for name in heading if name != "runs"], lines


def _states(table: Reproduced) -> list[str]:
    """Returns a line for each kind of thing that became of rows' runs."""
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        rows.setdefault(row.state, []).append(table.label(row))
    return [f"{state}: {', '.join(labels)}" for state, labels in rows.items()]


def _grid(title: str, heading: Sequence[str], lines: Lines, padding: int = 1) -> Table:
    grid = Table(title=title or None, title_justify="left", box=SIMPLE, padding=(0, padding, 0, 0))
    for i, name in enumerate(heading):
        words = name in ("", "row", "runs", "metric", "verdict", "varied")
        numbers = not words and all(line[i][:1] in f"+-.0123456789{NOTHING}" for line in lines)
        wraps = name in ("runs", "varied")  # may be a sentence
        grid.add_column(name, justify="right" if numbers else "left", no_wrap=not wraps, min_width=10 if wraps else 1)
    for line in lines:
        grid.add_row(*line)
    return grid


def _block(table: Reproduced) -> Lines:
    """Returns heading and lines: one for each number beside published ones, else one for each row."""
    return [headings(table), *_short(table)] if table.has_published else wide_lines(table)


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
        heading, *lines = _block(table)
        parts.append(block(heading, lines))
    if notes := _notes(table):
        parts.append("\n".join(f"- {line}" for line in notes))
    if below := _below(table):
        parts.append(below)
    if warnings := _warnings(table):
        parts.append("\n".join(f"- {line}" for line in warnings))
    return "\n\n".join(parts) + "\n"


def as_csv(*tables: Reproduced) -> str:
    """Writes tables as one CSV: one line a number, in full precision.

    All have the columns of any of them; those of other tables' keys and published numbers are empty. Where smoke runs
    have no verdict to say so, there is a column for the scale.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = headings(*tables)
    smoke = any(row.smoke for table in tables for row in table.rows if not table.has_published)
    if smoke and "scale" not in columns:
        columns.insert(1, "scale")
    writer.writerow(["table", *columns])
    for table in tables:
        writer.writerows([table.published.key, *line] for line in long_lines(table, "", columns))
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
        heading, *lines = _block(table)
        blocks = [block(heading, lines)]
    caption = _escape(". ".join([table.title, *_facts(table)]))
    body = "\n\n".join([*blocks, *(_escape(line) for line in (*_notes(table), *_warnings(table)))])
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{caption}.}}", body, r"\end{table}"]) + "\n"


def _escape(text: str) -> str:
    special = {
        "±": r"$\pm$",
        NOTHING: "--",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _each(write: Callable[[Reproduced], str]) -> Callable[[Sequence[Reproduced]], str]:
    return lambda tables: "\n".join(map(write, tables))


FORMATS: dict[str, Callable[[Sequence[Reproduced]], str]] = {
    "terminal": _each(terminal),
    "markdown": _each(markdown),
    "csv": lambda tables: as_csv(*tables),
    "latex": _each(latex),
}
