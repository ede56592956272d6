"""The launcher ``hydra/launcher=submitit_slurm``. Light, because Hydra imports all plugins at every start."""

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
    """Submits the jobs of a sweep as a Slurm array job and waits for them.

    Args:
        **options: options of the Slurm job, see ``conf/hydra/launcher/submitit_slurm.yaml``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from attnmosaic.core.errors import UserError
        from attnmosaic.core.optional_packages import missing_packages

        launcher = "hydra/launcher=submitit_slurm"
        if find_spec("submitit") is None:
            raise missing_packages(launcher, "slurm")
        if missing := [program for program in ("sbatch", "squeue", "srun") if which(program) is None]:
            raise UserError(
                f"{launcher}: the program {missing[0]} is missing on this machine; run the command on a machine that "
                "submits jobs to Slurm, or type hydra/launcher=joblib to run the jobs on this machine"
            )
        from attnmosaic.sweeps.slurm import SlurmJobs, submit_options

        self.jobs = SlurmJobs(task_of(task_function), submit_options(self.options, config), hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.run([*map(list, job_overrides)], initial_job_idx)
