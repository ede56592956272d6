"""The checkpoints of a run: the last epoch's and the one before it, and one for every cycle of stages."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import UNFINISHED
from attnmosaic.training.base import RunModule


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, which every epoch replaces, and as ``before_last.ckpt`` the one before.

    Attributes:
        written_last: the trainer calls this callback after all others.

    Raises:
        UserError: another callback would write files of these names into the same folder.
    """

    written_last = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for other in trainer.checkpoint_callbacks:
            if other is self or not isinstance(other, ModelCheckpoint):
                continue
            if os.path.realpath(other.dirpath or "") != os.path.realpath(self.dirpath or ""):
                continue
            names = {other.filename, other.CHECKPOINT_NAME_LAST if other.save_last else None}
            if taken := names & {self.filename, f"before_{self.filename}"}:
                raise UserError(
                    f"callbacks: a ModelCheckpoint would write '{taken.pop()}.ckpt' into '{self.dirpath}', where the "
                    "run keeps its own; type save_last=false, another filename or another dirpath for it"
                )

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # One that was there before counts if this run resumes from it: another may be the torn one.
        kept = filepath == self._last_checkpoint_saved or _same(filepath, trainer.ckpt_path)
        if kept and trainer.is_global_zero:
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
