"""Finds the checkpoint that a run resumes from, and checks that the run can resume from it."""

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

_EPOCH_COUNTS = ("schedule.epochs", "trainer.max_epochs")
"""Keys of the number of epochs; a resumed run can have another number."""


def find_checkpoint(config: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the checkpoint that a run resumes from; returns None if the run starts from the beginning.

    Without a ``ckpt_path`` the run resumes from the newest checkpoint in its own folder that has the run's settings and
    is not from the last epoch. A run that was stopped between its last epoch and its result therefore repeats that
    epoch. The log names the checkpoints that were skipped because they are damaged or cannot be resumed exactly.

    Args:
        config: the resolved config. Its ``ckpt_path`` is set to the path of the checkpoint. If the user has set
            ``ckpt_path``, the checkpoint's settings that decide numbers and differ from this config are written to
            ``began_otherwise``, except for the number of epochs.

    Raises:
        UserError: the file at ``ckpt_path`` is not a valid checkpoint.
    """
    if config["ckpt_path"] is None:
        return _newest_resumable(config)
    checkpoint = read_saved(config["ckpt_path"])
    different = {key: old for key, old, _ in _differences(checkpoint, config) if key not in _EPOCH_COUNTS}
    if different:
        config["began_otherwise"] = different
    return checkpoint


def _newest_resumable(config: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the newest checkpoint in the run's folder that the run can resume from, and logs the skipped ones."""
    newest = None
    damaged: list[str] = []
    inexact: list[str] = []
    for path in _newest_first(Path(config["run_dir"], CHECKPOINTS)):
        try:
            checkpoint = read_saved(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        if config_hash(checkpoint["hyper_parameters"]["config"]) != config_hash(config):
            continue
        if reason := _why_not_exact(checkpoint):
            inexact.append(f"{path.name} ({reason})")
        elif (trained := checkpoint[COMPLETE])["epochs"] < config["schedule"]["epochs"] and not trained["ended"]:
            config["ckpt_path"], newest = str(path), checkpoint
            break
    instead = "starting from the beginning" if newest is None else f"resuming from '{config['ckpt_path']}'"
    for error_line in damaged:
        log.warning("%s; %s", error_line, instead)
    if inexact:
        log.info(
            "skipped checkpoints that cannot be resumed exactly: %s; %s", truncate(", ".join(inexact), 200), instead
        )
    return newest


def _newest_first(folder: Path) -> list[Path]:
    """Returns the paths of the checkpoints in a folder, newest first.

    The order is: ``last.ckpt``, ``before_last.ckpt``, the checkpoints of cycles by epoch, the others by time.
    """

    def age(path: Path) -> tuple[float, ...]:
        cycle = re.fullmatch(r"epoch-(\d+)", path.stem)
        kind = path.name != LAST, path.name != f"before_{LAST}", cycle is None
        return (*kind, -int(cycle[1]) if cycle else -path.stat().st_mtime)

    return sorted(folder.glob("*.ckpt"), key=age)


def _why_not_exact(checkpoint: Mapping[str, Any]) -> str | None:
    """Returns why a run that resumes from a checkpoint would differ from an uninterrupted run; None if it would not."""
    if COMPLETE not in checkpoint:
        return "written before its epoch was complete"
    return None if "optimizer_states" in checkpoint else "it holds only weights"


def _differences(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields key, old and new value of each identity setting that differs between a checkpoint's run and a run."""
    before, now = flat(identity_settings(checkpoint["hyper_parameters"]["config"])), flat(identity_settings(config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def check_resume(config: Mapping[str, Any], checkpoint: Mapping[str, Any], module: RunModule) -> None:
    """Checks that a run can resume from a checkpoint, and logs the settings that differ from the checkpoint's run.

    Args:
        config: the resolved config; see `find_checkpoint`.
        checkpoint: the checkpoint at ``ckpt_path``.
        module: the run's module, newly initialized.

    Raises:
        UserError: the checkpoint has another architecture or scale, was not written when an epoch was complete, leaves
            no epoch to train, or its optimizers have other settings.
    """
    path, epochs = config["ckpt_path"], config["schedule"]["epochs"]
    check_weights_fit(checkpoint, module, path)
    if reason := _why_not_exact(checkpoint):
        raise UserError(
            f"ckpt_path: '{short_path(path)}' cannot be resumed exactly ({reason}), needs a checkpoint with "
            f"all states from the end of an epoch; type the path of a checkpoints/{LAST} (or of a checkpoint by "
            "ModelCheckpoint with save_on_train_epoch_end=true), or use attnmosaic.evaluate to measure this one"
        )
    done = checkpoint[COMPLETE]["epochs"]
    if done >= epochs:
        raise UserError(
            f"ckpt_path: '{short_path(path)}' has already trained for {done} epochs and schedule.epochs is {epochs}; "
            f"type schedule.epochs={2 * done} to train longer, or use attnmosaic.evaluate to measure it"
        )
    saved = checkpoint["hyper_parameters"]["config"]
    if checkpoint[COMPLETE]["ended"] and not config.get("began_otherwise") and _callbacks(saved) == _callbacks(config):
        raise UserError(
            f"ckpt_path: a callback ended the run of '{path}' after epoch {done} and would end it again; to train "
            "longer, turn that callback off (type callbacks.NAME=null, or remove trainer.max_time from the command), "
            "or use attnmosaic.evaluate to measure the checkpoint"
        )
    if (scale := saved["scale"]) != config["scale"]:
        raise UserError(
            f"scale: got {config['scale']}, but '{path}' is from a {scale} run; type scale={scale}, or start a new run"
        )
    for key, before, now in _differences(checkpoint, config):
        if kind_of(key) is Kind.OPTIMIZER:
            raise UserError(
                f"{key}: got {now}, but the saved optimizers in '{path}' have {before} and keep it; type "
                f"{_override_to_restore(key, flat(saved), flat(config))}, or start a new run"
            )
        if not key.startswith("began_otherwise"):
            log.warning("resuming with another %s: %s before, %s now", key, before, now)
    log.info("resuming after epoch %d of %d", done, epochs)


def _override_to_restore(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the override that sets a key to its earlier value, or removes a key that the earlier config lacked."""
    if key not in before:
        return in_shell(f"~{key}")
    return typed_override(key if key in now else f"+{key}", before[key])


def _callbacks(config: Mapping[str, Any]) -> str:
    """Returns the callbacks of a config as text, without the path of the run's folder."""
    return str(config["callbacks"]).replace(str(config["run_dir"]), "")
