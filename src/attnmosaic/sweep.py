"""What happens once for a sweep: before its jobs a plan and a look for the data, meanwhile a display, then a table."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from attnmosaic.cli import guard_sweep, reason
from attnmosaic.config import PROGRESS
from attnmosaic.data.available import check_available
from attnmosaic.display import Display, Lines
from attnmosaic.errors import not_among
from attnmosaic.files import write_atomically
from attnmosaic.planned import planned_jobs, watched
from attnmosaic.progress import OF_SWEEP, shown
from attnmosaic.runs import SWEEP, read_plan
from attnmosaic.watch import Job


class SweepPlan(Callback):
    """Ends a sweep whose data cannot be had; for another it writes ``sweep.json``, the plan, and watches the jobs.

    Works with Hydra's own sweeper, which knows all jobs beforehand. A sweep started again in the same folder adds to
    its plan.
    """

    def __init__(self) -> None:
        self._plan: dict[str, Any] | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Composes every job and looks for its data."""
        ours = str(config.hydra.sweeper._target_).endswith("BasicSweeper")
        if ours and config.hydra.job.config_name == "train":
            guard_sweep(self._look, config)

    def _look(self, config: DictConfig) -> None:
        if config.progress not in PROGRESS:
            raise not_among("progress", config.progress, PROGRESS)
        planned = [*planned_jobs(config)]
        for job in planned:
            check_available(job.data)
        self._plan = {"commands": [typed()], "jobs": {job.folder: job.plan for job in planned}}
        folder = Path(config.hydra.sweep.dir)
        begin_sweep(folder, config.progress, watched(planned, folder.absolute()))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the plan: only now is it known that there are to be jobs at all."""
        if self._plan is not None:
            add_to_plan(Path(config.hydra.sweep.dir), self._plan)
        if _current is not None:  # a lone run has no number
            job_began(config.hydra.job.num)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tells of each job that ended, when it does."""
        if self._plan is not None or _current is not None:
            job_ended(config.hydra.job.num, job_return)
        elif job_return.status == JobStatus.FAILED and config.hydra.mode.name == "MULTIRUN" and not _watched():
            job = " ".join(job_return.overrides or [])
            print(f"failed  {job}: {reason(job_return._return_value)}", file=sys.stderr)


def add_to_plan(sweep: Path, more: dict[str, Any]) -> None:
    """Adds commands and jobs to the plan in a sweep's folder."""
    with FileLock(sweep / ".sweep.lock"):
        before = read_plan(sweep)
        plan = {
            "commands": list(dict.fromkeys([*before["commands"], *more["commands"]])),
            "jobs": before["jobs"] | more["jobs"],
        }
        if plan != before:
            write_atomically(sweep / SWEEP, json.dumps(plan, indent=1))


def typed() -> str:
    """Returns the command line that this process was given."""
    return as_command(sys.argv[1:])


def as_command(overrides: Sequence[str]) -> str:
    """Returns what to type to train with some overrides."""
    return " ".join(["python -m attnmosaic.train", *map(_quoted, overrides)])


def _watched() -> bool:
    """Whether this is a job of a sweep that another process watches, and tells of."""
    return OF_SWEEP in os.environ


_current: tuple[Path, Display, Callable[[], list[str]]] | None = None
"""The sweep of this process, if one is at work: its folder, what shows how far it is, and what tells its end."""


def begin_sweep(folder: Path, progress: str, jobs: list[Job], told: Callable[[], list[str]] | None = None) -> Display:
    """Begins to watch the jobs of this process's sweep.

    Args:
        folder: the sweep's.
        progress: one of `PROGRESS`.
        jobs: by number.
        told: gives what is to be told when it ends; None for the tables of its runs.

    Returns:
        What shows how far it is.
    """
    global _current
    os.environ[OF_SWEEP] = mode = shown(progress)
    _current = folder, Display(mode, jobs), told or (lambda: _tables(folder))
    return _current[1]


def _tables(folder: Path) -> list[str]:
    from attnmosaic.collect import collect
    from attnmosaic.tables.render import terminal

    return [terminal(table) for table in collect(folder)]


def job_began(number: int) -> None:
    """Notes that a job of this process's sweep begins, wherever it runs."""
    if _current is not None:
        _current[1].watch.began(number)


def job_ended(number: int, done: JobReturn) -> None:
    """Notes what came of a job of this process's sweep."""
    if _current is not None:
        why = reason(done._return_value) if done.status == JobStatus.FAILED else None
        # Its line begins with what the job is called.
        _current[1].watch.ended(number, why and why.removeprefix(f"job {number} ({' '.join(done.overrides or [])}): "))


def job_output() -> Lines | None:
    """Returns a stream for what one more process of this sweep prints; None if it may print for itself."""
    return _current[1].stream() if _current is not None and _current[1].live else None


def job_prefix(number: int) -> str:
    """Returns what tells a job's messages from others': its number, or its label where messages are few."""
    if _current is None or os.environ.get(OF_SWEEP) == "lines":
        return f"{number} | "
    return f"{_current[1].watch.jobs[number].label} | "


def end_sweep() -> None:
    """Tells what came of this process's sweep, if there was one: its table, where it lies, and what to type next."""
    global _current
    if _current is None:
        return
    (folder, display, told), _current = _current, None
    os.environ.pop(OF_SWEEP, None)
    display.close()
    if not display.watch.begun:
        return
    try:
        tables = told()
    except Exception as error:  # must not hide what the sweep ended with
        warnings.warn(f"the table of '{folder}' could not be made: {type(error).__name__}: {error}", stacklevel=1)
        tables = []
    where = shlex.quote(str(folder))
    hints = (
        f"runs: {folder}",
        f"report: python -m attnmosaic.report {where}",
        f"TensorBoard: tensorboard --logdir {where}",
    )
    try:
        print("\n".join(["", *tables, *hints]), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set('[]{}()*?$&;| "') else word
