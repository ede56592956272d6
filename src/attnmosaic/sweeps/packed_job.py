"""Sends a job of a sweep to the process that runs it, and returns how it ended."""

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
    """A job that can be sent to another process, with its composed config: ``conf/`` may change before it runs.

    Args:
        task: its function, by module and name.
    """

    def __init__(
        self, number: int, config: DictConfig, task: tuple[str, str], context: HydraContext, environ: dict[str, str]
    ) -> None:
        import cloudpickle

        self.number, self.task, self.environ = number, task, environ
        self.folder = os.getcwd()
        # As bytes: Hydra changes them while a run trains, and Slurm may start a job again.
        self.pickled = cloudpickle.dumps((config, context, Singleton.get_state()))

    def run(self, task: TaskFunction | None = None, job_id: str | None = None) -> JobReturn:
        """Runs it in this process, as Hydra's basic launcher would; a `task` is called instead of `call`."""
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
        """Calls its function, which is imported now."""
        module, name = self.task
        try:
            return getattr(importlib.import_module(module), name)(config)
        except Exception as error:
            raise portable(error) from None


def portable(error: Exception) -> Exception:
    """Returns an error with the same message that can be sent to another process, with the trace as a note."""
    line = line_and_code(error)
    if line is None:
        sent: Exception = JobError(f"{type(error).__name__}: {error}")
    else:
        kind = UserError if line[1] == 2 else DiskError if is_disk_error(error) else RunError
        sent = kind(line[0])
    sent.add_note("".join(traceback.format_exception(error)).rstrip())
    return sent


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """Returns Hydra's record of a job that failed."""
    done = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    done.return_value = error
    return done


def error_of(done: JobReturn) -> Exception | None:
    """Returns the error that a job failed with; None of one that did not fail."""
    if done.status != JobStatus.FAILED:
        return None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints the job's overrides, too
            return done.return_value
    except Exception as error:
        return error
