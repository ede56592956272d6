"""Finds the checkpoint that a run resumes from, and checks that the run can."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnmosaic.config.identity import Kind, config_hash, identity_settings, kind_of
from attnmosaic.config.paths import short_path
from attnmosaic.config.resolution import flat
from attnmosaic.core.errors import UserError
from attnmosaic.core.quoting import in_shell, typed_override
from attnmosaic.core.text import truncate
from attnmosaic.runs.run import CHECKPOINTS, LAST
from attnmosaic.training.base import RunModule
from attnmosaic.training.checkpointing import COMPLETE, check_weights_fit, read_saved

log = logging.getLogger(__name__)

_LENGTH = ("schedule.epochs", "trainer.max_epochs")


def find_checkpoint(config: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the checkpoint that a run resumes from; returns None if the run begins anew.

    Without a ``ckpt_path`` it is the newest in the run's own folder that has the run's settings and leaves an epoch to
    train: a run stopped between its last epoch and its result repeats that epoch. The log names checkpoints that were
    read and skipped, as damaged or as none that can be resumed exactly.

    Args:
        config: resolved. Its ``ckpt_path`` becomes the path of the checkpoint. If that was given, settings of the
            checkpoint's run that differ and decide numbers are written to ``began_otherwise``, but for the number of
            epochs.

    Raises:
        UserError: ``ckpt_path`` is no checkpoint.
    """
    if config["ckpt_path"] is None:
        return _newest(config)
    checkpoint = read_saved(config["ckpt_path"])
    different = {key: old for key, old, _ in _differences(checkpoint, config) if key not in _LENGTH}
    if different:
        config["began_otherwise"] = different
    return checkpoint


def _newest(config: dict[str, Any]) -> dict[str, Any] | None:
    found = None
    damaged: list[str] = []
    partial: list[str] = []
    for path in _newest_first(Path(config["run_dir"], CHECKPOINTS)):
        try:
            checkpoint = read_saved(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        if config_hash(checkpoint["hyper_parameters"]["config"]) != config_hash(config):
            continue
        if obstacle := _obstacle(checkpoint):
            partial.append(f"{path.name} ({obstacle})")
        elif (done := checkpoint[COMPLETE])["epochs"] < config["schedule"]["epochs"] and not done["ended"]:
            config["ckpt_path"], found = str(path), checkpoint
            break
    instead = "beginning anew" if found is None else f"resuming from '{config['ckpt_path']}'"
    for reason in damaged:
        log.warning("%s; %s", reason, instead)
    if partial:
        log.info(
            "skipped checkpoints that cannot be resumed exactly: %s; %s", truncate(", ".join(partial), 200), instead
        )
    return found


def _newest_first(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder: the last two epochs', then those of cycles by epoch, then others by time."""

    def age(path: Path) -> tuple[float, ...]:
        cycle = re.fullmatch(r"epoch-(\d+)", path.stem)
        own = path.name != LAST, path.name != f"before_{LAST}", cycle is None
        return (*own, -int(cycle[1]) if cycle else -path.stat().st_mtime)

    return sorted(folder.glob("*.ckpt"), key=age)


def _obstacle(checkpoint: Mapping[str, Any]) -> str | None:
    """Returns why a run that resumed from a checkpoint would not end as an uninterrupted one; None if it would."""
    if COMPLETE not in checkpoint:
        return "written before its epoch was complete"
    return None if "optimizer_states" in checkpoint else "the weights alone"


def _differences(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields each setting in which a run's identity differs from that of a checkpoint's run: key, before and now."""
    before, now = flat(identity_settings(checkpoint["hyper_parameters"]["config"])), flat(identity_settings(config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def check_resume(config: Mapping[str, Any], checkpoint: Mapping[str, Any], module: RunModule) -> None:
    """Checks that a run can resume from a checkpoint, and logs in what it differs from the checkpoint's run.

    Args:
        config: resolved; see `find_checkpoint`.
        checkpoint: that of ``ckpt_path``.
        module: the run's, as it was initialized.

    Raises:
        UserError: the checkpoint is of another architecture or scale, was not written when an epoch was complete, its
            run has no epoch left, or its optimizers were set up otherwise.
    """
    path, epochs = config["ckpt_path"], config["schedule"]["epochs"]
    check_weights_fit(checkpoint, module, path)
    if obstacle := _obstacle(checkpoint):
        raise UserError(
            f"ckpt_path: '{short_path(path)}' cannot be resumed exactly ({obstacle}); give one of all states "
            f"that is written when an epoch is complete (checkpoints/{LAST}, or a ModelCheckpoint with "
            "save_on_train_epoch_end=true), or measure this one with attnmosaic.evaluate"
        )
    done = checkpoint[COMPLETE]["epochs"]
    if done >= epochs:
        raise UserError(
            f"ckpt_path: '{short_path(path)}' has all {done} epochs done and schedule.epochs is {epochs}; type "
            f"schedule.epochs={2 * done} to train on, or use attnmosaic.evaluate"
        )
    saved = checkpoint["hyper_parameters"]["config"]
    if checkpoint[COMPLETE]["ended"] and not config.get("began_otherwise") and _callbacks(saved) == _callbacks(config):
        raise UserError(
            f"ckpt_path: a callback ended the run of '{path}' after epoch {done}, and would again; to train on leave "
            "out what ended it (callbacks.NAME=null, or trainer.max_time), or use attnmosaic.evaluate"
        )
    if (scale := saved["scale"]) != config["scale"]:
        raise UserError(
            f"scale: got {config['scale']}, but '{path}' is of a {scale} run; type scale={scale}, or start a new run"
        )
    for key, before, now in _differences(checkpoint, config):
        if kind_of(key) is Kind.OPTIMIZER:
            raise UserError(
                f"{key}: got {now}, but the optimizers in '{path}' resume as they were saved, with {before}; type "
                f"{_as_before(key, flat(saved), flat(config))}, or start a new run"
            )
        if not key.startswith("began_otherwise"):
            log.warning("resuming with another %s: %s before, %s now", key, before, now)
    log.info("resuming after epoch %d of %d", done, epochs)


def _as_before(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the override that gives a key the value that it had, or removes a key that there was not."""
    if key not in before:
        return in_shell(f"~{key}")
    return typed_override(key if key in now else f"+{key}", before[key])


def _callbacks(config: Mapping[str, Any]) -> str:
    return str(config["callbacks"]).replace(str(config["run_dir"]), "")
