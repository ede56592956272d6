"""Decides how the progress of a run is shown: by a progress bar, by lines, or not at all."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SWEEP_PROGRESS = "ATTNMOSAIC_SWEEP_PROGRESS"
"""Environment variable with the progress mode of a sweep; set only in the processes of a sweep."""

PLOTTED_BY_SWEEP = "ATTNMOSAIC_PLOTTED_BY_SWEEP"
"""Environment variable that is set in the jobs of a sweep that plots their figures itself, after its last job."""

_LOGGERS_IN_BAR = ("attnmosaic.callbacks.progress", "attnmosaic.callbacks.eta")


def progress_mode(mode: str) -> str:
    """Returns how progress is shown: ``live``, ``lines`` or ``quiet``.

    Args:
        mode: a value of `attnmosaic.config.schema.PROGRESS`; ``auto`` is ``live`` on a terminal, otherwise ``lines``.
    """
    if mode != "auto":
        return mode
    has_cursor = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return "live" if has_cursor else "lines"


def finding_level() -> int:
    """Returns the log level of a run's findings: warning, but info in a sweep, which lists them below its table."""
    return logging.INFO if SWEEP_PROGRESS in os.environ else logging.WARNING


def filter_console(mode: str) -> None:
    """Filters this job's messages on the console; the log file gets all messages.

    Warnings and errors are always shown. A sweep in mode ``live`` or ``quiet`` shows nothing else of its jobs. A single
    run in mode ``live`` omits the lines that repeat its progress bar; in mode ``quiet`` it shows only its results.

    Args:
        mode: the job's ``progress``; the mode of a sweep takes precedence.
    """
    sweep_mode = os.environ.get(SWEEP_PROGRESS)
    mode = sweep_mode or progress_mode(mode)

    def passes(record: logging.LogRecord) -> bool:
        if mode == "lines" or record.levelno >= logging.WARNING:
            return True
        if sweep_mode:
            return False
        return record.name == "attnmosaic.train" if mode == "quiet" else not record.name.startswith(_LOGGERS_IN_BAR)

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(passes)


@contextlib.contextmanager
def run_logging(folder: Path, mode: str) -> Iterator[None]:
    """Logs a run that Python code has started: to its folder and, if logging was not set up, to standard error."""
    package, root = logging.getLogger("attnmosaic"), logging.getLogger()
    level, file = package.level, logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    console = [] if root.handlers else [logging.StreamHandler()]
    if console:
        root.addHandler(console[0])
        package.setLevel(logging.INFO)
    package.addHandler(file)
    filter_console(mode)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(file)
        file.close()
        for handler in console:
            root.removeHandler(handler)
