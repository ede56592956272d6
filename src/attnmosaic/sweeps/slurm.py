"""Runs the jobs of a sweep as an array job of Slurm: submits them, waits for them, finds them again later."""

import contextlib
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.resolution import resolve, with_scale
from attnmosaic.config.schema import processes_of
from attnmosaic.core.errors import RunError, UserError, one_line
from attnmosaic.core.files import write_atomically
from attnmosaic.core.quoting import typed_override
from attnmosaic.runs.run import ERROR, Run, earlier_result
from attnmosaic.sweeps.allocation import devices
from attnmosaic.sweeps.hydra_callback import job_began, job_ended, jobs_left, write_plan
from attnmosaic.sweeps.packed_job import failed
from attnmosaic.sweeps.plan import job_config
from attnmosaic.sweeps.slurm_node import OnNode

FOLDER = "slurm"
"""The folder, in a sweep's, of the jobs' logs and of what Slurm starts them from."""

SUBMITTED = "submitted.json"

POLL_SECONDS, POLLS = 10.0, 4
"""Seconds between two polls of the queue, and in how many a job must have ended before it counts as lost: on a network
file system its result may appear late."""

OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT"}
"""States of jobs that have ended and will not start again."""


def parameters(asked: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns what to ask of Slurm for each job of a sweep, by submitit's names, from the launcher's section.

    Raises:
        UserError: a number is missing.
    """
    given: Any = OmegaConf.to_container(OmegaConf.create({**asked}))
    if given.get("gpus_per_node") == "auto":
        takes = devices(config)
        if takes is None:
            raise UserError(
                "hydra.launcher.gpus_per_node: got auto, but trainer.devices names no number; type trainer.devices=1"
            )
        given["gpus_per_node"] = takes or None
    for key in ("timeout_min", "array_parallelism", "signal_delay_s", "max_num_timeout"):
        if not isinstance(given.get(key), int) or given[key] < 0:
            raise UserError(f"hydra.launcher.{key}: got {given.get(key)}, needs a whole number")
    # Otherwise a step of one task may be held to one of its cores.
    if (cores := given.get("cpus_per_task")) is not None:
        given["srun_args"] = [f"--cpus-per-task={cores}", *(given.get("srun_args") or [])]
    return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Row:
    """A job of the sweep: its number, its own overrides and its composed config, with Hydra's own section."""

    number: int
    overrides: list[str]
    config: Any

    @property
    def name(self) -> str:
        return str(self.config.hydra.sweep.subdir)

    @property
    def run(self) -> Run:
        return Run(Path(self.config.hydra.sweep.dir, self.name))

    def finished(self) -> JobReturn | None:
        """Returns what comes of it if its run has finished with these settings."""
        folder = self.run.folder.absolute()
        try:
            result = earlier_result(folder, resolve(job_config(with_scale(self.config), str(folder))))
        except (UserError, OmegaConfBaseException):  # the job itself reports it
            return None
        if result is None:
            return None
        done = JobReturn(overrides=self.overrides, cfg=self.config, status=JobStatus.COMPLETED)
        done.return_value = result["metrics"].get(self.config.optimized_metric)
        return done


class SlurmJobs:
    """Submits the jobs of a sweep and waits for them.

    Args:
        task: the function of a job, by module and name.
        asked: see `parameters`.
        hydra_context: Hydra's.
        config: the sweep's, with Hydra's own section.
    """

    def __init__(self, task: tuple[str, str], asked: dict[str, Any], hydra_context: HydraContext, config: Any) -> None:
        self.task = task
        self.asked = asked
        self.hydra_context = hydra_context
        self.config = config
        self.sweep = Path(config.hydra.sweep.dir)
        self.folder = self.sweep / FOLDER

    def run(self, overrides: Sequence[list[str]], first: int) -> list[JobReturn]:
        """Runs jobs to their ends; the failure of some is part of the result.

        Only rows without a result are submitted; those that an earlier call has submitted and Slurm still has are
        waited for. The jobs do not end with this process.

        Raises:
            UserError: Slurm does not take the jobs.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        write_plan(self.hydra_context)
        rows = {number: self._row(number, own) for number, own in enumerate(overrides, start=first)}
        done = {number: result for number, row in rows.items() if (result := row.finished()) is not None}
        for number in done:
            job_began(number)
        left = [row for number, row in rows.items() if number not in done]
        if left:
            done |= self._wait(left)
        return [done[number] for number in rows]

    def _row(self, number: int, overrides: list[str]) -> _Row:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
        return _Row(number, overrides, config)

    def _wait(self, rows: Sequence[_Row]) -> dict[int, JobReturn]:
        """Returns what comes of rows without a result, after submitting those that Slurm does not have."""
        jobs = self._submitted_before(rows)
        before = f", {len(jobs)} of them submitted before" if jobs else ""
        jobs |= self._submit([row for row in rows if row.number not in jobs])
        now = {row.name: jobs[row.number].job_id for row in rows}
        write_atomically(self.folder / SUBMITTED, json.dumps(self._noted() | now, indent=1))
        arrays = " ".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs.values()))
        print(f"Slurm has {len(jobs)} jobs{before}: {arrays}; logs: {self.folder}", file=sys.stderr)
        by_number = {row.number: row for row in rows}
        try:
            return wait_for(jobs, lambda number, state: self._lost(by_number[number], jobs[number], state))
        except BaseException:  # Ctrl-C, say
            jobs_left()
            again = f"the same command with {typed_override('hydra.sweep.dir', str(self.sweep))} waits for them"
            print(f"the jobs continue; {again}, scancel {arrays} ends them", file=sys.stderr)
            raise

    def _noted(self) -> dict[str, str]:
        """Returns the id of the job last submitted for each row."""
        file = self.folder / SUBMITTED
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _submitted_before(self, rows: Sequence[_Row]) -> dict[int, Any]:
        """Returns submitit's jobs of those rows that Slurm still has."""
        import submitit

        noted = self._noted()
        ids = {row.number: noted[row.name] for row in rows if row.name in noted}
        states = queue(ids.values()) if ids else {}
        if states is None:
            raise UserError("hydra/launcher=submitit_slurm: Slurm does not answer (squeue), try again later")
        alive = {number: job for number, job in ids.items() if states.get(job, "COMPLETED") not in OVER}
        return {number: submitit.SlurmJob(self.folder, job) for number, job in alive.items()}

    def _submit(self, rows: Sequence[_Row]) -> dict[int, Any]:
        """Submits rows as one array job; returns submitit's jobs by number."""
        if not rows:
            return {}
        import submitit
        from submitit.core.utils import FailedJobError

        asked = dict(self.asked)
        limit = asked.pop("max_num_timeout")
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=limit)
        try:
            executor.update_parameters(**{f"slurm_{key}": value for key, value in asked.items()})
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # it prints what it raises, too
                return {row.number: executor.submit(self._packed(row)) for row in rows}
        except NameError as error:
            raise UserError(f"hydra.launcher: {str(error).splitlines()[0].replace('slurm_', '')}") from error
        except (FailedJobError, OSError) as error:
            why = one_line(str(error) or type(error).__name__)
            raise UserError(
                f"hydra.launcher: Slurm does not take the jobs ({why}); type other hydra.launcher.KEY=..., "
                "or hydra/launcher=joblib where there is no cluster"
            ) from error

    def _packed(self, row: _Row) -> OnNode:
        cores = self.asked.get("cpus_per_task")
        threads = cores and max(1, cores // processes_of({"trainer": OmegaConf.select(row.config, "trainer") or {}}))
        environ = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        return OnNode(row.number, row.config, self.task, self.hydra_context, environ)

    def _lost(self, row: _Row, job: Any, state: str) -> JobReturn:
        """Returns what comes of a job that has ended without a result, and writes it into its run's folder."""
        hint = ": more hydra.launcher.mem_gb?" if state == "OUT_OF_MEMORY" else ""
        log = self.folder / job.paths.stderr.name
        given = " ".join(row.overrides)
        message = f"job {row.number} ({given}): Slurm's job {job.job_id} ended ({state}{hint}), see {log}"
        run = row.run
        if state != "CANCELLED" and run.state not in ("finished", "running"):
            run.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(run.folder / ERROR, f"{message}\n")
        return failed(row.overrides, RunError(message))


def wait_for(jobs: Mapping[int, Any], lost: Callable[[int, str], JobReturn]) -> dict[int, JobReturn]:
    """Waits until every job has left a result, or has ended without, and returns what came of each.

    Args:
        jobs: submitit's, by number.
        lost: returns what came of a job without a result, from its number and its last state or error.
    """
    done: dict[int, JobReturn] = {}
    began: set[int] = set()
    ended: Counter[int] = Counter()
    polled = float("-inf")
    while len(done) < len(jobs):
        waiting = {number: job for number, job in jobs.items() if number not in done}
        states = None
        if time.monotonic() >= polled + POLL_SECONDS:
            states = queue(job.job_id for job in waiting.values())
            polled = time.monotonic()
        for number, job in waiting.items():
            state = (states or {}).get(job.job_id, "ended")
            there = job.paths.result_pickle.exists()
            if states is not None:
                ended[number] = ended[number] + 1 if state == "ended" or state in OVER else 0
            over = there or ended[number] >= POLLS
            if number not in began and (over or state == "RUNNING"):
                began.add(number)
                job_began(number)
            if over:
                result = _read(job) if there else state
                done[number] = lost(number, result) if isinstance(result, str) else result
                job_ended(number, done[number])
        time.sleep(min(1.0, POLL_SECONDS))
    return done


def _read(job: Any) -> JobReturn | str:
    """Returns a job's result, or why it failed before its run began or after that had ended."""
    import cloudpickle

    outcome, content = cloudpickle.loads(job.paths.result_pickle.read_bytes())
    if outcome == "success":
        return content
    return [line for line in str(content).splitlines() if line and not line[0].isspace()][-1]


def queue(jobs: Iterable[str]) -> dict[str, str] | None:
    """Returns the states of those jobs that Slurm knows, or None if it does not answer.

    It knows ended jobs for some minutes.
    """
    arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None
    return dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
