"""Logs how long a run will take."""

import logging
import time

import pytorch_lightning as pl

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.core.text import format_duration
from attnmosaic.runs.eta import EpochTimes, time_left

log = logging.getLogger(__name__)

SHORT = 60
"""Seconds under which no estimate is logged."""


class Pace(pl.Callback):
    """Logs the time left after the second epoch of each stage: the first also does what is done once a stage."""

    def __init__(self) -> None:
        self.times = EpochTimes()
        self._begun: set[Stage] = set()
        self._before: float

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before, self._before = self._before, time.monotonic()
        schedule: Schedule = pl_module.schedule  # type: ignore[assignment]
        epoch = trainer.current_epoch
        stage = schedule.stage(epoch)
        if stage not in self._begun and schedule.k > 1:
            self._begun.add(stage)
        elif not self.times.epochs[stage]:
            self.times.add(schedule, epoch, epoch + 1, self._before - before)
            self._log(*time_left(schedule, epoch + 1, self.times))

    def _log(self, seconds: float, unknown: set[Stage]) -> None:
        if seconds >= SHORT:
            stages = " and ".join("+".join(stage.learners) for stage in sorted(unknown))
            missing = f"; not counted: epochs in which {stages} learns, as none has ended yet" if unknown else ""
            log.info("%s left for this run%s", format_duration(seconds), missing)
