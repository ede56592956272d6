"""The launcher ``hydra/launcher=joblib``. Imports nothing heavy, because Hydra imports all plugins at every start."""

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class AttnmosaicLauncher(Launcher):
    """Runs several jobs of a sweep at the same time, each in a new process.

    Args:
        n_jobs: number of jobs at the same time; None for the number that cores, memory and GPUs allow.
        gb_per_job: memory that a job needs, in GB.
        jobs_per_gpu: number of jobs that share a GPU.
    """

    def __init__(self, n_jobs: int | None, gb_per_job: float, jobs_per_gpu: int) -> None:
        self.limits: dict[str, Any] = {"n_jobs": n_jobs, "gb_per_job": gb_per_job, "jobs_per_gpu": jobs_per_gpu}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if find_spec("cloudpickle") is None:
            from attnmosaic.core.optional_packages import missing_packages

            raise missing_packages("hydra/launcher=joblib", "parallel")
        from attnmosaic.sweeps.fork_server import start_server

        start_server()
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from attnmosaic.sweeps.local import run_jobs

        return run_jobs(self.config, self.hydra_context, self._task(), self.limits, job_overrides, initial_job_idx)

    def _task(self) -> tuple[str, str]:
        return task_of(self.task_function)


def task_of(function: TaskFunction) -> tuple[str, str]:
    """Returns module and name of a job's function; ``__main__`` is replaced, as it differs in other processes."""
    module = function.__module__
    if module == "__main__":
        module = f"attnmosaic.{Path(inspect.getfile(function)).stem}"
    return module, function.__qualname__
