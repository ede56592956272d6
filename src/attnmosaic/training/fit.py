"""What each process of a run does: from a resolved config to trained and measured networks."""

import traceback
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from attnmosaic.config.schema import PRECISIONS
from attnmosaic.core.errors import UserError, gpu_memory_message
from attnmosaic.core.processes import RankInfo
from attnmosaic.training import distributed
from attnmosaic.training.base import RunModule
from attnmosaic.training.checkpointing import AtomicCheckpointIO
from attnmosaic.training.factory import build_module
from attnmosaic.training.instantiation import build_object, first_line
from attnmosaic.training.resume import check_resume
from attnmosaic.training.trainer import build_trainer, interruptible

_OF_CALLBACKS = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What a callback raises that does not suit a run; errors of disks and of this program are reported on their own."""


def fit(
    config: dict[str, Any], checkpoint: dict[str, Any] | None = None, info: RankInfo | None = None
) -> tuple[pl.Trainer, RunModule]:
    """Trains a run's networks and measures them with their final weights.

    Args:
        config: resolved.
        checkpoint: that of ``ckpt_path``, as it was read, if the run resumes; see `find_checkpoint`. It is emptied.
        info: which of the run's processes this is, connected to the others; None if it is the only one.

    Returns:
        The trainer and the module, whose ``epoch_metrics`` are those of the last, full evaluation.

    Raises:
        UserError: the config, the data or the checkpoint will not do.
        RunError: the loss became infinite or not a number.
    """
    trainer = build_trainer(config, PRECISIONS[config["precision"]], info)
    data = build_object("data", config["data"])
    data.prepare_data()
    data.setup()
    module = build_module(config, data)
    if checkpoint is not None:
        check_resume(config, checkpoint, module)
        if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            trainer.strategy.checkpoint_io.read = config["ckpt_path"], checkpoint
    with interruptible():
        try:
            trainer.fit(module, datamodule=data, ckpt_path=config["ckpt_path"], weights_only=True)
        except MisconfigurationException as error:  # of a callback or logger, most of them before the first step
            raise UserError(f"trainer: {first_line(error)}; leave out what asks for it") from error
        except _OF_CALLBACKS as error:
            # Of several processes the one that is lost is not to blame; nor is a callback for a device that is full.
            callback = None if distributed.count() > 1 or gpu_memory_message(error) else _raised_by(error)
            if callback is None:
                raise
            raise UserError(
                f"callbacks: {callback} does not work with this run ({first_line(error)}); leave it out"
            ) from error
        trainer.validate(module, datamodule=data, verbose=False)
    return trainer, module


def _raised_by(error: Exception) -> str | None:
    """Returns which of Lightning's own callbacks has raised an error, or None: a user's own keeps its stack trace."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        callback = frame.f_locals.get("self")
        if isinstance(callback, pl.Callback):
            kind = type(callback)
            return kind.__qualname__ if kind.__module__.startswith("pytorch_lightning.") else None
    return None
