"""A checkpoint for every cycle of stages."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from attnmosaic.training.base import RunModule


class CycleCheckpoint(ModelCheckpoint):
    """Keeps ``epoch-0010.ckpt``, ``epoch-0020.ckpt``, ...: one a cycle, named by the epochs done.

    Args:
        **checkpoint: see Lightning's `ModelCheckpoint`.
    """

    def __init__(self, **checkpoint: Any) -> None:
        # The module logs the epochs done as "step"; Lightning's own {epoch} counts from 0.
        super().__init__(
            filename="epoch-{step:04.0f}",
            auto_insert_metric_name=False,
            save_top_k=-1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            **checkpoint,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, RunModule)
        self._every_n_epochs = pl_module.schedule.cycle
        super().setup(trainer, pl_module, stage)
