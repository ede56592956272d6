"""Hydra callback of sweeps: plans and checks the jobs, displays the running sweep, prints its table, plots figures."""

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
from attnmosaic.cli.progress import PLOTTED_BY_SWEEP, SWEEP_PROGRESS, progress_mode
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
from attnmosaic.sweeps.monitor import LEFT_RUNNING, SKIPPED, Job
from attnmosaic.sweeps.overrides import expand_sweeps, uses_basic_sweeper, uses_local_launcher
from attnmosaic.sweeps.packed_job import error_of
from attnmosaic.sweeps.plan import check_one_folder, monitored_jobs, planned_jobs, set_sweep_folder, swept_keys

SKIPPED_JOBS = 75
"""Exit code of a sweep that skipped jobs of another process and had no failures: EX_TEMPFAIL of sysexits.h."""


class SweepPlan(Callback):
    """Determines a sweep's folder and jobs before it begins, and writes the plan of its jobs, ``sweep.json``.

    A sweep without jobs, or with missing data, ends with a user error before its first job. Jobs are known in advance
    only with Hydra's basic sweeper; a search plans and displays its trials itself. A sweep that is started again in the
    same folder adds its jobs to the existing plan.
    """

    def __init__(self) -> None:
        self._plan: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": None}  # the process of a job does not need the plan

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Expands ``~`` in the folder of a single run."""
        for key in ("paths.output", "hydra.run.dir"):
            section: Any = OmegaConf.select(config, key.rpartition(".")[0])
            name = key.rpartition(".")[2]
            if section is not None and name in section:
                section[name] = os.path.expanduser(str(unresolved(section, name)))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Composes every job and checks its config and data."""
        guard_sweep(self._prepare, config)

    def _prepare(self, config: DictConfig) -> None:
        if launched_rank(os.environ) is not None:
            raise UserError(
                "hydra.mode: got MULTIRUN, but torchrun and srun start the processes of a single run; remove -m, or "
                "type python -m attnmosaic.train -m hydra/launcher=submitit_slurm"
            )
        training = config.hydra.job.config_name == "train"
        if not (training or uses_basic_sweeper(config.hydra)):
            return  # the sweeper itself rejects commands other than train
        expand_sweeps(config)
        self._folder = Path(set_sweep_folder(config)).absolute()  # absolute, as a job can change the working directory
        if not training:
            return
        if config.progress not in PROGRESS:
            raise not_among("progress", config.progress, PROGRESS)
        check_one_folder(config)
        if uses_basic_sweeper(config.hydra):
            self._check_jobs(config)

    def _check_jobs(self, config: DictConfig) -> None:
        planned = planned_jobs(config)
        for job in planned:
            check_keys(job.config, TrainConfig)
        for folder, jobs in Counter(job.folder for job in planned).items():
            if jobs > 1:
                raise UserError(
                    f"hydra.sweep.subdir: got '{folder}' for {jobs} jobs, needs a different folder for each job; "
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
        """Writes the plan if the launcher has not written it, and records that the job has begun."""
        self.write()
        if _current is not None:  # a single run has no number
            job_began(config.hydra.job.num)

    def write(self) -> None:
        """Adds this sweep's jobs to the plan in its folder."""
        if self._plan is not None:
            add_to_plan(self._folder, self._plan)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Reports the end of each job; Hydra itself raises only the first error, after all jobs have ended."""
        if _current is not None:
            job_ended(config.hydra.job.num, job_return)
        elif (
            SWEEP_PROGRESS not in os.environ
            and config.hydra.mode == RunMode.MULTIRUN
            and (error := error_of(job_return))
        ):
            print(f"failed  {' '.join(job_return.overrides or [])}: {error_line(error)}", file=sys.stderr)


def write_plan(context: HydraContext) -> None:
    """Writes the plan of a sweep; a launcher calls this once it has accepted the jobs."""
    for callback in context.callbacks.callbacks:
        if isinstance(callback, SweepPlan):
            callback.write()


def can_skip_job() -> bool:
    """Returns whether the current job can be skipped: it is part of a sweep that does not need its result."""
    hydra: Any = HydraConfig.get()
    return bool(hydra.mode == RunMode.MULTIRUN and uses_basic_sweeper(hydra))


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
    """Returns the command line of this process, quoted for a shell."""
    return command("train", *sys.argv[1:])


@dataclass
class _Sweep:
    """The sweep that this process runs.

    Attributes:
        folder: the sweep's folder.
        mode: how progress is shown.
        display: the display of the jobs.
        report: returns the texts that are printed when the sweep ends.
        local: whether the jobs run on this machine, and this process plots their figures.
    """

    folder: Path
    mode: str
    display: Display
    report: Callable[[], list[str]]
    local: bool


_current: _Sweep | None = None


def begin_sweep(config: DictConfig, jobs: list[Job], report: Callable[[], list[str]] | None = None) -> Display:
    """Starts the display of this process's sweep; from now on a signal ends the sweep in order.

    Args:
        config: config of the sweep, with Hydra's section ``hydra``.
        jobs: the jobs, in the order of their numbers.
        report: returns the texts that are printed when the sweep ends; None for the tables of its runs.
    """
    global _current
    folder = Path(config.hydra.sweep.dir)
    os.environ[SWEEP_PROGRESS] = mode = progress_mode(config.progress)
    timed = any(time in str(folder) for time in OmegaConf.get_cache(config)["now"].values())
    end_in_order(True, lambda: how_to_resume("hydra.sweep.dir", str(folder), timed))
    os.environ.pop(PLOTTED_BY_SWEEP, None)  # a Slurm job would inherit it
    if local := uses_local_launcher(config.hydra):
        os.environ[PLOTTED_BY_SWEEP] = "1"
    _current = _Sweep(folder, mode, Display(mode, jobs), report or (lambda: _tables(folder)), local)
    return _current.display


def _tables(folder: Path) -> list[str]:
    from attnmosaic.runs.discovery import require_runs
    from attnmosaic.tables.render import terminal
    from attnmosaic.tables.reproduced import build_tables

    return [terminal(table) for table in build_tables(require_runs(folder))]


def job_began(number: int) -> None:
    """Records that a job of this process's sweep has begun, in this process or in another."""
    if _current is not None:
        _current.display.monitor.began(number)


def job_ended(number: int, job_return: JobReturn) -> None:
    """Records that a job of this process's sweep has ended."""
    if _current is None:
        return
    monitor = _current.display.monitor
    without_result = job_return.status == JobStatus.COMPLETED and job_return.return_value is None
    if without_result and Run(monitor.jobs[number].folder).state != "pruned":
        monitor.skipped(number)
        return
    error = error_of(job_return)
    reason = error_line(error) if error is not None else None
    # The display's line begins with the job's label, so the number and overrides would be a repetition.
    monitor.ended(number, reason and reason.removeprefix(f"job {number} ({' '.join(job_return.overrides or [])}): "))


def jobs_left_running() -> None:
    """Records that the running jobs of this process's sweep continue without this process."""
    if _current is not None:
        _current.display.monitor.close(LEFT_RUNNING)


def job_output() -> Stream | None:
    """Returns a new stream for the output of one job; None if the job can write to the terminal itself."""
    return _current.display.stream() if _current is not None and _current.display.live else None


def job_prefix(number: int) -> str:
    """Returns the prefix of a job's log messages: its number if progress is printed as lines, otherwise its label."""
    if _current is None or os.environ.get(SWEEP_PROGRESS) == "lines":
        return f"{number} | "
    return f"{_current.display.monitor.jobs[number].label} | "


def end_sweep(plot: bool = True) -> int:
    """Prints the result of this process's sweep, if it ran one: its table, its folder, and the commands to type next.

    Args:
        plot: whether to plot the figures of the jobs afterwards.

    Returns:
        Number of jobs that this process skipped and that the process running them has not finished.
    """
    global _current
    if _current is None:
        return 0
    sweep, _current = _current, None
    os.environ.pop(SWEEP_PROGRESS, None)
    os.environ.pop(PLOTTED_BY_SWEEP, None)
    sweep.display.close()
    monitor = sweep.display.monitor
    if not monitor.begun:
        return 0
    _print_result(sweep)
    skipped = sum(job.state == SKIPPED and Run(job.folder).state != "finished" for job in monitor.jobs)
    if skipped:
        print(
            f"skipped {skipped} of {len(monitor.jobs)} jobs that another process is running; "
            "run the same command again later",
            file=sys.stderr,
        )
    if plot and sweep.local:
        _plot(sweep)
    return skipped


def _plot(sweep: _Sweep) -> None:
    from attnmosaic.sweeps.figures import plot_sweep

    try:
        plot_sweep(sweep.folder, sweep.display.monitor.jobs, sweep.mode)
    except Exception as error:  # an error here must not change the exit code
        warnings.warn(f"cannot plot the figures of '{sweep.folder}': {type(error).__name__}: {error}", stacklevel=1)


def _print_result(sweep: _Sweep) -> None:
    try:
        tables = sweep.report()
    except Exception as error:  # an error here must not hide the error that ended the sweep
        warnings.warn(f"cannot build the table of '{sweep.folder}': {type(error).__name__}: {error}", stacklevel=1)
        tables = []
    folder = path_word(sweep.folder)
    hints = (
        f"runs: {sweep.folder}",
        f"report: {command('report', folder)}",
        f"TensorBoard: {in_shell('tensorboard', '--logdir', folder)}",
    )
    print("\n".join(["", *tables, *hints]), flush=True)
