"""Packs a job of a sweep for the process that runs it, and packs the job's result or error for the way back."""

import contextlib
import importlib
import io
import os
import traceback
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from attnmosaic.cli.command import is_disk_error, line_and_code
from attnmosaic.core.errors import DiskError, JobError, RunError, UserError


class PackedJob:
    """A job that can be sent to another process.

    It contains its composed config, because files in ``conf/`` can change before the job runs.

    Args:
        number: number of the job.
        config: composed config of the job, with Hydra's section ``hydra``.
        task: function that the job calls, as (module, name).
        context: Hydra's context of the sweep.
        environ: environment variables of the job.
    """

    def __init__(
        self, number: int, config: DictConfig, task: tuple[str, str], context: HydraContext, environ: dict[str, str]
    ) -> None:
        import cloudpickle

        self.number, self.task, self.environ = number, task, environ
        self.folder = os.getcwd()
        # Pickled at once: Hydra changes these objects while a run trains, and Slurm can start a job a second time.
        self.pickled = cloudpickle.dumps((config, context, Singleton.get_state()))

    def run(self, task: TaskFunction | None = None, job_id: str | None = None) -> JobReturn:
        """Runs the job in this process, as Hydra's basic launcher would.

        Args:
            task: function that is called with the config; None for `call`.
            job_id: id of the job for Hydra; None for the job's name and number.
        """
        import cloudpickle

        os.chdir(self.folder)
        config, context, singletons = cloudpickle.loads(self.pickled)
        Singleton.set_state(singletons)
        setup_globals()
        with open_dict(config.hydra.job):
            config.hydra.job.num = self.number
            config.hydra.job.id = job_id or f"{config.hydra.job.name}_{self.number}"
        return run_job(task or self.call, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)

    def call(self, config: DictConfig) -> Any:
        """Imports the job's function and calls it."""
        module, name = self.task
        try:
            return getattr(importlib.import_module(module), name)(config)
        except Exception as error:
            raise portable_error(error) from None


def portable_error(error: Exception) -> Exception:
    """Returns an error that can be sent to another process: with the same message, and with the traceback as a note."""
    line = line_and_code(error)
    if line is None:
        portable: Exception = JobError(f"{type(error).__name__}: {error}")
    else:
        kind = UserError if line[1] == 2 else DiskError if is_disk_error(error) else RunError
        portable = kind(line[0])
    portable.add_note("".join(traceback.format_exception(error)).rstrip())
    return portable


def failed_job(overrides: Sequence[str], error: Exception) -> JobReturn:
    """Returns Hydra's `JobReturn` of a job that failed."""
    job_return = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    job_return.return_value = error
    return job_return


def error_of(job_return: JobReturn) -> Exception | None:
    """Returns the error that a job failed with; None if the job did not fail."""
    if job_return.status != JobStatus.FAILED:
        return None
    try:
        # When a failed job's value is read, Hydra prints the job's overrides and raises the error.
        with contextlib.redirect_stderr(io.StringIO()):
            return job_return.return_value
    except Exception as error:
        return error
