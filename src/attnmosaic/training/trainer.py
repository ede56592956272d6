"""The Lightning trainer of a run, with its loggers and callbacks."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, OnExceptionCheckpoint, ProgressBar, Timer

from attnmosaic.config.schema import metrics_of
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.internals import keep_signal_handlers
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.training.checkpointing import WholeCheckpoints
from attnmosaic.training.distributed import SharedSteps
from attnmosaic.training.instantiation import make
from attnmosaic.training.ranks import Place
from attnmosaic.training.slurm import DeafToTerm, slurm_environment


def build_trainer(config: Mapping[str, Any], precision: str, place: Place | None = None) -> pl.Trainer:
    """Makes the trainer.

    Args:
        config: resolved, with ``trainer``, ``logger`` and ``callbacks``; the last two map names to ``_target_`` nodes,
            and a name set to null is left out.
        precision: Lightning's name of the precision.
        place: which of the run's processes this is; None if it is the only one.

    Raises:
        UserError: the trainer takes no such argument, or a device is asked for that is not there.
    """
    wanted = str(config["trainer"].get("accelerator", "auto"))
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator: got {wanted}, but PyTorch finds no GPU on this machine; "
            "type trainer.accelerator=cpu (or auto)"
        )
    callbacks = _instances("callbacks", config.get("callbacks"))
    _check_monitored(config, callbacks)
    # Written last, it holds the states of all other checkpoint callbacks: a run that resumes from it is past theirs.
    callbacks.sort(key=lambda callback: getattr(callback, "written_last", False))
    given: dict[str, Any] = {
        "precision": precision,
        "logger": _instances("logger", config.get("logger")) or False,
        "callbacks": callbacks,
        # Otherwise Lightning adds a bar and a checkpoint of its own where ours were left out.
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    if place is not None:
        given["strategy"] = SharedSteps(place)
    elif config["trainer"].get("strategy") == "ddp":  # of one process
        given["strategy"] = "auto"
    environment = slurm_environment(os.environ, config["trainer"])
    if place is None and environment is not None:  # several processes have an environment of their own
        given["plugins"] = [environment]
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        callbacks.append(DeafToTerm())
    trainer: pl.Trainer = make("trainer", config["trainer"], **given)
    keep_signal_handlers(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none of the user's own (trainer.plugins)
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    if place is None and trainer.world_size > 1:
        raise UserError(
            f"trainer.devices: got {config['trainer']['devices']}, which are {trainer.world_size} here; "
            f"type trainer=ddp trainer.devices={trainer.world_size}, or trainer.devices=1"
        )
    if config["trainer"].get("sync_batchnorm") and trainer.strategy.root_device.type != "cuda":
        raise UserError("trainer.sync_batchnorm: torch synchronises batch normalisation on GPUs alone; leave it out")
    if trainer.strategy.root_device.type == "mps":
        raise UserError("trainer.accelerator: Apple's GPUs lack the metrics' float64; type trainer.accelerator=cpu")
    return trainer


def _check_monitored(config: Mapping[str, Any], callbacks: Sequence[pl.Callback]) -> None:
    """Checks that what callbacks monitor is measured, and when they look at it; a user's own may log anything."""
    if any(not type(callback).__module__.startswith(("attnmosaic.", "pytorch_lightning.")) for callback in callbacks):
        return
    metrics = metrics_of(config)
    measured = [f"{part}/{metric}" for part in ("running", *SPLITS) for metric in metrics]
    nodes = [(name, node) for name, node in (config.get("callbacks") or {}).items() if node is not None]
    for (name, node), callback in zip(nodes, callbacks, strict=True):
        monitor = getattr(callback, "monitor", None)
        key = f"callbacks.{name}.monitor"
        if monitor is not None and monitor not in (*measured, "stage", "step", "epoch"):
            raise not_among(key, monitor, measured)
        every = config["trainer"].get("check_val_every_n_epoch", 1)
        seldom = monitor not in measured[: len(metrics)] and every > 1
        if isinstance(callback, EarlyStopping) and seldom and node.get("check_on_train_epoch_end"):
            raise UserError(
                f"{key}: got {monitor}, which is measured every {every} epochs and needed after each; type "
                f"callbacks.{name}.check_on_train_epoch_end=false, or trainer.check_val_every_n_epoch=1"
            )


def reason_of_end(trainer: pl.Trainer, epochs: int) -> str | None:
    """Returns why a run has ended before the last epoch of its schedule; None if it has not.

    Args:
        trainer: after `fit`.
        epochs: those of the schedule.
    """
    if trainer.current_epoch >= epochs:
        return None
    reasons = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reasons.append(callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop."))
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            reasons.append("The time limit was reached (trainer.max_time, or the duration of a Timer).")
    return " ".join(reasons) or "A callback asked for it."


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Hands Ctrl-C on as what it is: Lightning makes an exit with code 1 of it, and is deaf to a second one."""
    heard = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        with contextlib.suppress(ValueError):  # not the main thread, which alone hears signals
            signal.signal(signal.SIGINT, heard)
        raise end.__context__ from None


def _instances(group: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    if nodes is None:
        return []
    made = {f"{group}.{name!s}": make(f"{group}.{name!s}", node) for name, node in nodes.items() if node is not None}
    for key, instance in made.items():
        if isinstance(instance, OnExceptionCheckpoint):
            raise UserError(
                f"{key}: got OnExceptionCheckpoint, with which Lightning resumes from any last.ckpt by itself; type "
                f"{key}._target_=pytorch_lightning.callbacks.ModelCheckpoint +{key}.save_on_exception=true"
            )
    return [*made.values()]
