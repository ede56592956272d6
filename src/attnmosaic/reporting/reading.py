"""What the report reads of a run's folder. Files may be torn or odd: what cannot be read is told, never raised."""

import csv
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import command
from attnmosaic.runs.run import CONFIG, Run

T = TypeVar("T")
Points = list[tuple[float, float]]
TableRows = list[dict[str, str]]

LONGEST = 60_000
"""Characters of a file that the report shows, at most."""


class Troubles(list[str]):
    """What could not be read, a line each."""

    def attempt(self, what: object, instead: T, make: Callable[..., T], *given: Any) -> T:
        """Returns what is made, or something else if that fails: one odd file is not worth a report."""
        try:
            return make(*given)
        except Exception as error:
            said = error.strerror if isinstance(error, OSError) else error
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
            self.append(f"{what}: {' '.join(reason.split())[:300]}")
            return instead


def dig(node: Any, *keys: str) -> Any:
    """Returns what lies below keys, None if it is not there."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def number(value: Any) -> float | None:
    """Returns a finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def read_rows(file: Path, troubles: Troubles) -> TableRows:
    """Reads a table with a heading; rows that are cut short are left out."""
    if not file.exists():
        return []

    def read() -> TableRows:
        with file.open(newline="", encoding="utf-8") as opened:
            return list(csv.DictReader(opened))

    nothing: TableRows = []
    rows = troubles.attempt(file, nothing, read)
    whole = [row for row in rows if None not in row.values() and None not in row]
    if len(whole) < len(rows):
        troubles.append(f"{file}: {len(rows) - len(whole)} of {len(rows)} rows are cut short or too long, left out")
    return whole


def points(rows: TableRows, y: str, x: str = "epoch") -> Points:
    """Returns a column against another one, where both are numbers."""
    pairs = ((number(row.get(x)), number(row.get(y))) for row in rows)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def read_text(file: Path, most: int = LONGEST) -> str:
    """Returns a text file, its middle left out if it is long; empty if there is none."""
    try:
        text = file.read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return ""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-most // 2 :]}"


def relative_link(target: Path, start: Path) -> str:
    """Returns the address of a file or folder, relative to a folder and percent-encoded."""
    path = os.fsencode(os.path.relpath(target.absolute(), start.absolute()))
    return quote(path.replace(os.sep.encode(), b"/"), safe="/")


def command_of(run: Run) -> str | None:
    """Returns the command that a run was begun with, rebuilt from its overrides; None if they are not known."""
    return None if run.overrides is None else command("train", *run.overrides)


def span(runs: Iterable[Run]) -> tuple[float, float] | None:
    """Returns when the first of the runs began and when the last one wrote, as seconds since 1970."""
    begun, written = [], []
    for run in runs:
        times = {file.name: file.stat().st_mtime for file in run.own_files if file.exists()}
        if times:
            hydra = run.folder / ".hydra"  # written once, as the very first
            begun.append(hydra.stat().st_mtime if hydra.is_dir() else times.get(CONFIG, min(times.values())))
            written.append(max(times.values()))
    return (min(begun), max(written)) if begun else None
