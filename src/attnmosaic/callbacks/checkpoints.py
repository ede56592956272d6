"""Writes the checkpoints of a run: of the last two epochs, and of the end of every cycle of stages."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import UNFINISHED
from attnmosaic.runs.run import LAST
from attnmosaic.training.base import RunModule


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and keeps the previous ``last.ckpt`` as ``before_last.ckpt``.

    Args:
        dirpath: the folder of the checkpoints.

    Attributes:
        written_last: the trainer calls this callback after all others.

    Raises:
        UserError: another callback would write files of the same names into the same folder.
    """

    written_last = True

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath, LAST)
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
        # A `last.ckpt` from before this start is kept only if the run resumes from it: any other may be damaged.
        valid = self._complete or (self.path.exists() and _same(self.path, trainer.ckpt_path or ""))
        if valid and trainer.is_global_zero:
            keep_as(self.previous, self.path)
        trainer.save_checkpoint(self.path)
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


class CycleCheckpoint(Checkpoint):
    """Writes a checkpoint after each cycle, named by the epochs done: ``epoch-0010.ckpt``, ``epoch-0020.ckpt``, ....

    Args:
        dirpath: the folder of the checkpoints.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.folder = Path(dirpath)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if pl_module.epochs_done % pl_module.schedule.cycle == 0:
            trainer.save_checkpoint(self.folder / f"epoch-{pl_module.epochs_done:04}.ckpt")
