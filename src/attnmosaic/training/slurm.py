"""What a run does where Slurm has started it, and what it keeps Lightning from doing."""

import logging
import signal
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from attnmosaic.core.errors import UserError

log = logging.getLogger(__name__)


def slurm_environment(environ: Mapping[str, str], trainer: Mapping[str, Any]) -> ClusterEnvironment | None:
    """Returns what is to tell Lightning of the processes of a run under Slurm; None elsewhere, where it finds out.

    Left alone, Lightning takes every process with ``SLURM_NTASKS`` for one of several, and answers signals by saving a
    checkpoint of its own and requeueing the job. A run here goes on from its newest checkpoint however it ended, and
    starts its other processes itself, if it has any.

    Args:
        environ: the environment variables.
        trainer: the config's section of that name; with ``plugins`` it is left as it is.

    Raises:
        UserError: Slurm has started several tasks, and each would be the same run.
    """
    if "SLURM_JOB_ID" not in environ or trainer.get("plugins"):
        return None
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise UserError(
            f"Slurm has started {tasks} tasks, each the same run, which starts its other processes itself; type srun "
            "--ntasks=1"
        )
    return LightningEnvironment()


class DeafToTerm(pl.Callback):
    """Keeps a run at work when Slurm sends SIGTERM.

    Slurm does so when it preempts a job, a grace time before it kills it and puts it back into the queue; a job that
    ends within that time has failed for Slurm, and stays ended. It does so also before it kills one for good, which
    takes no answer. Lightning would end the run.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._before = signal.signal(signal.SIGTERM, _go_on)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _go_on(*_: object) -> None:
    log.warning("SIGTERM from Slurm: going on until it ends this job")
