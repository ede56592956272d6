"""Plots all figures of runs from the files in their folders: ``python -m attnmosaic.draw outputs``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic import __version__
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.text import use_substitutes
from attnmosaic.plotting.style import DEFAULT_FORMATS, FORMATS, PlottedFiles
from attnmosaic.runs.discovery import require_runs
from attnmosaic.sweeps.figures import Figures, draw_runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_substitutes()
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.draw", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"attnmosaic {__version__}")
    parser.add_argument("folder", type=Path, help="folder of a run, or a folder that contains runs")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=DEFAULT_FORMATS, metavar="FORMAT",
        help=f"file formats of the figures: {', '.join(FORMATS)} (default: {' '.join(DEFAULT_FORMATS)})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        begun = [run.folder for run in require_runs(options.folder) if run.config is not None]
        if not begun:
            raise UserError(
                f"'{options.folder}' holds no run that has begun; start a run with python -m attnmosaic.train"
            )
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    failed: list[str] = []

    def report(figures: Figures, drawn: PlottedFiles) -> None:
        names = ", ".join(path.name for path in drawn.paths) or "no files to plot yet"
        print(f"{figures.folder}: {names}", flush=True)
        if drawn.failed:
            print(f"{figures.folder}: could not plot {', '.join(drawn.failed)}", file=sys.stderr)
        failed.extend(drawn.failed)

    draw_runs([Figures(folder, tuple(options.formats)) for folder in begun], report)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
