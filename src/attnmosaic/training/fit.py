"""Trains and measures the networks of a resolved config; every process of a run does this."""

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

_CALLBACK_ERRORS = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a callback raises if it does not work with a run. Disk errors and this program's errors are not in it."""


def fit(
    config: dict[str, Any], checkpoint: dict[str, Any] | None = None, info: RankInfo | None = None
) -> tuple[pl.Trainer, RunModule]:
    """Trains a run's networks and measures them with their final weights.

    Args:
        config: the resolved config.
        checkpoint: contents of the checkpoint at ``ckpt_path`` if the run resumes; see `find_checkpoint`. Lightning
            takes the contents over, and this dict is emptied.
        info: rank of this process, which is connected to the others; None for a run of one process.

    Returns:
        The trainer, and the module with the metrics of the evaluation after training in ``epoch_metrics``.

    Raises:
        UserError: the config, the data or the checkpoint is not valid for this run.
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
            trainer.strategy.checkpoint_io.preloaded = config["ckpt_path"], checkpoint
    with interruptible():
        try:
            trainer.fit(module, datamodule=data, ckpt_path=config["ckpt_path"], weights_only=True)
        except MisconfigurationException as error:  # a callback or logger raises it, mostly before the first step
            raise UserError(f"trainer: {first_line(error)}; remove the setting that causes this") from error
        except _CALLBACK_ERRORS as error:
            # With several processes the error can be a lost connection, and full GPU memory is not a callback's fault.
            callback = None if distributed.count() > 1 or gpu_memory_message(error) else _raised_by(error)
            if callback is None:
                raise
            raise UserError(
                f"callbacks: {callback} does not work with this run ({first_line(error)}); "
                "type callbacks.NAME=null to remove it"
            ) from error
        trainer.validate(module, datamodule=data, verbose=False)
    return trainer, module


def _raised_by(error: Exception) -> str | None:
    """Returns the name of the Lightning callback that raised an error; None for others, whose stack trace is kept."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        callback = frame.f_locals.get("self")
        if isinstance(callback, pl.Callback):
            cls = type(callback)
            return cls.__qualname__ if cls.__module__.startswith("pytorch_lightning.") else None
    return None
