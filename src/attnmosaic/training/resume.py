"""Checks made before a run goes on from a checkpoint."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.config import config_hash
from attnmosaic.errors import UserError
from attnmosaic.training.build import check_weights_fit, read_checkpoint
from attnmosaic.runs import flat
from attnmosaic.training.module import StagewiseModule

log = logging.getLogger(__name__)

_FREE = (
    "run_dir",
    "paths.",
    "ckpt_path",
    "logger.",
    "callbacks.",
    "trainer.default_root_dir",
    "name",
    "optimized_metric",
)

_KEPT = ("lr.", "optimizer.what.", "optimizer.where.", "scheduler.")
"""Settings that live in an optimizer's or scheduler's state: restoring it would silently undo a change."""


def newest_checkpoint(config: DictConfig) -> str | None:
    """Returns the newest checkpoint in the run's own folder that leaves an epoch to train, or None.

    (A run stopped after its last epoch and before its result goes on from the one before, and so ends as any other.)
    Checkpoints of other settings, and unreadable ones, are passed over; the latter with a warning.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    begun = {}
    for path in Path(config.run_dir, "checkpoints").glob("*.ckpt"):
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            log.warning("%s", error)
            continue
        done = checkpoint["epoch"] + 1
        same = config_hash(checkpoint["hyper_parameters"]["config"]) == config_hash(settings)
        if same and done < config.schedule.epochs:
            begun[done] = path
    return str(begun[max(begun)]) if begun else None


def check_resume(config: DictConfig, module: StagewiseModule) -> None:
    """Checks that a run can go on from ``config.ckpt_path``, and says what differs from the run it is of.

    Raises:
        UserError: the file is no checkpoint, is of another architecture, its run has no epoch left, or its
            optimizers were set up otherwise.
    """
    checkpoint = read_checkpoint(config.ckpt_path)
    check_weights_fit(checkpoint, module, config.ckpt_path)
    done = checkpoint["epoch"] + 1
    if done >= config.schedule.epochs:
        raise UserError(
            f"ckpt_path: '{config.ckpt_path}' has all {done} epochs done and schedule.epochs is "
            f"{config.schedule.epochs}; type schedule.epochs={2 * done} to train on, or use attnmosaic.evaluate"
        )
    before = flat(checkpoint["hyper_parameters"]["config"])
    now = flat(OmegaConf.to_container(config, resolve=True))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key) or key.startswith(_FREE):
            continue
        if key.startswith(_KEPT):
            raise UserError(
                f"{key}: got {now.get(key)}, but the optimizers in '{config.ckpt_path}' go on as they were saved, with "
                f"{before.get(key)}; type {key}={before.get(key)}, or start a new run"
            )
        log.warning("resuming with another %s: %s before, %s now", key, before.get(key), now.get(key))
    log.info("resuming after epoch %d of %d", done, config.schedule.epochs)


