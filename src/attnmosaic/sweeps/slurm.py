"""Runs the jobs of a sweep as a Slurm array job: submits them, waits for them, and finds them again when restarted."""

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
from attnmosaic.sweeps.allocation import gpus_per_job
from attnmosaic.sweeps.hydra_callback import job_began, job_ended, jobs_left_running, write_plan
from attnmosaic.sweeps.job_configs import JobConfigs
from attnmosaic.sweeps.packed_job import failed_job
from attnmosaic.sweeps.plan import job_config
from attnmosaic.sweeps.slurm_node import OnNode

FOLDER = "slurm"
"""Folder in the sweep's folder, with the jobs' logs and the files that Slurm starts the jobs from."""

SUBMITTED = "submitted.json"
"""File in that folder: the Slurm job id last submitted for each job of the sweep."""

POLL_SECONDS, POLLS = 10.0, 4
"""Seconds between two polls of the Slurm queue, and number of polls after which an ended job without a result is
reported as failed: on a network file system the result can appear late."""

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}
"""Slurm's states of jobs that have ended and will not start again."""


def submit_options(launcher_options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns the resources and options of each Slurm job, under submitit's names.

    Args:
        launcher_options: the section ``hydra.launcher``.
        config: config of the sweep.

    Raises:
        UserError: an option that needs a number has none.
    """
    options: Any = OmegaConf.to_container(OmegaConf.create({**launcher_options}))
    if options.get("gpus_per_node") == "auto":
        gpus = gpus_per_job(config)
        if gpus is None:
            raise UserError(
                "hydra.launcher.gpus_per_node: got auto, needs a number of GPUs in trainer.devices; "
                "type trainer.devices=1"
            )
        options["gpus_per_node"] = gpus or None
    for key in ("timeout_min", "array_parallelism", "signal_delay_s", "max_num_timeout"):
        if not isinstance(options.get(key), int) or options[key] < 0:
            raise UserError(
                f"hydra.launcher.{key}: got {options.get(key)}, needs a whole number of at least 0; "
                f"type for example hydra.launcher.{key}=10"
            )
    # Without this option of srun, Slurm can restrict a step with one task to a single core.
    if (cores := options.get("cpus_per_task")) is not None:
        options["srun_args"] = [f"--cpus-per-task={cores}", *(options.get("srun_args") or [])]
    return {key: value for key, value in options.items() if value is not None}


@dataclass(frozen=True)
class _SweepJob:
    """A job of the sweep: its number, its overrides, and its composed config with Hydra's section ``hydra``."""

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
        """Returns the job's result if its run has already finished with the same settings, otherwise None."""
        folder = self.run.folder.absolute()
        try:
            result = earlier_result(folder, resolve(job_config(with_scale(self.config), str(folder))))
        except (UserError, OmegaConfBaseException):  # the job itself reports this error
            return None
        if result is None:
            return None
        job_return = JobReturn(overrides=self.overrides, cfg=self.config, status=JobStatus.COMPLETED)
        job_return.return_value = result["metrics"].get(self.config.optimized_metric)
        return job_return


class SlurmJobs:
    """Submits the jobs of a sweep and waits for them.

    Args:
        task: function that a job calls, as (module, name).
        options: resources and options of each job, see `submit_options`.
        hydra_context: Hydra's context of the sweep.
        config: config of the sweep, with Hydra's section ``hydra``.
    """

    def __init__(
        self, task: tuple[str, str], options: dict[str, Any], hydra_context: HydraContext, config: Any
    ) -> None:
        self.task = task
        self.options = options
        self.hydra_context = hydra_context
        self.config = config
        self._configs = JobConfigs(hydra_context.config_loader, config)
        self.sweep = Path(config.hydra.sweep.dir)
        self.folder = self.sweep / FOLDER

    def run(self, overrides: Sequence[list[str]], first: int) -> list[JobReturn]:
        """Runs jobs and waits until all have ended; the result of a failed job contains its error.

        Jobs that already have a result are not submitted. Jobs that an earlier call has submitted and that Slurm still
        has are only waited for. If this process ends, its Slurm jobs continue.

        Args:
            overrides: overrides of each job.
            first: number of the first job.

        Raises:
            UserError: Slurm rejects the jobs.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        write_plan(self.hydra_context)
        jobs = {number: self._sweep_job(number, each) for number, each in enumerate(overrides, start=first)}
        results = {number: result for number, job in jobs.items() if (result := job.finished()) is not None}
        for number in results:
            job_began(number)
        unfinished = [job for number, job in jobs.items() if number not in results]
        if unfinished:
            results |= self._submit_and_wait(unfinished)
        return [results[number] for number in jobs]

    def _sweep_job(self, number: int, overrides: list[str]) -> _SweepJob:
        config = self._configs(overrides)
        with open_dict(config):
            config.hydra.job.num = number
        return _SweepJob(number, overrides, config)

    def _submit_and_wait(self, jobs: Sequence[_SweepJob]) -> dict[int, JobReturn]:
        """Submits the jobs that Slurm does not have, waits for all of them, and returns their results by number."""
        slurm_jobs = self._submitted_before(jobs)
        before = f", {len(slurm_jobs)} of them submitted before" if slurm_jobs else ""
        slurm_jobs |= self._submit([job for job in jobs if job.number not in slurm_jobs])
        ids = {job.name: slurm_jobs[job.number].job_id for job in jobs}
        write_atomically(self.folder / SUBMITTED, json.dumps(self._submitted_ids() | ids, indent=1))
        arrays = " ".join(dict.fromkeys(slurm_job.job_id.partition("_")[0] for slurm_job in slurm_jobs.values()))
        print(f"Slurm has {len(slurm_jobs)} jobs{before}: {arrays}; logs: {self.folder}", file=sys.stderr)
        by_number = {job.number: job for job in jobs}
        try:
            return wait_for(
                slurm_jobs,
                lambda number, reason: self._without_result(by_number[number], slurm_jobs[number], reason),
            )
        except BaseException:  # for example after Ctrl-C
            jobs_left_running()
            print(
                "the Slurm jobs continue; to wait for them, run the same command with "
                f"{typed_override('hydra.sweep.dir', str(self.sweep))}; to end them, type scancel {arrays}",
                file=sys.stderr,
            )
            raise

    def _submitted_ids(self) -> dict[str, str]:
        """Returns the Slurm job id that was last submitted for each job of the sweep, by the job's name."""
        file = self.folder / SUBMITTED
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _submitted_before(self, jobs: Sequence[_SweepJob]) -> dict[int, Any]:
        """Returns submitit's jobs, by number, for those jobs of the sweep that Slurm still has."""
        import submitit

        submitted = self._submitted_ids()
        ids = {job.number: submitted[job.name] for job in jobs if job.name in submitted}
        states = queue_states(ids.values()) if ids else {}
        if states is None:
            raise UserError("hydra/launcher=submitit_slurm: Slurm does not answer (squeue); try again later")
        waited_for = {number: job_id for number, job_id in ids.items() if states.get(job_id, "COMPLETED") not in ENDED}
        return {number: submitit.SlurmJob(self.folder, job_id) for number, job_id in waited_for.items()}

    def _submit(self, jobs: Sequence[_SweepJob]) -> dict[int, Any]:
        """Submits jobs as one array job; returns submitit's jobs by number."""
        if not jobs:
            return {}
        import submitit
        from submitit.core.utils import FailedJobError

        options = dict(self.options)
        limit = options.pop("max_num_timeout")
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=limit)
        try:
            executor.update_parameters(**{f"slurm_{key}": value for key, value in options.items()})
            # submitit prints the text of an error in addition to raising it.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                return {job.number: executor.submit(self._packed(job)) for job in jobs}
        except NameError as error:
            raise UserError(f"hydra.launcher: {str(error).splitlines()[0].replace('slurm_', '')}") from error
        except (FailedJobError, OSError) as error:
            reason = one_line(str(error) or type(error).__name__)
            raise UserError(
                f"hydra.launcher: Slurm rejected the jobs ({reason}); change hydra.launcher.KEY=..., "
                "or type hydra/launcher=joblib on a machine without Slurm"
            ) from error

    def _packed(self, job: _SweepJob) -> OnNode:
        cores = self.options.get("cpus_per_task")
        threads = cores and max(1, cores // processes_of({"trainer": OmegaConf.select(job.config, "trainer") or {}}))
        environ = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        return OnNode(job.number, job.config, self.task, self.hydra_context, environ)

    def _without_result(self, job: _SweepJob, slurm_job: Any, reason: str) -> JobReturn:
        """Returns a failed job for one that has ended without a result; also writes the error into its run's folder."""
        hint = ": hydra.launcher.mem_gb too small?" if reason == "OUT_OF_MEMORY" else ""
        log = self.folder / slurm_job.paths.stderr.name
        overrides = " ".join(job.overrides)
        message = f"job {job.number} ({overrides}): Slurm job {slurm_job.job_id} ended ({reason}{hint}); see {log}"
        run = job.run
        if reason != "CANCELLED" and run.state not in ("finished", "running"):
            run.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(run.folder / ERROR, f"{message}\n")
        return failed_job(job.overrides, RunError(message))


def wait_for(jobs: Mapping[int, Any], without_result: Callable[[int, str], JobReturn]) -> dict[int, JobReturn]:
    """Waits until every job has a result or has ended without one, and returns the results by number.

    Args:
        jobs: submitit's jobs, by number.
        without_result: returns the result for a job that left none, given the job's number and its last state or error.
    """
    results: dict[int, JobReturn] = {}
    began: set[int] = set()
    polls_ended: Counter[int] = Counter()
    polled = float("-inf")
    while len(results) < len(jobs):
        waiting = {number: job for number, job in jobs.items() if number not in results}
        states = None
        if time.monotonic() >= polled + POLL_SECONDS:
            states = queue_states(job.job_id for job in waiting.values())
            polled = time.monotonic()
        for number, job in waiting.items():
            state = (states or {}).get(job.job_id, "ended")
            has_result = job.paths.result_pickle.exists()
            if states is not None:
                polls_ended[number] = polls_ended[number] + 1 if state == "ended" or state in ENDED else 0
            over = has_result or polls_ended[number] >= POLLS
            if number not in began and (over or state == "RUNNING"):
                began.add(number)
                job_began(number)
            if over:
                result = _read(job) if has_result else state
                results[number] = without_result(number, result) if isinstance(result, str) else result
                job_ended(number, results[number])
        time.sleep(min(1.0, POLL_SECONDS))
    return results


def _read(job: Any) -> JobReturn | str:
    """Returns a job's result; or an error message if the job failed before its run began or after its run ended."""
    import cloudpickle

    outcome, content = cloudpickle.loads(job.paths.result_pickle.read_bytes())
    if outcome == "success":
        return content
    return [line for line in str(content).splitlines() if line and not line[0].isspace()][-1]


def queue_states(job_ids: Iterable[str]) -> dict[str, str] | None:
    """Returns the Slurm states of jobs by id, without jobs that Slurm does not know; None if Slurm does not answer.

    Slurm knows a job for some minutes after its end.
    """
    arrays = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T"]
    try:
        squeue = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if squeue.returncode != 0:
        return {} if "Invalid job id" in squeue.stderr else None
    return dict(line.strip().split("|", 1) for line in squeue.stdout.splitlines() if "|" in line)
