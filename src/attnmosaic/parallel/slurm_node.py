"""What a node of Slurm does for a job of a sweep."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import submitit
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher  # type: ignore[import-untyped]
from omegaconf import DictConfig
from submitit.core.utils import UncompletedJobError, cloudpickle_dump, temporary_save_path

from attnmosaic.errors import RunError
from attnmosaic.parallel.jobs import Composed, portable


class OnNode(SlurmLauncher):
    """A job, as Slurm starts it: pickled once, read at its first start and whenever it is put back into the queue.

    It always gets the same run folder, so the run there goes on from its newest checkpoint.

    Args:
        task: the function of a job, by module and name.
        config: the job's.
        callbacks: Hydra's.
        environ: variables to set where there are none of these names.
    """

    def __init__(self, task: tuple[str, str], config: Any, callbacks: Any, environ: Mapping[str, str]) -> None:
        super().__init__()
        self.task_function = _Task(*task)
        self.config = config
        # Composed when it was submitted: what conf/ holds when it starts may be another thing.
        self.hydra_context = HydraContext(config_loader=Composed(), callbacks=callbacks)  # type: ignore[arg-type]
        self.environ = environ
        self.folder = os.getcwd()

    def __call__(self, *arguments: Any) -> JobReturn:
        paths = submitit.JobEnvironment().paths
        for file in (paths.result_pickle, paths.submitted_pickle):  # submitit trips over what a killed start left
            file.with_suffix(f"{file.suffix}.save_tmp").unlink(missing_ok=True)
        os.chdir(self.folder)
        cores = {"OMP_NUM_THREADS": cores} if (cores := os.environ.get("SLURM_CPUS_PER_TASK")) else {}
        os.environ.update({**cores, **self.environ, **os.environ})
        done: JobReturn = super().__call__(*arguments)
        if done.status == JobStatus.FAILED:
            with temporary_save_path(paths.result_pickle) as file:
                cloudpickle_dump(("success", done), file)
            sys.exit(1)  # so that Slurm knows, too
        return done


class _Task:
    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self, config: DictConfig) -> Any:
        try:
            return getattr(importlib.import_module(self.module), self.name)(config)
        except UncompletedJobError as error:  # raised by submitit's signal handler, wherever the run was
            raise RunError(
                "it came to its time limit once more than hydra.launcher.max_num_timeout allows; "
                "the same command goes on from its last checkpoint"
            ) from error
        except Exception as error:
            raise portable(error) from None
