"""Logs the time left of a run."""

import logging
import time

import pytorch_lightning as pl

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.core.text import format_duration
from attnmosaic.runs.eta import EpochTimes, time_left

log = logging.getLogger(__name__)

SHORT = 60
"""A shorter time left, in seconds, is not logged."""


class Pace(pl.Callback):
    """Logs the time left after the second epoch of each kind of stage, as the first epoch takes longer."""

    def __init__(self) -> None:
        self.times = EpochTimes()
        self._begun: set[Stage] = set()
        self._epoch_start: float

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch_start, self._epoch_start = self._epoch_start, time.monotonic()
        schedule: Schedule = pl_module.schedule  # type: ignore[assignment]
        epoch = trainer.current_epoch
        stage = schedule.stage(epoch)
        if stage not in self._begun and schedule.k > 1:
            self._begun.add(stage)
        elif not self.times.epochs[stage]:
            self.times.add(schedule, epoch, epoch + 1, self._epoch_start - epoch_start)
            self._log(*time_left(schedule, epoch + 1, self.times))

    def _log(self, seconds: float, unknown: set[Stage]) -> None:
        if seconds >= SHORT:
            stages = " and ".join("+".join(stage.training_networks) for stage in sorted(unknown))
            not_counted = f"; without the epochs that train {stages}, because none has ended yet" if unknown else ""
            log.info("%s left for this run%s", format_duration(seconds), not_counted)
