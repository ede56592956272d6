"""Checks made before a run goes on from a checkpoint."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.identity import config_hash, decisive
from attnmosaic.config.paths import shortest
from attnmosaic.config.resolution import flat
from attnmosaic.config.schema import networks_of, other_networks
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import in_shell, to_type
from attnmosaic.runs.run import CHECKPOINTS, LAST
from attnmosaic.training.base import RunModule
from attnmosaic.training.checkpointing import COMPLETE, check_weights_fit, read_saved

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

_NAMED = 3
"""Skipped checkpoints that the log names, at most."""

_KEPT = ("lr", "optimizer", "scheduler")
"""For each network, settings that live in its optimizer's or scheduler's state: restoring it would silently undo a
change."""


def newest_checkpoint(config: DictConfig) -> str | None:
    """Returns the newest checkpoint in the run's own folder that leaves an epoch to train, or None.

    (A run stopped after its last epoch and before its result resumes from the one before, and so ends as any other.)
    Checkpoints of other settings are skipped. So are those that no run resumes from exactly, which the log names, and
    damaged ones, each with a warning that names what the run resumes from instead.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    begun, damaged, partial = {}, [], []
    # Of several after the same epoch `LastCheckpoint`'s is taken: it is written after all others.
    for path in sorted(Path(config.run_dir, CHECKPOINTS).glob("*.ckpt"), key=lambda path: (path.name == LAST, path)):
        try:
            checkpoint = read_saved(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        if config_hash(checkpoint["hyper_parameters"]["config"]) != config_hash(settings):
            continue
        if obstacle := _obstacle(checkpoint):
            partial.append(f"{path.name} ({obstacle})")
        elif (done := checkpoint[COMPLETE])["epochs"] < config.schedule.epochs and not done["ended"]:
            begun[done["epochs"]] = path
    newest = str(begun[max(begun)]) if begun else None
    instead = f"resuming from '{newest}'" if newest else "beginning anew"
    for slip in damaged:
        log.warning("%s; %s", slip, instead)
    if partial:
        more = f" and {len(partial) - _NAMED} more" if len(partial) > _NAMED else ""
        log.info(
            "skipped checkpoints that cannot be resumed exactly: %s%s; %s", ", ".join(partial[:_NAMED]), more, instead
        )
    return newest


def _obstacle(checkpoint: dict[str, Any]) -> str | None:
    """Returns why a run that resumed from a checkpoint would not end as an uninterrupted one; None if it would."""
    if COMPLETE not in checkpoint:
        return "written before its epoch was complete"
    return None if "optimizer_states" in checkpoint else "the weights alone"


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
        UserError: the file is no checkpoint, is of another architecture or scale, was not written when an epoch was
            complete, its run has no epoch left, or its optimizers were set up otherwise.
    """
    checkpoint = read_saved(config.ckpt_path)
    check_weights_fit(checkpoint, module, config.ckpt_path)
    if obstacle := _obstacle(checkpoint):
        raise UserError(
            f"ckpt_path: '{shortest(config.ckpt_path)}' cannot be resumed exactly ({obstacle}); give one of all states "
            f"that is written when an epoch is complete (checkpoints/{LAST}, or a ModelCheckpoint with "
            "save_on_train_epoch_end=true), or measure this one with attnmosaic.evaluate"
        )
    done = checkpoint[COMPLETE]["epochs"]
    if done >= config.schedule.epochs:
        raise UserError(
            f"ckpt_path: '{shortest(config.ckpt_path)}' has all {done} epochs done and schedule.epochs is "
            f"{config.schedule.epochs}; type schedule.epochs={2 * done} to train on, or use attnmosaic.evaluate"
        )
    saved = checkpoint["hyper_parameters"]["config"]
    if checkpoint[COMPLETE]["ended"] and not config.get("began_otherwise") and _callbacks(saved) == _callbacks(config):
        raise UserError(
            f"ckpt_path: a callback ended the run of '{config.ckpt_path}' after epoch {done}, and would again; to "
            "train on leave out what ended it (callbacks.NAME=null, or trainer.max_time), or use attnmosaic.evaluate"
        )
    before = flat(saved)
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
                f"{before.get(key)}; type {_as_before(key, before, now)}, or start a new run"
            )
        log.warning("resuming with another %s: %s before, %s now", key, before.get(key), now.get(key))
    log.info("resuming after epoch %d of %d", done, config.schedule.epochs)


def _as_before(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the override that gives a key the value that it had, or removes a key that there was not."""
    if key not in before:
        return in_shell(f"~{key}")
    return to_type(key if key in now else f"+{key}", before[key])


def _callbacks(config: Mapping[str, Any]) -> str:
    return str(config["callbacks"]).replace(str(config["run_dir"]), "")


def _of(networks: Iterable[str], sections: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{section}.{network}." for section in sections for network in networks)
