"""What happens once for a sweep: before its jobs a plan and a look for the data, meanwhile a display, then a table."""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import guard_sweep, how_to_go_on, reason
from attnmosaic.cli.progress import OF_SWEEP, shown
from attnmosaic.config.availability import check_available
from attnmosaic.config.resolution import unresolved
from attnmosaic.config.schema import PROGRESS, TrainConfig
from attnmosaic.config.structure import check_keys
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.files import remove_unfinished, write_atomically
from attnmosaic.core.processes import launched
from attnmosaic.core.quoting import command, in_shell, path_word
from attnmosaic.core.signals import in_order
from attnmosaic.runs.discovery import read_plan
from attnmosaic.runs.run import SWEEP, Run
from attnmosaic.sweeps.display import Display, Lines
from attnmosaic.sweeps.job import error_of
from attnmosaic.sweeps.monitor import PASSED, Job
from attnmosaic.sweeps.plan import (
    check_one_folder,
    is_own,
    planned_jobs,
    settle_folder,
    swept_keys,
    watched,
    write_out_sweeps,
)

PASSED_OVER = 75
"""Exit code of a sweep whose jobs are well, but some of them another process's: sysexits' word for "try again"."""


class SweepPlan(Callback):
    """Settles a sweep's jobs and folder before it begins, and writes ``sweep.json``, the plan of its trainings.

    A sweep that can have no jobs, or whose data cannot be had, ends there. The jobs are known beforehand with Hydra's
    own sweeper only; a search watches its trials itself. A sweep started again in the same folder adds to its plan.
    """

    def __init__(self) -> None:
        self._plan: dict[str, Any] | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Takes ``~`` for the user's home in a lone run's folder, as in any other path."""
        for key in ("paths.output", "hydra.run.dir"):
            section: Any = OmegaConf.select(config, key.rpartition(".")[0])
            name = key.rpartition(".")[2]
            if section is not None and name in section:
                section[name] = os.path.expanduser(str(unresolved(section, name)))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Composes every job and looks for its data."""
        guard_sweep(self._settle, config)

    def _settle(self, config: DictConfig) -> None:
        if launched(os.environ) is not None:
            raise UserError(
                "hydra.mode: got MULTIRUN, but torchrun and srun start the processes of one run; leave out -m, or type "
                "python -m attnmosaic.train -m hydra/launcher=submitit_slurm"
            )
        if config.hydra.job.config_name != "train" and not is_own(config.hydra):
            return  # a search, which takes no other command and says so
        write_out_sweeps(config)
        self._folder = Path(settle_folder(config)).absolute()  # a job may change into another
        if config.hydra.job.config_name != "train":
            return
        if config.progress not in PROGRESS:
            raise not_among("progress", config.progress, PROGRESS)
        check_one_folder(config)
        if is_own(config.hydra):
            self._look(config)

    def _look(self, config: DictConfig) -> None:
        planned = [*planned_jobs(config)]
        for job in planned:
            check_keys(job.config, TrainConfig)
        for folder, jobs in Counter(job.folder for job in planned).items():
            if jobs > 1:
                raise UserError(
                    f"hydra.sweep.subdir: got '{folder}' for {jobs} jobs, needs another for each; "
                    "type for example 'hydra.sweep.subdir=${hydra.job.num}'"
                )
        for job in planned:
            check_available(job.data)
        swept = swept_keys(planned)
        self._plan = {"commands": [typed()], "jobs": {job.folder: {**job.plan, "swept": swept} for job in planned}}
        begin_sweep(config, watched(planned, self._folder))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the plan: only now is it known that there are to be jobs at all."""
        self.write()
        if _current is not None:  # a lone run has no number
            job_began(config.hydra.job.num)

    def write(self) -> None:
        """Adds this sweep's jobs to the plan in its folder."""
        if self._plan is not None:
            add_to_plan(self._folder, self._plan)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Tells of each job that ended, when it does."""
        if self._plan is not None or _current is not None:
            job_ended(config.hydra.job.num, job_return)
        elif (error := error_of(job_return)) and config.hydra.mode.name == "MULTIRUN" and not _watched():
            job = " ".join(job_return.overrides or [])
            print(f"failed  {job}: {reason(error)}", file=sys.stderr)


def may_pass_over() -> bool:
    """Whether this is a job of a sweep that goes on without its answer."""
    hydra: Any = HydraConfig.get()
    return bool(hydra.mode == RunMode.MULTIRUN and is_own(hydra))


def add_to_plan(sweep: Path, more: dict[str, Any]) -> None:
    """Adds commands and jobs to the plan in a sweep's folder."""
    with FileLock(sweep / ".sweep.lock"):
        remove_unfinished(sweep)
        before = read_plan(sweep)
        plan = {
            "commands": list(dict.fromkeys([*before["commands"], *more["commands"]])),
            "jobs": before["jobs"] | more["jobs"],
        }
        if plan != before:
            write_atomically(sweep / SWEEP, json.dumps(plan, indent=1))


def typed() -> str:
    """Returns the command line that this process was given."""
    return command("train", *sys.argv[1:])


def _watched() -> bool:
    """Whether this is a job of a sweep that another process watches, and tells of."""
    return OF_SWEEP in os.environ


_current: tuple[Path, Display, Callable[[], list[str]]] | None = None
"""The sweep of this process, if one is at work: its folder, what shows how far it is, and what tells its end."""


def begin_sweep(config: DictConfig, jobs: list[Job], told: Callable[[], list[str]] | None = None) -> Display:
    """Begins to watch the jobs of this process's sweep, and to end in order if told to stop.

    Args:
        config: the sweep's config, with Hydra's own section.
        jobs: by number.
        told: gives what is to be told when it ends; None for the tables of its runs.

    Returns:
        What shows how far it is.
    """
    global _current
    folder = Path(config.hydra.sweep.dir)
    os.environ[OF_SWEEP] = mode = shown(config.progress)
    timed = any(time in str(folder) for time in OmegaConf.get_cache(config)["now"].values())
    in_order(True, lambda: how_to_go_on("hydra.sweep.dir", str(folder), timed))
    _current = folder, Display(mode, jobs), told or (lambda: _tables(folder))
    return _current[1]


def _tables(folder: Path) -> list[str]:
    from attnmosaic.runs.discovery import some_runs
    from attnmosaic.tables.render import terminal
    from attnmosaic.tables.reproduced import reproduce

    return [terminal(table) for table in reproduce(some_runs(folder))]


def job_began(number: int) -> None:
    """Notes that a job of this process's sweep begins, wherever it runs."""
    if _current is not None:
        _current[1].watch.began(number)


def job_ended(number: int, done: JobReturn) -> None:
    """Notes what came of a job of this process's sweep."""
    if _current is not None:
        watch = _current[1].watch
        nothing = done.status == JobStatus.COMPLETED and done.return_value is None
        if nothing and Run(watch.jobs[number].folder).state != "pruned":
            watch.passed_over(number)
            return
        error = error_of(done)
        why = reason(error) if error is not None else None
        # Its line begins with what the job is called.
        watch.ended(number, why and why.removeprefix(f"job {number} ({' '.join(done.overrides or [])}): "))


def jobs_left() -> None:
    """Notes that the jobs of this process's sweep go on without it."""
    if _current is not None:
        _current[1].watch.leave()


def job_output() -> Lines | None:
    """Returns a stream for what one more process of this sweep prints; None if it may print for itself."""
    return _current[1].stream() if _current is not None and _current[1].live else None


def job_prefix(number: int) -> str:
    """Returns what tells a job's messages from others': its number, or its label where messages are few."""
    if _current is None or os.environ.get(OF_SWEEP) == "lines":
        return f"{number} | "
    return f"{_current[1].watch.jobs[number].label} | "


def end_sweep() -> int:
    """Tells what came of this process's sweep, if there was one: its table, where it lies, and what to type next.

    Returns:
        How many jobs it has left to another process, which has not finished them.
    """
    global _current
    if _current is None:
        return 0
    (folder, display, told), _current = _current, None
    os.environ.pop(OF_SWEEP, None)
    display.close()
    if not display.watch.begun:
        return 0
    try:
        tables = told()
    except Exception as error:  # must not hide what the sweep ended with
        warnings.warn(f"the table of '{folder}' could not be made: {type(error).__name__}: {error}", stacklevel=1)
        tables = []
    where = path_word(folder)
    hints = (
        f"runs: {folder}",
        f"report: {command('report', where)}",
        f"TensorBoard: {in_shell('tensorboard', '--logdir', where)}",
    )
    try:
        print("\n".join(["", *tables, *hints]), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    left = sum(job.state == PASSED and Run(job.folder).state != "finished" for job in display.watch.jobs)
    if left:
        print(
            f"passed over: {left} of {len(display.watch.jobs)} jobs, which another process is running; once it has "
            "ended, the same command tells whether they are done, and goes on with those that are not",
            file=sys.stderr,
        )
    return left
