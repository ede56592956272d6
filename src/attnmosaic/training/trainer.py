"""The Lightning trainer of a run, with its loggers and callbacks."""

from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ProgressBar

from attnmosaic.errors import UserError


def build_trainer(config: DictConfig, precision: str) -> pl.Trainer:
    """Makes the trainer.

    Args:
        config: with ``trainer``, ``logger`` and ``callbacks``; the last two map names to ``_target_`` nodes,
            and a name set to null is left out.
        precision: Lightning's name of the precision.

    Raises:
        UserError: the trainer takes no such argument, or a device is asked for that is not there.
    """
    wanted = str(config.trainer.get("accelerator", "auto"))
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator: got {wanted}, but PyTorch finds no GPU on this machine; "
            "type trainer.accelerator=cpu (or auto)"
        )
    callbacks = _instances(config.get("callbacks"))
    given = {
        "precision": precision,
        "logger": _instances(config.get("logger")) or False,
        "callbacks": callbacks,
        # Otherwise Lightning puts a bar of its own where ours was left out.
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
    }
    try:
        return instantiate(config.trainer, **given)
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, (TypeError, ValueError, MisconfigurationException)):
            raise UserError(f"trainer: Lightning answers: {str(cause).strip().splitlines()[0]}") from error
        raise


def _instances(nodes: DictConfig | None) -> list[Any]:
    return [instantiate(node) for node in (nodes or {}).values() if node is not None]
