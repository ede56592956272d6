"""The checkpoints of a run: the last epoch's and the one before it, and one for every cycle of stages."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from attnmosaic.files import UNFINISHED
from attnmosaic.training.base import RunModule

ENDED = "ended"
"""In a checkpoint: whether a callback has ended the run with this epoch."""


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`; its checkpoints tell whether their run ends with them."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        checkpoint[ENDED] = trainer.should_stop and enough and trainer.global_step >= (trainer.min_steps or 0)


class LastCheckpoint(RunCheckpoint):
    """Keeps ``last.ckpt``, which every epoch replaces, and as ``before_last.ckpt`` the one before.

    What goes to TensorBoard is in its file before the checkpoint is: a run that goes on from there lacks none of it.
    """

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
            # One that was there before counts if this run goes on from it: another may be the torn one.
            if filepath == self._last_checkpoint_saved or _same(filepath, trainer.ckpt_path):
                keep_as(Path(filepath).with_name(f"before_{Path(filepath).name}"), Path(filepath))
        super()._save_checkpoint(trainer, filepath)


def _same(one: str, other: Any) -> bool:
    return other is not None and os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def keep_as(kept: Path, path: Path) -> None:
    """Gives a file, without writing it again, a second name that it keeps when it is replaced."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}{UNFINISHED}")
    try:
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without links: for an instant there is no file of the first name
            os.replace(path, kept)
            return
        os.replace(link, kept)
    finally:
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)  # renaming one link of a file to another does nothing


class CycleCheckpoint(RunCheckpoint):
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
