"""Shows the progress of a run: a bar on a terminal, and a line per evaluation in the log."""

import logging
import multiprocessing
import os
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from attnmosaic.cli.progress import SWEEP_PROGRESS, progress_mode
from attnmosaic.core.text import format_duration, format_fraction, without_accuracy
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.runs.eta import EpochTimes, time_left
from attnmosaic.training.base import RunModule

log = logging.getLogger(__name__)


class RunProgress(ProgressBar):
    """Shows one bar over all epochs: training networks, epoch, time left and the headline metrics during training.

    Without a terminal, or in a sweep, which has a display of its own, no bar is shown. Each evaluation is logged in any
    case.

    Args:
        mode: ``auto``, ``live``, ``lines`` or ``quiet``; see `attnmosaic.cli.progress`.
    """

    def __init__(self, mode: str = "auto") -> None:
        super().__init__()
        self.mode = mode
        self._progress: Progress | None = None
        self._times = EpochTimes()
        self._epoch_start: float

    def disable(self) -> None:
        self._stop()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        single_run = multiprocessing.parent_process() is None and SWEEP_PROGRESS not in os.environ
        if not (progress_mode(self.mode) == "live" and single_run and trainer.is_global_zero):
            return
        self._progress = Progress(
            TextColumn("{task.fields[stage]:>10} | {task.fields[epoch]:>4}/{task.fields[epochs]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            TextColumn("{task.fields[measured]}"),
            console=Console(stderr=True, force_terminal=True),
        )
        blocks, epochs, done = int(trainer.num_training_batches), trainer.max_epochs or 0, trainer.current_epoch
        self._progress.add_task(
            "training", total=blocks * epochs, completed=blocks * done,
            stage="", epoch=done, epochs=epochs, left="?", measured="",
        )  # fmt: skip
        self._progress.start()

    def _update(self, **fields: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], **fields)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        self._epoch_start = time.monotonic()
        self._update(stage="+".join(pl_module.training_networks), epoch=pl_module.epochs_done)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update(advance=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if self._progress is None:
            return
        epoch, metrics = trainer.current_epoch, pl_module.epoch_metrics
        self._times.add(pl_module.schedule, epoch, epoch + 1, time.monotonic() - self._epoch_start)
        seconds, unknown = time_left(pl_module.schedule, epoch + 1, self._times)
        measured = (
            f"{without_accuracy(name)} {format_fraction(metrics[f'running/{name}'])}" for name in pl_module.headline
        )
        self._update(left="?" if unknown else format_duration(seconds), measured=" ".join(measured))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if trainer.state.fn == TrainerFn.FITTING:
            metrics = pl_module.epoch_metrics
            first, second = pl_module.headline
            log.info(
                "epoch %d/%d (%s): %s train %.3f, test %.3f, held_out %.3f; %s train %.3f",
                pl_module.epochs_done,
                trainer.max_epochs,
                " + ".join(pl_module.training_networks),
                first,
                *(metrics[f"{split}/{first}"] for split in SPLITS),
                second,
                metrics[f"train/{second}"],
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
