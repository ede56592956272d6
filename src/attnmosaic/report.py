"""Writes one HTML file on a run or a sweep: ``python -m attnmosaic.report outputs/table1``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic import __version__
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.text import use_substitutes
from attnmosaic.reporting.page import write_report
from attnmosaic.runs.discovery import newest_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_substitutes()
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.report", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"attnmosaic {__version__}")
    parser.add_argument(
        "folder", type=Path, nargs="?",
        help="folder of a run, of a sweep or of several, finished or running (the newest sweep or run in outputs)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (report.html in the folder)")
    args = parser.parse_args(arguments)
    try:
        folder = newest_folder(Path("outputs")) if args.folder is None else args.folder
        out = folder / "report.html" if args.out is None else args.out
        try:
            write_report(folder, out)
        except OSError as error:
            raise UserError(f"--out: cannot write '{out}' ({error.strerror}); type another file") from error
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    size = out.stat().st_size / 1e6
    print(f"report: {out} ({size:.1f} MB, one file); open it in a browser: {out.absolute().as_uri()}")


if __name__ == "__main__":
    main()
