"""The progress of a run, on a terminal as a bar and in a log as a line an evaluation."""

import logging
import multiprocessing
import os
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attnmosaic.cli.progress import OF_SWEEP, shown
from attnmosaic.core.text import format_fraction, without_accuracy
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class RunProgress(ProgressBar):
    """One bar over all epochs, with what learns, the epoch, and the running headline metrics (accuracy and focus).

    Where there is no terminal, or a sweep has it, there is no bar. One line an evaluation goes to the log in any case.

    Args:
        mode: ``auto``, ``live``, ``lines`` or ``quiet``; see `attnmosaic.cli.progress`.
    """

    def __init__(self, mode: str = "auto") -> None:
        super().__init__()
        self.mode = mode
        self._progress: Progress | None = None

    def disable(self) -> None:
        self._stop()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        alone = multiprocessing.parent_process() is None and OF_SWEEP not in os.environ
        if not (shown(self.mode) == "live" and alone and trainer.is_global_zero):
            return
        self._progress = Progress(
            TextColumn("{task.fields[stage]:>10} | {task.fields[epoch]:>4}/{task.fields[epochs]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[measured]}"),
            console=Console(stderr=True, force_terminal=True),
        )
        blocks, epochs = int(trainer.num_training_batches), trainer.max_epochs or 0
        self._progress.add_task(
            "training",
            total=blocks * epochs,
            completed=blocks * trainer.current_epoch,
            stage="",
            epoch=trainer.current_epoch,
            epochs=epochs,
            measured="",
        )
        self._progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if self._progress is not None:
            learners = "+".join(pl_module.learners)
            self._progress.update(self._progress.task_ids[0], stage=learners, epoch=pl_module.epochs_done)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if self._progress is not None:
            now = pl_module.epoch_metrics
            measured = (
                f"{without_accuracy(name)} {format_fraction(now[f'running/{name}'])}" for name in pl_module.headline
            )
            self._progress.update(self._progress.task_ids[0], measured=" ".join(measured))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            now = pl_module.epoch_metrics
            first, second = pl_module.headline
            log.info(
                "epoch %d/%d (%s): %s train %.3f, test %.3f, held_out %.3f; %s train %.3f",
                pl_module.epochs_done,
                trainer.max_epochs,
                " + ".join(pl_module.learners),
                first,
                *(now[f"{split}/{first}"] for split in SPLITS),
                second,
                now[f"train/{second}"],
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
