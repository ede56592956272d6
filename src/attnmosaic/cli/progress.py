"""How far a run is, as its terminal shows it: by bars that move, by lines, or not at all. Imports no torch."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

OF_SWEEP = "ATTNMOSAIC_SWEEP_PROGRESS"
"""The environment variable that tells a job how the sweep that it is one of shows its progress."""


def shown(mode: str) -> str:
    """Returns how progress is shown.

    Args:
        mode: one of `attnmosaic.config.schema.PROGRESS`.

    Returns:
        ``live``, ``lines`` or ``quiet``: for ``auto`` the first on a terminal, the second elsewhere.
    """
    if mode != "auto":
        return mode
    moves = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return "live" if moves else "lines"


def finding_level() -> int:
    """Returns the level that a run's findings are logged at: a sweep reports those of its jobs below its table."""
    return logging.INFO if OF_SWEEP in os.environ else logging.WARNING


def hush(mode: str) -> None:
    """Keeps from this job's console what its way of showing progress has no place for; its log file has everything.

    Warnings and errors always pass. In a sweep that is shown live or quietly nothing else does: what became of the job
    is told by the sweep. Where a bar moves, what it shows is not told in lines, too.

    Args:
        mode: the job's ``progress``, which counts where no sweep shows how far its jobs are.
    """
    of_sweep = os.environ.get(OF_SWEEP)
    mode = of_sweep or shown(mode)
    if mode == "lines":
        return

    def passes(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        if of_sweep:
            return False
        return record.name == "attnmosaic.train" if mode == "quiet" else not record.name.startswith(_IN_THE_BAR)

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(passes)


@contextlib.contextmanager
def logged(folder: Path, mode: str) -> Iterator[None]:
    """Logs a run that no command has started: into its folder and, where logging was not set up, to standard error.

    Args:
        folder: the run's.
        mode: its ``progress``.
    """
    ours, root = logging.getLogger("attnmosaic"), logging.getLogger()
    level = ours.level
    added: list[tuple[logging.Logger, logging.Handler]] = []
    if not root.handlers:
        added.append((root, logging.StreamHandler()))
        ours.setLevel(logging.INFO)
    added.append((ours, logging.FileHandler(folder / "train.log", encoding="utf-8")))
    added[-1][1].setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    for logger, handler in added:
        logger.addHandler(handler)
    hush(mode)
    try:
        yield
    finally:
        ours.setLevel(level)
        for logger, handler in added:
            logger.removeHandler(handler)
            handler.close()


_IN_THE_BAR = ("attnmosaic.callbacks.progress", "attnmosaic.callbacks.eta")
