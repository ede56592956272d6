"""Prints the tables of runs beside published numbers: ``python -m attnmosaic.collect outputs/table1``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic import __version__
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.discovery import some_runs
from attnmosaic.tables.render import FORMATS
from attnmosaic.tables.reproduced import reproduce
from attnmosaic.tables.table import Table


def collect(folder: Path) -> list[Table]:
    """Reads every run in a folder or below it, finished or not; sweeps may be at work there.

    Returns:
        The published tables that the runs belong to, then a table of all other runs.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    return reproduce(some_runs(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_substitutes()
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.collect", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"attnmosaic {__version__}")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="where to look for runs (outputs)"
    )
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="how to print the tables (terminal)")
    parser.add_argument("--plots", action="store_true", help="also draw heat maps and training losses into the folder")
    given = parser.parse_args(arguments)
    try:
        tables = collect(given.folder)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    try:
        print(FORMATS[given.format](tables), flush=True)
    except BrokenPipeError:  # head, for example, stops reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if given.format == "csv":  # whose lines are numbers alone
        for line in (line for table in tables for line in table.warnings):
            print(f"warning: {line}", file=sys.stderr)
    if given.plots:
        from attnmosaic.plotting.heatmaps import draw_tables

        for path in draw_tables(tables, given.folder).paths:
            print(f"drawn: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
