"""Writes one HTML file about a run or a sweep: ``python -m attnmosaic.report outputs/table1``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic import __version__
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.text import use_substitutes
from attnmosaic.reporting.page import write_report
from attnmosaic.runs.discovery import newest


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_substitutes()
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.report", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"attnmosaic {__version__}")
    parser.add_argument(
        "folder", type=Path, nargs="?",
        help="of a run, a sweep, or several; they may be at work (the newest sweep or run under outputs)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (report.html in the folder)")
    given = parser.parse_args(arguments)
    try:
        folder = newest(Path("outputs")) if given.folder is None else given.folder
        out = folder / "report.html" if given.out is None else given.out
        try:
            write_report(folder, out)
        except OSError as error:
            raise UserError(f"--out: cannot write '{out}' ({error.strerror}); name another file") from error
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    size = out.stat().st_size / 1e6
    print(f"report: {out} ({size:.1f} MB, one file); open it in a browser: {out.absolute().as_uri()}")


if __name__ == "__main__":
    main()
