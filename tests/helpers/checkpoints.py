"""Checkpoints of small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers.settings import SMALL, SMALL_NUMBERS
from hydra import compose, initialize_config_dir

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.train import train


def trained(folder: Path, *overrides: str) -> Path:
    """Trains in a folder without a logger; returns the path of the last checkpoint."""
    register()
    small = SMALL_NUMBERS if any(override.startswith("experiment=mnist_") for override in overrides) else SMALL
    quiet = ("logger=none", "callbacks=default", "callbacks.pictures=null")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train(compose("train", [*small, *quiet, *overrides, f"run_dir={folder}"]))
    return folder / "checkpoints" / "last.ckpt"


def edited(path: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Writes a changed copy of a checkpoint; returns the path of the copy."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, to)
    return to
