"""The launcher behind ``hydra/launcher=joblib``. Hydra imports every plugin at every start, so this one is light."""

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class AttnmosaicLauncher(Launcher):
    """Runs jobs of a sweep at once, as many as pay, each in a fresh process.

    Args:
        n_jobs: how many at once; None for as many as cores, memory and GPUs allow.
        gb_per_job: memory that a job takes.
        jobs_per_gpu: how many share a GPU.
    """

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def __init__(self, n_jobs: int | None, gb_per_job: float, jobs_per_gpu: int) -> None:
        self.limits: dict[str, Any] = {"n_jobs": n_jobs, "gb_per_job": gb_per_job, "jobs_per_gpu": jobs_per_gpu}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if find_spec("cloudpickle") is None:
            from attnmosaic.core.extras import missing_packages

            raise missing_packages("hydra/launcher=joblib", "parallel")
        from attnmosaic.sweeps.server import start_server

        start_server()
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import cloudpickle
        from joblib import cpu_count

        from attnmosaic.config.schema import processes_of
        from attnmosaic.core.resources import asked_threads, free_gb, visible_gpus
        from attnmosaic.sweeps.allocation import devices, groups, plan
        from attnmosaic.sweeps.local import Jobs

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        takes = devices(OmegaConf.select(self.config, "trainer") or {})
        gpus = [] if takes == 0 else visible_gpus(os.environ)
        each_starts = processes_of({"trainer": OmegaConf.select(self.config, "trainer") or {}})
        # A search comes in rounds, of which one that goes on may lack some: its threads are those of a whole round.
        jobs = max(len(job_overrides), OmegaConf.select(self.config, "hydra.sweeper.n_jobs") or 1)
        at_once, threads = plan(
            jobs,
            cpu_count(),
            processes=each_starts,
            threads=asked_threads(OmegaConf.select(self.config, "compute.threads"), os.environ),
            free_gb=free_gb(),
            gpus=len(groups(gpus, takes)),
            **self.limits,
        )
        each = f", threads of each: {threads}" if threads else ""
        print(f"{len(job_overrides)} jobs, {at_once} at once{each}", file=sys.stderr)

        def composed() -> Iterator[tuple[int, list[str], bytes, int | None]]:
            for job, overrides in enumerate(map(list, job_overrides), start=initial_job_idx):
                config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
                yield job, overrides, cloudpickle.dumps(config), devices(OmegaConf.select(config, "trainer") or {})

        shared = cloudpickle.dumps((self.hydra_context, Singleton.get_state()))
        # A thread waits for each running job; Hydra, which is not made for threads, runs in the job's process.
        with ThreadPoolExecutor(at_once) as pool, Jobs(self._task(), shared, threads, gpus, at_once) as jobs:
            return [*pool.map(lambda job: jobs.run(*job), composed())]

    def _task(self) -> tuple[str, str]:
        return task_of(self.task_function)


def task_of(function: TaskFunction) -> tuple[str, str]:
    """Returns a job's function by module and name: ``__main__`` is another module in another process."""
    module = function.__module__
    if module == "__main__":
        module = f"attnmosaic.{Path(inspect.getfile(function)).stem}"
    return module, function.__qualname__
