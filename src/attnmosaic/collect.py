"""Prints tables of runs and of published numbers: ``python -m attnmosaic.collect outputs/table1``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic import __version__
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.discovery import require_runs
from attnmosaic.tables.render import FORMATS
from attnmosaic.tables.reproduced import build_tables
from attnmosaic.tables.table import Table


def collect(folder: Path) -> list[Table]:
    """Builds the tables of all runs in a folder or below it, including running and unfinished runs.

    Returns:
        The published tables that the runs belong to, then a table of all other runs.

    Raises:
        UserError: the folder does not exist or contains no run.
    """
    return build_tables(require_runs(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_substitutes()
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.collect", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"attnmosaic {__version__}")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="folder that contains the runs (outputs)"
    )
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="format of the tables (terminal)")
    parser.add_argument("--plots", action="store_true", help="also plot heat maps and training losses into the folder")
    args = parser.parse_args(arguments)
    try:
        tables = collect(args.folder)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    try:
        print(FORMATS[args.format](tables), flush=True)
    except BrokenPipeError:  # The reader of a pipe has ended, as head does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if args.format == "csv":  # The CSV has no lines for warnings.
        for line in (line for table in tables for line in table.warnings):
            print(f"warning: {line}", file=sys.stderr)
    if args.plots:
        from attnmosaic.plotting.heatmaps import draw_tables

        for path in draw_tables(tables, args.folder).paths:
            print(f"plotted: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
