"""Writes the checkpoints of a run: its newest two, and those of the ends of cycles of stages."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import UNFINISHED
from attnmosaic.runs.run import LAST
from attnmosaic.training.base import RunModule


class _TimedCheckpoint(Checkpoint):
    """Base class of callbacks that write a checkpoint at the end of an epoch if enough time has passed.

    An epoch of a small run takes less time than its checkpoint, so that checkpoints of all epochs would dominate it.

    Args:
        dirpath: the folder of the checkpoints.
        min_seconds: least time between two checkpoints, and from the start to the first one; 0 for a checkpoint at each
            opportunity.

    Raises:
        UserError: ``min_seconds`` is not a number of at least 0.
    """

    name: str
    """Name of the callback in the config."""

    def __init__(self, dirpath: str | Path, min_seconds: float = 10) -> None:
        if isinstance(min_seconds, bool) or not isinstance(min_seconds, (int, float)) or not min_seconds >= 0:
            key = f"callbacks.{self.name}.min_seconds"
            raise UserError(f"{key}: got {min_seconds}, needs a number of at least 0; type {key}=10")
        self.folder = Path(dirpath)
        self.min_seconds = min_seconds
        self._newest: float

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._newest = time.monotonic()

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        trainer.save_checkpoint(path)
        self._newest = time.monotonic()

    def _is_due(self, trainer: pl.Trainer, at_once: bool = False) -> bool:
        """Returns whether to write a checkpoint now: after ``min_seconds``, or in any case if ``at_once``."""
        due = at_once or time.monotonic() - self._newest >= self.min_seconds
        # The processes of a run write a checkpoint together, and their clocks differ.
        return trainer.strategy.reduce_boolean_decision(due, all=False)


class LastCheckpoint(_TimedCheckpoint):
    """Writes ``last.ckpt`` and keeps the previous ``last.ckpt`` as ``before_last.ckpt``.

    It is written at the end of an epoch, at most every ``min_seconds`` seconds, and after the last epoch. A run that is
    killed therefore loses at most ``min_seconds`` seconds of training and the epoch that was running.

    Args:
        dirpath: the folder of the checkpoints.
        min_seconds: least time between two checkpoints, and from the start to the first one; 0 for a checkpoint after
            every epoch.

    Attributes:
        written_last: the trainer calls this callback after all others.

    Raises:
        UserError: ``min_seconds`` is not a number of at least 0, or another callback would write files of the same
            names into the same folder.
    """

    name = "last"
    written_last = True

    def __init__(self, dirpath: str | Path, min_seconds: float = 10) -> None:
        super().__init__(dirpath, min_seconds)
        self.path = self.folder / LAST
        self.previous = self.path.with_name(f"before_{LAST}")
        self._complete = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for other in trainer.checkpoint_callbacks:
            if not isinstance(other, ModelCheckpoint) or not _same(other.dirpath or "", self.path.parent):
                continue
            names = {other.filename, other.CHECKPOINT_NAME_LAST if other.save_last else None}
            if taken := names & {self.path.stem, self.previous.stem}:
                raise UserError(
                    f"callbacks: a ModelCheckpoint would overwrite the run's own '{taken.pop()}.ckpt' in "
                    f"'{self.path.parent}'; set its save_last=false, another filename or another dirpath"
                )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if not self._is_due(trainer, at_once=trainer.should_stop or pl_module.epochs_done == trainer.max_epochs):
            return
        # A `last.ckpt` from before this start is kept only if the run resumes from it: any other may be damaged.
        valid = self._complete or (self.path.exists() and _same(self.path, trainer.ckpt_path or ""))
        if valid and trainer.is_global_zero:
            keep_as(self.previous, self.path)
        self._save(trainer, self.path)
        self._complete = True


def _same(first: Any, second: Any) -> bool:
    """Returns whether two paths are the same after following links."""
    return os.path.realpath(first) == os.path.realpath(second)


def keep_as(kept: Path, path: Path) -> None:
    """Keeps the present content of `path` under the name `kept`, without copying it."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}{UNFINISHED}")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: until the next save, `path` does not exist
        os.replace(path, kept)
        return
    os.replace(link, kept)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()  # renaming does nothing if `kept` is the same file already


class CycleCheckpoint(_TimedCheckpoint):
    """Writes a checkpoint at the end of a cycle, named by the epochs done: ``epoch-0010.ckpt`` and so on.

    Args:
        dirpath: the folder of the checkpoints.
        min_seconds: least time between two of these checkpoints, and from the start to the first one; 0 for a
            checkpoint after every cycle.

    Raises:
        UserError: ``min_seconds`` is not a number of at least 0.
    """

    name = "cycle"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if pl_module.epochs_done % pl_module.schedule.cycle == 0 and self._is_due(trainer):
            self._save(trainer, self.folder / f"epoch-{pl_module.epochs_done:04}.ckpt")
