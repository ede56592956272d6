"""How long a run, and the sweep it is a job of, will take."""

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.core.text import format_duration
from attnmosaic.runs.discovery import read_plan, sweep_of
from attnmosaic.runs.run import AT_ONCE, Run

log = logging.getLogger(__name__)

SHORT = 60
"""Seconds under which nobody needs to be told."""


class Pace(pl.Callback):
    """Tells how long the whole will take, from the second epoch of each kind of stage.

    (The first one also pays for what is done once a stage.) In a sweep the other jobs are taken to be as fast as this
    one, and those that have finished are left out.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.seconds: dict[Stage, float] = {}
        self._seen: Counter[Stage] = Counter()
        self._before: float

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before, self._before = self._before, time.monotonic()
        schedule: Schedule = pl_module.schedule  # type: ignore[assignment]
        stage = schedule.stage(trainer.current_epoch)
        self._seen[stage] += 1
        if self._seen[stage] != 2 and not (self._seen[stage] == 1 and schedule.k == 1):
            return
        if stage in self.seconds:
            return
        self.seconds[stage] = self._before - before
        if told := self._told(schedule, trainer.current_epoch + 1):
            log.info("%s", told)

    def _told(self, schedule: Schedule, done: int) -> str:
        seconds, unknown = self._estimate([(schedule, done)])
        text = f"{format_duration(seconds)} left for this run"
        others = self._others()
        if others:
            more, also = self._estimate(others)
            unknown = sorted({*unknown, *also})
            at_once = min(int(os.environ.get(AT_ONCE, "1")), len(others) + 1)
            seconds = max(seconds, (seconds + more) / at_once)
            text += f", about {format_duration(seconds)} for the sweep ({len(others) + 1} jobs to finish)"
        if unknown:
            kinds = " and ".join("+".join(stage.learners) for stage in unknown)
            text += f"; not counted: epochs in which {kinds} learns, none was seen yet"
        return text if seconds >= SHORT else ""

    def _estimate(self, jobs: list[tuple[Schedule, int]]) -> tuple[float, list[Stage]]:
        """Returns the seconds that jobs still take at this run's pace, and the stages whose pace is not known."""
        left = Counter(s.stage(epoch) for s, done in jobs for epoch in range(done, s.epochs))
        unknown = sorted(stage for stage in left if stage not in self.seconds)
        return sum(n * self.seconds.get(stage, 0.0) for stage, n in left.items()), unknown

    def _others(self) -> list[tuple[Schedule, int]]:
        sweep = sweep_of(self.folder)
        if sweep is None:
            return []
        others: list[tuple[Schedule, int]] = []
        for name, job in read_plan(sweep)["jobs"].items():
            run = Run(sweep / name)
            if run.folder != self.folder and run.result is None:
                plan: dict[str, Any] = job["schedule"]
                others.append((Schedule(**plan), run.epochs_done))
        return others
