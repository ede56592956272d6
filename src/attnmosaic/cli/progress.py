"""Decides how the progress of a run is shown: by a moving bar, by lines, or not at all."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

OF_SWEEP = "ATTNMOSAIC_SWEEP_PROGRESS"
"""The environment variable by which a job knows how its sweep shows the progress."""

_IN_THE_BAR = ("attnmosaic.callbacks.progress", "attnmosaic.callbacks.eta")


def progress_mode(mode: str) -> str:
    """Returns how progress is shown: ``live``, ``lines`` or ``quiet``.

    Args:
        mode: one of `attnmosaic.config.schema.PROGRESS`; ``auto`` is the first on a terminal, the second elsewhere.
    """
    if mode != "auto":
        return mode
    moves = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return "live" if moves else "lines"


def finding_level() -> int:
    """Returns the level that a run's findings are logged at: a sweep reports those of its jobs below its table."""
    return logging.INFO if OF_SWEEP in os.environ else logging.WARNING


def filter_console(mode: str) -> None:
    """Filters this job's messages on the console; its log file has all of them.

    Warnings and errors always pass. In a sweep that is shown live or quietly nothing else does, as the sweep reports
    the end of the job. Where a bar moves, the lines that repeat it do not pass.

    Args:
        mode: the job's ``progress``, which counts where no sweep shows its own.
    """
    of_sweep = os.environ.get(OF_SWEEP)
    mode = of_sweep or progress_mode(mode)

    def passes(record: logging.LogRecord) -> bool:
        if mode == "lines" or record.levelno >= logging.WARNING:
            return True
        if of_sweep:
            return False
        return record.name == "attnmosaic.train" if mode == "quiet" else not record.name.startswith(_IN_THE_BAR)

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(passes)


@contextlib.contextmanager
def run_logging(folder: Path, mode: str) -> Iterator[None]:
    """Logs a run without a command: into its folder and, where logging was not set up, to standard error."""
    ours, root = logging.getLogger("attnmosaic"), logging.getLogger()
    level, file = ours.level, logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    console = [] if root.handlers else [logging.StreamHandler()]
    if console:
        root.addHandler(console[0])
        ours.setLevel(logging.INFO)
    ours.addHandler(file)
    filter_console(mode)
    try:
        yield
    finally:
        ours.setLevel(level)
        ours.removeHandler(file)
        file.close()
        for handler in console:
            root.removeHandler(handler)
