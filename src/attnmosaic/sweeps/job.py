"""Runs one job of a sweep in the process that a launcher has started for it, and says how it ended."""

import contextlib
import importlib
import io
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from attnmosaic.cli.command import blames_disk, told
from attnmosaic.core.errors import DiskError, JobError, RunError, UserError

Shared = tuple[HydraContext, dict[type, Singleton]]
"""What the process that launches a sweep passes to all jobs: Hydra's context, and the state of Hydra's singletons."""


def run_composed(config: DictConfig, number: int, job_id: str, task: TaskFunction, shared: Shared) -> JobReturn:
    """Runs a job from its composed config, which need not be the one that ``conf/`` would give now.

    Args:
        config: with Hydra's own section.
        number: the job's.
        job_id: ``hydra.job.id``.
        task: its function.
        shared: see `Shared`.
    """
    context, singletons = shared
    Singleton.set_state(singletons)
    setup_globals()
    with open_dict(config.hydra.job):
        config.hydra.job.id, config.hydra.job.num = job_id, number
    return run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


def task_named(module: str, name: str, translate: Callable[[Exception], Exception] | None = None) -> TaskFunction:
    """Returns a job's function, imported when it is called.

    Args:
        module: where it is.
        name: its name there.
        translate: gives the error to raise instead of one that the function raises; None for `portable`.
    """

    def run(config: DictConfig) -> Any:
        try:
            return getattr(importlib.import_module(module), name)(config)
        except Exception as error:
            raise (translate or portable)(error) from None

    return run


def portable(error: Exception) -> Exception:
    """Returns an error with the same message that can be sent to another process, with the trace as a note."""
    line = told(error)
    if line is None:
        sent: Exception = JobError(f"{type(error).__name__}: {error}")
    else:
        kind = UserError if line[1] == 2 else DiskError if blames_disk(error) else RunError
        sent = kind(line[0])
    sent.add_note("".join(traceback.format_exception(error)).rstrip())
    return sent


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """Returns what Hydra gets of a job that failed."""
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
