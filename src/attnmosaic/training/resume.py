"""Checks made before a run goes on from a checkpoint."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.callbacks.checkpoints import ENDED
from attnmosaic.config import config_hash, decisive, networks_of, other_networks
from attnmosaic.errors import UserError
from attnmosaic.runs import CHECKPOINTS, flat
from attnmosaic.training.base import RunModule
from attnmosaic.training.checkpoint import check_weights_fit
from attnmosaic.training.saved import read_saved

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
    "progress",
    "began_otherwise",
)

_KEPT = ("lr", "optimizer", "scheduler")
"""For each network, settings that live in its optimizer's or scheduler's state: restoring it would silently undo a
change."""


def newest_checkpoint(config: DictConfig) -> str | None:
    """Returns the newest checkpoint in the run's own folder that leaves an epoch to train, or None.

    (A run stopped after its last epoch and before its result goes on from the one before, and so ends as any other.)
    Checkpoints of other settings, and damaged ones, are passed over; the latter with a warning that names what the run
    goes on from instead.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    begun, damaged = {}, []
    for path in sorted(Path(config.run_dir, CHECKPOINTS).glob("*.ckpt")):
        try:
            checkpoint = read_saved(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        done = checkpoint["epoch"] + 1
        same = config_hash(checkpoint["hyper_parameters"]["config"]) == config_hash(settings)
        whole = "optimizer_states" in checkpoint  # not the weights alone
        if same and whole and done < config.schedule.epochs and not _ended(checkpoint):
            begun[done] = path
    newest = str(begun[max(begun)]) if begun else None
    for slip in damaged:
        log.warning("%s; %s", slip, f"going on from '{newest}'" if newest else "beginning anew")
    return newest


def _ended(checkpoint: dict[str, Any]) -> bool:
    """Whether a callback had ended the run when this was written."""
    if ENDED in checkpoint:
        return bool(checkpoint[ENDED])
    # Older ones tell it by their callbacks, except of the very first epoch.
    states = checkpoint["callbacks"].items()
    return any(name.startswith("EarlyStopping") and state.get("stopped_epoch") for name, state in states)


def began_otherwise(config: DictConfig) -> dict[str, Any]:
    """Returns the settings of ``config.ckpt_path``'s run that are not this one's and decide numbers.

    Kept in the config: such a run is not what its other settings say. How long a run goes on does not count.
    """
    before = flat(decisive(read_saved(config.ckpt_path)["hyper_parameters"]["config"]))
    settings: Any = OmegaConf.to_container(config, resolve=True)
    now = flat(decisive(settings))
    keys = (before.keys() | now.keys()) - {"schedule.epochs", "trainer.max_epochs"}
    return {key: before.get(key) for key in sorted(keys) if before.get(key) != now.get(key)}


def check_resume(config: DictConfig, module: RunModule) -> None:
    """Checks that a run can go on from ``config.ckpt_path``, and says what differs from the run it is of.

    Raises:
        UserError: the file is no checkpoint, is of another architecture or scale, its run has no epoch left,
            or its optimizers were set up otherwise.
    """
    checkpoint = read_saved(config.ckpt_path)
    check_weights_fit(checkpoint, module, config.ckpt_path)
    done = checkpoint["epoch"] + 1
    if done >= config.schedule.epochs:
        raise UserError(
            f"ckpt_path: '{config.ckpt_path}' has all {done} epochs done and schedule.epochs is "
            f"{config.schedule.epochs}; type schedule.epochs={2 * done} to train on, or use attnmosaic.evaluate"
        )
    before = flat(checkpoint["hyper_parameters"]["config"])
    now = flat(OmegaConf.to_container(config, resolve=True))
    if (scale := before.get("scale", "full")) != config.scale:
        raise UserError(
            f"scale: got {config.scale}, but '{config.ckpt_path}' is of a {scale} run; type scale={scale}, or start a "
            "new run"
        )
    untrained = _of(other_networks(config), (*_KEPT, "model"))
    kept = _of(networks_of(config), _KEPT)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key) or key.startswith(_FREE) or f"{key}.".startswith(untrained):
            continue
        if f"{key}.".startswith(kept):
            raise UserError(
                f"{key}: got {now.get(key)}, but the optimizers in '{config.ckpt_path}' go on as they were saved, with "
                f"{before.get(key)}; type {key}={before.get(key)}, or start a new run"
            )
        log.warning("resuming with another %s: %s before, %s now", key, before.get(key), now.get(key))
    log.info("resuming after epoch %d of %d", done, config.schedule.epochs)


def _of(networks: Iterable[str], sections: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{section}.{network}." for section in sections for network in networks)
