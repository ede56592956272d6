"""The launcher ``hydra/launcher=submitit_slurm``; light, as Hydra imports every plugin at every start."""

from collections.abc import Sequence
from importlib.util import find_spec
from shutil import which
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.attnmosaic_launcher import task_of


class AttnmosaicSlurmLauncher(Launcher):
    """Runs the jobs of a sweep as an array job of Slurm, and waits for them.

    Args:
        **asked: what is asked of Slurm, see ``conf/hydra/launcher/submitit_slurm.yaml``.
    """

    def __init__(self, **asked: Any) -> None:
        self.asked = asked

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from attnmosaic.core.errors import UserError
        from attnmosaic.core.optional_packages import missing_packages

        launcher = "hydra/launcher=submitit_slurm"
        if find_spec("submitit") is None:
            raise missing_packages(launcher, "slurm")
        if missing := [program for program in ("sbatch", "squeue", "srun") if which(program) is None]:
            raise UserError(
                f"{launcher}: there is no {missing[0]} here; type it on a machine that submits to Slurm, "
                "or hydra/launcher=joblib for jobs on this one"
            )
        from attnmosaic.sweeps.slurm import SlurmJobs, submit_options

        self.jobs = SlurmJobs(task_of(task_function), submit_options(self.asked, config), hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.run([*map(list, job_overrides)], initial_job_idx)
