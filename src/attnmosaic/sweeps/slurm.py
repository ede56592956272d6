"""The jobs of a sweep as an array job of Slurm: submitted, watched until the last has ended, found again later."""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict
from submitit.core.utils import FailedJobError

from attnmosaic.core.errors import RunError, UserError, nearest
from attnmosaic.core.files import write_atomically
from attnmosaic.core.quoting import to_type
from attnmosaic.runs.run import AT_ONCE, ERROR, Run
from attnmosaic.sweeps.allocation import devices
from attnmosaic.sweeps.callback import SweepPlan, job_began, jobs_left
from attnmosaic.sweeps.job import failed
from attnmosaic.sweeps.slurm_node import OnNode
from attnmosaic.sweeps.slurm_queue import OVER, queue, wait_for

FOLDER = "slurm"
"""Where in a sweep's folder its jobs' logs lie, and what Slurm starts them with."""

SUBMITTED = "submitted.json"

_NUMBERS = {"timeout_min": 1, "cpus_per_task": 1, "array_parallelism": 1, "signal_delay_s": 1, "max_num_timeout": 0}
_NUMBERS |= {"gpus_per_node": 0}
_REQUIRED = ("timeout_min", "array_parallelism", "signal_delay_s", "max_num_timeout")


def parameters(asked: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns what to ask of Slurm for each job of a sweep, by submitit's names.

    Args:
        asked: the launcher's section of the config.
        config: the sweep's.

    Raises:
        UserError: a key is unknown, or a value will not do.
    """
    given = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in asked.items()
    }
    if given.get("gpus_per_node") == "auto":
        takes = devices(OmegaConf.select(config, "trainer") or {})
        if takes is None:
            raise UserError(
                "hydra.launcher.gpus_per_node: got auto, but trainer.devices names no number; type trainer.devices=1"
            )
        given["gpus_per_node"] = takes or None
    for key, least in _NUMBERS.items():
        value = given.get(key)
        if value is None and key not in _REQUIRED:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"hydra.launcher.{key}: got {value}, needs a whole number of at least {least}")
    gb = given.get("mem_gb")
    if gb is not None and (isinstance(gb, bool) or not isinstance(gb, (int, float)) or not gb > 0):
        raise UserError(f"hydra.launcher.mem_gb: got {gb}, needs a number above 0")
    # Otherwise a step of one task may be held to one of its cores.
    if (cores := given.get("cpus_per_task")) is not None:
        given["srun_args"] = [f"--cpus-per-task={cores}", *(given.get("srun_args") or [])]
    given = {key: value for key, value in given.items() if value is not None}
    _check_names(given)
    return given


def _check_names(given: Mapping[str, Any]) -> None:
    """Checks that submitit knows every parameter."""
    named = {f"slurm_{key}": value for key, value in given.items() if key != "max_num_timeout"}
    try:
        submitit.AutoExecutor(FOLDER, cluster="local").update_parameters(**named)  # knows Slurm's names on any machine
    except NameError as error:
        unknown, _, valid = str(error).splitlines()[0].partition(" Valid arguments: ")
        name = unknown.split("'")[1]
        known = sorted({"max_num_timeout", *_NUMBERS, *valid.split(", ")})
        close = nearest(name, known, n=1)
        hint = f"; did you mean hydra.launcher.{close[0]}?" if close else ""
        raise UserError(f"hydra.launcher: got '{name}', allowed: {', '.join(known)}{hint}") from error


class SlurmJobs:
    """Submits the jobs of a sweep and waits for them.

    Args:
        task: the function of a job, by module and name.
        asked: see `parameters`.
        hydra_context: Hydra's.
        config: the sweep's.
    """

    def __init__(self, task: tuple[str, str], asked: dict[str, Any], hydra_context: HydraContext, config: Any) -> None:
        self.task = task
        self.asked = asked
        self.hydra_context = hydra_context
        self.config = config
        self.sweep = Path(config.hydra.sweep.dir)

    def run(self, overrides: Sequence[list[str]], first: int) -> list[JobReturn]:
        """Runs jobs to their ends; that some failed is in what this returns.

        Of the jobs that an earlier call for this folder submitted, those that have finished are not submitted again,
        and those that have not ended are waited for. If this process ends before, its jobs go on.

        Args:
            overrides: what tells each job from the others.
            first: the number of the first.

        Raises:
            UserError: Slurm does not take the jobs.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        for callback in self.hydra_context.callbacks.callbacks:
            if isinstance(callback, SweepPlan):
                callback.write()  # the first job may begin tomorrow
        numbered = dict(enumerate(overrides, start=first))
        configs = {number: self._compose(number, own) for number, own in numbered.items()}
        done = self._finished(configs, numbered)
        earlier = self._earlier({number: config for number, config in configs.items() if number not in done})
        new = {number: config for number, config in configs.items() if number not in done and number not in earlier}
        jobs = {**earlier, **(self._submit(new, numbered) if new else {})}
        if not jobs:
            return [done[number] for number in numbered]
        self._note(jobs, configs)
        arrays = " ".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs.values()))
        found = f", {len(earlier)} of them submitted before" if earlier else ""
        print(f"Slurm has {len(jobs)} jobs{found}: {arrays}; logs: {self.sweep / FOLDER}", file=sys.stderr)
        try:
            done |= wait_for(jobs, lambda number, state: self._lost(number, state, jobs, configs, numbered))
        except BaseException:  # Ctrl-C, say
            jobs_left()
            again = f"the same command with {to_type('hydra.sweep.dir', str(self.sweep))} waits for them"
            print(f"jobs go on; {again}, scancel {arrays} ends them", file=sys.stderr)
            raise
        return [done[number] for number in numbered]

    def _compose(self, number: int, overrides: list[str]) -> Any:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
        return config

    def _finished(self, configs: Mapping[int, Any], overrides: Mapping[int, list[str]]) -> dict[int, JobReturn]:
        """Returns what comes of those jobs that were submitted before, with the same settings, and have finished."""
        noted, done = self._noted(), {}
        for number, config in configs.items():
            result = Run(self.sweep / _row(config)).result
            if result is not None and noted.get(_row(config), {}).get("settings") == _settings(config):
                job_began(number)
                done[number] = JobReturn(overrides=overrides[number], cfg=config, status=JobStatus.COMPLETED)
                done[number].return_value = result["metrics"].get(config.optimized_metric)
        return done

    def _earlier(self, configs: Mapping[int, Any]) -> dict[int, submitit.Job[JobReturn]]:
        """Returns those jobs that were submitted before, with the same settings, and have not ended."""
        noted = self._noted()
        ids = {number: noted.get(_row(config), {}) for number, config in configs.items()}
        same = {number: row["job"] for number, row in ids.items() if row.get("settings") == _settings(configs[number])}
        states = queue(same.values()) if same else {}
        if states is None:
            raise UserError("hydra/launcher=submitit_slurm: Slurm does not answer (squeue), try again later")
        alive = {number: job for number, job in same.items() if states.get(job, "COMPLETED") not in OVER}
        return {number: submitit.SlurmJob(self.sweep / FOLDER, job) for number, job in alive.items()}

    def _submit(self, configs: Mapping[int, Any], overrides: Mapping[int, list[str]]) -> dict[int, Any]:
        asked = dict(self.asked)
        limit = asked.pop("max_num_timeout")
        executor = submitit.AutoExecutor(self.sweep / FOLDER, cluster="slurm", slurm_max_num_timeout=limit)
        executor.update_parameters(**{f"slurm_{key}": value for key, value in asked.items()})
        environ = {AT_ONCE: str(min(len(configs), asked["array_parallelism"]))}
        try:
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # it prints what it raises, too
                return {
                    number: executor.submit(OnNode(number, config, self.task, self.hydra_context, environ))
                    for number, config in configs.items()
                }
        except (FailedJobError, OSError) as error:
            told = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            why = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in told)
            nobody = "configuration source" in why or "Unable to contact" in why
            advice = "is there a cluster? type hydra/launcher=joblib" if nobody else "type other hydra.launcher.KEY=..."
            raise UserError(f"hydra.launcher: Slurm does not take the jobs ({why}); {advice}") from error

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads((self.sweep / FOLDER / SUBMITTED).read_text(encoding="utf-8"))
            return {row: dict(job) for row, job in noted.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _note(self, jobs: Mapping[int, Any], configs: Mapping[int, Any]) -> None:
        """Writes down which job is which row's."""
        now = {_row(configs[n]): {"job": job.job_id, "settings": _settings(configs[n])} for n, job in jobs.items()}
        write_atomically(self.sweep / FOLDER / SUBMITTED, json.dumps({**self._noted(), **now}, indent=1))

    def _lost(
        self, number: int, state: str, jobs: Mapping[int, Any], configs: Mapping[int, Any], overrides: Mapping[int, Any]
    ) -> JobReturn:
        """Returns what to say of a job that has ended and left no result; its run's folder has it, too."""
        job = jobs[number]
        log = self.sweep / FOLDER / job.paths.stderr.name
        hint = ": more hydra.launcher.mem_gb?" if state == "OUT_OF_MEMORY" else ""
        given = " ".join(overrides[number])
        message = f"job {number} ({given}): Slurm's job {job.job_id} ended ({state}{hint}), see {log}"
        run = Run(self.sweep / _row(configs[number]))
        if state != "CANCELLED" and run.state not in ("finished", "running"):
            run.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(run.folder / ERROR, f"{message}\n")
        return failed(overrides[number], RunError(message))


def _row(config: Any) -> str:
    return str(config.hydra.sweep.subdir)


def _settings(config: Any) -> str:
    """Returns a hash of a job's config, as it was composed."""
    own = {key: node for key, node in OmegaConf.to_container(config).items() if key != "hydra"}  # type: ignore[union-attr]
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]
