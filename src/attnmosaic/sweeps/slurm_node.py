"""What a node of Slurm does for a job of a sweep."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import cloudpickle
import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf
from submitit.core.utils import DelayedSubmission, UncompletedJobError, cloudpickle_dump, temporary_save_path

from attnmosaic.config.schema import processes_of
from attnmosaic.core.errors import RunError
from attnmosaic.core.text import use_substitutes
from attnmosaic.sweeps.job import portable, run_composed, task_named


class OnNode:
    """A job, as Slurm starts it: pickled once, read at its first start and whenever it is put back into the queue.

    It always gets the same run folder, so the run there goes on from its newest checkpoint.

    Args:
        number: the job's.
        config: its own, composed; what ``conf/`` holds when it starts may be another thing.
        task: its function, by module and name.
        context: Hydra's.
        environ: variables to set where there are none of these names.
    """

    def __init__(
        self,
        number: int,
        config: Any,
        task: tuple[str, str],
        context: HydraContext,
        environ: Mapping[str, str],
    ) -> None:
        self.number = number
        # As bytes, for Hydra changes them while the run is at work, and the next start is to find them as they were.
        self.shared = cloudpickle.dumps((config, (context, Singleton.get_state())))
        self.task = task
        self.environ = environ
        self.folder = os.getcwd()

    def __call__(self) -> JobReturn:
        paths = submitit.JobEnvironment().paths
        for file in (paths.result_pickle, paths.submitted_pickle):  # submitit trips over what a killed start left
            file.with_suffix(f"{file.suffix}.save_tmp").unlink(missing_ok=True)
        os.chdir(self.folder)
        use_substitutes()
        config, shared = cloudpickle.loads(self.shared)
        os.environ.update({**_threads(config), **self.environ, **os.environ})
        job_id = submitit.JobEnvironment().job_id
        done = run_composed(config, self.number, job_id, task_named(*self.task, translated), shared)
        if done.status == JobStatus.FAILED:
            with temporary_save_path(paths.result_pickle) as file:
                cloudpickle_dump(("success", done), file)
            sys.exit(1)  # so that Slurm knows, too
        return done

    def checkpoint(self) -> DelayedSubmission:
        """Returns what is to be started when Slurm has ended this; called by submitit's signal handler."""
        return DelayedSubmission(self)


def _threads(config: Any) -> dict[str, str]:
    """Returns the variable that gives each process of a run its share of the job's cores."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    processes = processes_of({"trainer": OmegaConf.select(config, "trainer") or {}})
    return {"OMP_NUM_THREADS": str(max(1, int(cores) // processes))} if cores.isdecimal() else {}


def translated(error: Exception) -> Exception:
    """Returns what a job raises: submitit's signal handler raises an error wherever the run was at its last limit."""
    if isinstance(error, UncompletedJobError):
        return RunError(
            "it came to its time limit once more than hydra.launcher.max_num_timeout allows; "
            "the same command goes on from its last checkpoint"
        )
    return portable(error)
