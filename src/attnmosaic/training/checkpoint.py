"""Reading a checkpoint, with one line for what may be wrong with it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnmosaic.checks import check_ckpt_path
from attnmosaic.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing, or no checkpoint of this program.
    """
    check_ckpt_path(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"]["config"]["model"]
        checkpoint["state_dict"]
    except Exception as error:
        raise UserError(f"ckpt_path: '{path}' is no readable attnmosaic checkpoint ({type(error).__name__})") from error
    return checkpoint


def check_weights_fit(checkpoint: dict[str, Any], module: nn.Module, path: str | Path) -> None:
    """Checks that a checkpoint is of the module's architecture.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"ckpt_path: '{path}' is of another architecture: {name} is {saved.get(name, 'absent')} in it and "
                f"{wanted.get(name, 'absent')} in this config; give the model, patches and classes it was trained with"
            )
