"""Finds runs and sweeps on the disk."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.run import CONFIG, ERROR, RESULT, SWEEP, Run


def find_runs(root: Path) -> list[Run]:
    """Returns every run in a folder or below it, those planned by a sweep and not begun included, by path."""
    folders: dict[Path, dict[str, Any] | None] = {}
    for path, names, files in os.walk(root):
        here = Path(path)
        if SWEEP in files:
            folders |= {here / job: planned for job, planned in read_plan(here)["jobs"].items()}
        if CONFIG in files or RESULT in files or ERROR in files:
            folders.setdefault(here, None)
        if CONFIG in files or RESULT in files:
            names.clear()  # runs do not lie in runs
        names[:] = [name for name in names if not name.startswith(".")]
    return [Run(folder, planned) for folder, planned in sorted(folders.items(), key=lambda item: _natural(item[0]))]


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Returns what to sort a path by so that job 2 comes before job 10."""
    return [[(int(digits or -1), word) for digits, word in re.findall(r"(\d+)|(\D+)", part)] for part in path.parts]


def some_runs(root: Path) -> list[Run]:
    """Returns every run in a folder that a user named, as `find_runs` does.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"'{root}' is no folder; name one with runs in it, for example outputs")
    runs = find_runs(root)
    if not runs:
        raise UserError(f"'{root}' holds no runs; name a folder that python -m attnmosaic.train has written to")
    return runs


def read_plan(sweep: Path) -> dict[str, Any]:
    """Returns a sweep's plan, ``{"commands": [...], "jobs": {folder: {...}}}``; an empty one of another folder."""
    file = sweep / SWEEP
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"commands": [], "jobs": {}}


def newest(root: Path) -> Path:
    """Returns the folder, in or below one, of the sweep or lone run that was last at work.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    active: dict[Path, float] = {}
    for run in some_runs(root):
        home = (run.planned is not None and sweep_of(run.folder)) or run.folder
        active[home] = max(active.get(home, 0), last_written(home / SWEEP), *map(last_written, run.own_files))
    return max(active, key=lambda home: active[home])


def last_written(file: Path) -> float:
    """Returns when a file was last written, in seconds since 1970; 0 of one that is missing."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0


def sweep_of(folder: Path) -> Path | None:
    """Returns the folder of the sweep that a run is a job of, or None."""
    for above in folder.parents:
        if str(folder.relative_to(above)) in read_plan(above)["jobs"]:
            return above
    return None


def run_of(folder: Path) -> Run:
    """Returns the run of a folder, with its entry in the sweep's plan if it is a job of a sweep."""
    sweep = sweep_of(folder.absolute())
    job = None if sweep is None else read_plan(sweep)["jobs"][str(folder.absolute().relative_to(sweep))]
    return Run(folder, job)


if __name__ == "__main__":  # python -m attnmosaic.runs.discovery: the newest sweep or run, for make tensorboard
    use_substitutes()
    try:
        print(newest(Path("outputs")))
    except UserError as error:
        sys.exit(f"error: {error}")
