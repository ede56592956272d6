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
    """Returns every run in a folder or below it, sorted by path, including planned jobs that have not started."""
    folders: dict[Path, dict[str, Any] | None] = {}
    for path, names, files in os.walk(root):
        here = Path(path)
        if SWEEP in files:
            folders |= {here / job: planned for job, planned in read_plan(here)["jobs"].items()}
        if CONFIG in files or RESULT in files or ERROR in files:
            folders.setdefault(here, None)
        if CONFIG in files or RESULT in files:
            names.clear()  # A run's folder contains no other runs.
        names[:] = [name for name in names if not name.startswith(".")]
    return [Run(folder, planned) for folder, planned in sorted(folders.items(), key=lambda item: _natural(item[0]))]


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Returns a sort key for a path that puts job 2 before job 10."""
    return [[(int(digits or -1), word) for digits, word in re.findall(r"(\d+)|(\D+)", part)] for part in path.parts]


def require_runs(root: Path) -> list[Run]:
    """Returns every run in a folder or below it, as `find_runs` does, and raises an error if there is none.

    Raises:
        UserError: the folder does not exist or contains no run.
    """
    if not root.is_dir():
        raise UserError(f"'{root}' is not a folder; type a folder that contains runs, for example outputs")
    runs = find_runs(root)
    if not runs:
        raise UserError(f"'{root}' contains no runs; type a folder that python -m attnmosaic.train has written to")
    return runs


def read_plan(sweep: Path) -> dict[str, Any]:
    """Returns a sweep's plan, ``{"commands": [...], "jobs": {folder: {...}}}``; empty if the folder has no plan."""
    file = sweep / SWEEP
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"commands": [], "jobs": {}}


def newest_folder(root: Path) -> Path:
    """Returns the folder of the sweep, or of the run outside any sweep, that wrote a file last.

    Args:
        root: the folder to search, with everything below it.

    Raises:
        UserError: the folder does not exist or contains no run.
    """
    written: dict[Path, float] = {}
    for run in require_runs(root):
        folder = (run.planned is not None and sweep_of(run.folder)) or run.folder
        written[folder] = max(written.get(folder, 0), last_written(folder / SWEEP), *map(last_written, run.own_files))
    return max(written, key=lambda folder: written[folder])


def last_written(file: Path) -> float:
    """Returns when a file was last written, in seconds since 1970; 0 if it is missing."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0


def sweep_of(folder: Path) -> Path | None:
    """Returns the folder of a run's sweep, or None if the run is not a job of a sweep."""
    for above in folder.parents:
        if str(folder.relative_to(above)) in read_plan(above)["jobs"]:
            return above
    return None


def run_of(folder: Path) -> Run:
    """Returns the run in a folder, with its entry in the sweep's plan if it is a job of a sweep."""
    sweep = sweep_of(folder.absolute())
    job = None if sweep is None else read_plan(sweep)["jobs"][str(folder.absolute().relative_to(sweep))]
    return Run(folder, job)


if __name__ == "__main__":  # `make tensorboard` calls python -m attnmosaic.runs.discovery for the newest folder.
    use_substitutes()
    try:
        print(newest_folder(Path("outputs")))
    except UserError as error:
        sys.exit(f"error: {error}")
