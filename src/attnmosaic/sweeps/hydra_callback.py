"""Plans a sweep before its jobs and checks its data, displays it meanwhile, and prints its table afterwards."""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import error_line, guard_sweep, how_to_resume
from attnmosaic.cli.progress import OF_SWEEP, progress_mode
from attnmosaic.config.availability import check_available
from attnmosaic.config.keys import check_keys
from attnmosaic.config.resolution import unresolved
from attnmosaic.config.schema import PROGRESS, TrainConfig
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.files import locked, remove_unfinished, write_atomically
from attnmosaic.core.processes import launched_rank
from attnmosaic.core.quoting import command, in_shell, path_word
from attnmosaic.core.signals import end_in_order
from attnmosaic.runs.discovery import read_plan
from attnmosaic.runs.run import SWEEP, Run
from attnmosaic.sweeps.display import Display, Stream
from attnmosaic.sweeps.monitor import LEFT, SKIPPED, Job
from attnmosaic.sweeps.overrides import expand_sweeps, is_own
from attnmosaic.sweeps.packed_job import error_of
from attnmosaic.sweeps.plan import check_one_folder, monitored_jobs, planned_jobs, settle_folder, swept_keys

SKIPPED_JOBS = 75
"""Exit code of a sweep that skipped jobs of another process and had no failures: EX_TEMPFAIL of sysexits.h."""


class SweepPlan(Callback):
    """Settles a sweep's jobs and folder before it begins, and writes ``sweep.json``, the plan of its trainings.

    A sweep without jobs, or whose data are missing, ends there. The jobs are known beforehand with Hydra's own sweeper
    only; a search follows its trials itself. A sweep that is started again in the same folder adds to its plan.
    """

    def __init__(self) -> None:
        self._plan: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": None}  # a job's process does not need the other jobs

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Expands ``~`` in the folder of a lone run, as in any other path."""
        for key in ("paths.output", "hydra.run.dir"):
            section: Any = OmegaConf.select(config, key.rpartition(".")[0])
            name = key.rpartition(".")[2]
            if section is not None and name in section:
                section[name] = os.path.expanduser(str(unresolved(section, name)))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Composes every job and checks its data."""
        guard_sweep(self._settle, config)

    def _settle(self, config: DictConfig) -> None:
        if launched_rank(os.environ) is not None:
            raise UserError(
                "hydra.mode: got MULTIRUN, but torchrun and srun start the processes of one run; leave out -m, or type "
                "python -m attnmosaic.train -m hydra/launcher=submitit_slurm"
            )
        training = config.hydra.job.config_name == "train"
        if not (training or is_own(config.hydra)):
            return  # the sweeper refuses commands that it cannot search
        expand_sweeps(config)
        self._folder = Path(settle_folder(config)).absolute()  # a job may change the working directory
        if not training:
            return
        if config.progress not in PROGRESS:
            raise not_among("progress", config.progress, PROGRESS)
        check_one_folder(config)
        if is_own(config.hydra):
            self._check_jobs(config)

    def _check_jobs(self, config: DictConfig) -> None:
        planned = planned_jobs(config)
        for job in planned:
            check_keys(job.config, TrainConfig)
        for folder, jobs in Counter(job.folder for job in planned).items():
            if jobs > 1:
                raise UserError(
                    f"hydra.sweep.subdir: got '{folder}' for {jobs} jobs, needs another for each; "
                    "type for example 'hydra.sweep.subdir=${hydra.job.num}'"
                )
        for job in planned:
            check_available(OmegaConf.to_container(job.config.data, resolve=True))  # type: ignore[arg-type]
        swept = swept_keys(planned)
        self._plan = {
            "commands": [typed_command()],
            "jobs": {job.folder: {**job.plan, "swept": swept} for job in planned},
        }
        begin_sweep(config, monitored_jobs(planned, self._folder))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the plan if the launcher has not: Hydra's own accepts all jobs."""
        self.write()
        if _current is not None:  # a lone run has no number
            job_began(config.hydra.job.num)

    def write(self) -> None:
        """Adds this sweep's jobs to the plan in its folder."""
        if self._plan is not None:
            add_to_plan(self._folder, self._plan)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Reports each job that ends: Hydra raises the error of the first failed job alone, once all have ended."""
        if _current is not None:
            job_ended(config.hydra.job.num, job_return)
        elif OF_SWEEP not in os.environ and config.hydra.mode == RunMode.MULTIRUN and (error := error_of(job_return)):
            print(f"failed  {' '.join(job_return.overrides or [])}: {error_line(error)}", file=sys.stderr)


def write_plan(context: HydraContext) -> None:
    """Writes the plan of a sweep whose jobs a launcher has accepted."""
    for callback in context.callbacks.callbacks:
        if isinstance(callback, SweepPlan):
            callback.write()


def may_skip() -> bool:
    """Returns whether this is a job of a sweep that does not depend on its result."""
    hydra: Any = HydraConfig.get()
    return bool(hydra.mode == RunMode.MULTIRUN and is_own(hydra))


def add_to_plan(sweep: Path, more: dict[str, Any]) -> None:
    """Adds commands and jobs to the plan in a sweep's folder."""
    with locked(sweep / ".sweep.lock", "hydra.sweep.dir"):
        remove_unfinished(sweep)
        before = read_plan(sweep)
        plan = {
            "commands": list(dict.fromkeys([*before["commands"], *more["commands"]])),
            "jobs": before["jobs"] | more["jobs"],
        }
        if plan != before:
            write_atomically(sweep / SWEEP, json.dumps(plan, indent=1))


def typed_command() -> str:
    """Returns the command line that this process was given."""
    return command("train", *sys.argv[1:])


@dataclass
class _Sweep:
    """The sweep that this process runs: its folder, its display, and the function that returns its final report."""

    folder: Path
    display: Display
    report: Callable[[], list[str]]


_current: _Sweep | None = None


def begin_sweep(config: DictConfig, jobs: list[Job], report: Callable[[], list[str]] | None = None) -> Display:
    """Begins to display the jobs of this process's sweep; signals end it in order from now on.

    Args:
        config: the sweep's config, with Hydra's own section.
        jobs: by number.
        report: returns what to print when the sweep ends; by default the tables of its runs.
    """
    global _current
    folder = Path(config.hydra.sweep.dir)
    os.environ[OF_SWEEP] = mode = progress_mode(config.progress)
    timed = any(time in str(folder) for time in OmegaConf.get_cache(config)["now"].values())
    end_in_order(True, lambda: how_to_resume("hydra.sweep.dir", str(folder), timed))
    _current = _Sweep(folder, Display(mode, jobs), report or (lambda: _tables(folder)))
    return _current.display


def _tables(folder: Path) -> list[str]:
    from attnmosaic.runs.discovery import require_runs
    from attnmosaic.tables.render import terminal
    from attnmosaic.tables.reproduced import build_tables

    return [terminal(table) for table in build_tables(require_runs(folder))]


def job_began(number: int) -> None:
    """Records that a job of this process's sweep begins, wherever it runs."""
    if _current is not None:
        _current.display.watch.began(number)


def job_ended(number: int, done: JobReturn) -> None:
    """Records the end of a job of this process's sweep."""
    if _current is None:
        return
    watch = _current.display.watch
    nothing = done.status == JobStatus.COMPLETED and done.return_value is None
    if nothing and Run(watch.jobs[number].folder).state != "pruned":
        watch.skipped(number)
        return
    error = error_of(done)
    why = error_line(error) if error is not None else None
    # The line of the display begins with the job's label.
    watch.ended(number, why and why.removeprefix(f"job {number} ({' '.join(done.overrides or [])}): "))


def jobs_left() -> None:
    """Records that the jobs of this process's sweep continue without it."""
    if _current is not None:
        _current.display.watch.close(LEFT)


def job_output() -> Stream | None:
    """Returns a stream for the output of one more process of this sweep; None if it may write to the terminal."""
    return _current.display.stream() if _current is not None and _current.display.live else None


def job_prefix(number: int) -> str:
    """Returns the prefix of a job's log messages: its number, or its label where messages are few."""
    if _current is None or os.environ.get(OF_SWEEP) == "lines":
        return f"{number} | "
    return f"{_current.display.watch.jobs[number].label} | "


def end_sweep() -> int:
    """Prints the result of this process's sweep, if there was one: its table, its folder, and what to type next.

    Returns:
        How many jobs it left to another process that has not finished them.
    """
    global _current
    if _current is None:
        return 0
    sweep, _current = _current, None
    os.environ.pop(OF_SWEEP, None)
    sweep.display.close()
    watch = sweep.display.watch
    if not watch.begun:
        return 0
    _print_result(sweep)
    left = sum(job.state == SKIPPED and Run(job.folder).state != "finished" for job in watch.jobs)
    if left:
        print(
            f"skipped {left} of {len(watch.jobs)} jobs that another process is running; "
            "run the same command again later",
            file=sys.stderr,
        )
    return left


def _print_result(sweep: _Sweep) -> None:
    try:
        tables = sweep.report()
    except Exception as error:  # must not hide the error that the sweep ended with
        warnings.warn(f"no table of '{sweep.folder}': {type(error).__name__}: {error}", stacklevel=1)
        tables = []
    where = path_word(sweep.folder)
    hints = (
        f"runs: {sweep.folder}",
        f"report: {command('report', where)}",
        f"TensorBoard: {in_shell('tensorboard', '--logdir', where)}",
    )
    print("\n".join(["", *tables, *hints]), flush=True)
