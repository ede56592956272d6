"""Makes one HTML file of a run or a sweep: ``python -m attnmosaic.report outputs/table1``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnmosaic.errors import UserError
from attnmosaic.runs import newest


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m attnmosaic.report", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="of a run, a sweep, or several; they may be at work (the newest sweep or run under outputs)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (report.html in the folder)")
    given = parser.parse_args(arguments)
    try:
        folder = newest(Path("outputs")) if given.folder is None else given.folder
        out = given.out or folder / "report.html"
        from attnmosaic.reporting.page import write_report

        write_report(folder, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --out: cannot write '{out}' ({error.strerror}); name another file", file=sys.stderr)
        sys.exit(2)
    size = out.stat().st_size / 1e6
    print(f"report: {out} ({size:.1f} MB), one file with everything in it; open it in a browser:\n{_address(out)}")


def _address(file: Path) -> str:
    return file.absolute().as_uri()


if __name__ == "__main__":
    main()
