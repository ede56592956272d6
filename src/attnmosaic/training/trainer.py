"""The Lightning trainer of a run, with its loggers and callbacks."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, OnExceptionCheckpoint, ProgressBar, Timer

from attnmosaic.config.schema import metrics_of
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.library_internals import keep_signal_handlers
from attnmosaic.core.processes import RankInfo
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.training.checkpointing import AtomicCheckpointIO
from attnmosaic.training.distributed import ConnectedDDPStrategy
from attnmosaic.training.instantiation import build_object

log = logging.getLogger(__name__)


def build_trainer(config: Mapping[str, Any], precision: str, info: RankInfo | None = None) -> pl.Trainer:
    """Builds the trainer.

    Args:
        config: resolved, with ``trainer``, ``logger`` and ``callbacks``; the last two map names to ``_target_`` nodes,
            and a name set to null is left out.
        precision: Lightning's name of the precision.
        info: which of the run's processes this is; None if it is the only one.

    Raises:
        UserError: the trainer takes no such argument, or a device is missing.
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
        **_processes(config["trainer"], info),
    }
    trainer: pl.Trainer = build_object("trainer", config["trainer"], **given)
    keep_signal_handlers(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none of the user's own (trainer.plugins)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    _check_devices(config["trainer"], trainer, 1 if info is None else info.count)
    return trainer


def _processes(node: Mapping[str, Any], info: RankInfo | None) -> dict[str, Any]:
    """Returns the trainer's arguments that decide which processes train, so that Lightning does not guess them."""
    if info is None:
        # Left alone, Lightning takes a process with SLURM_NTASKS for one of several and requeues its job.
        plugins = {} if node.get("plugins") else {"plugins": [LightningEnvironment()]}
        return {**plugins, **({"strategy": "auto"} if node.get("strategy") == "ddp" else {})}
    devices = node["devices"] if isinstance(node["devices"], list) else info.local_count
    return {"strategy": ConnectedDDPStrategy(), "devices": devices, "num_nodes": info.count // info.local_count}


def _check_devices(node: Mapping[str, Any], trainer: pl.Trainer, processes: int) -> None:
    device = trainer.strategy.root_device.type
    if trainer.world_size != processes:
        raise UserError(
            f"trainer.devices: got {node['devices']}, which are {trainer.world_size} here; "
            f"type trainer=ddp trainer.devices={trainer.world_size}, or trainer.devices=1"
        )
    if node.get("sync_batchnorm") and device != "cuda":
        raise UserError("trainer.sync_batchnorm: torch synchronises batch normalisation on GPUs alone; leave it out")
    if device == "mps":
        raise UserError("trainer.accelerator: Apple's GPUs lack the metrics' float64; type trainer.accelerator=cpu")


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
    """Keeps this program's answers to signals while a trainer works.

    Ctrl-C raises KeyboardInterrupt, where Lightning would exit with code 1 and ignore a second Ctrl-C. SIGTERM is
    ignored in a job that this program has submitted to Slurm: Slurm sends it when it preempts the job, a grace time
    before it kills the job and puts it back into the queue. A job that ends within that time has failed for Slurm.
    """
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        signal.signal(signal.SIGTERM, lambda *_: log.warning("SIGTERM from Slurm: training on until it ends this job"))
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        raise end.__context__ from None
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, which alone has handlers
            for signum, handler in handlers.items():
                signal.signal(signum, handler)


def _instances(group: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    if nodes is None:
        return []
    made = {
        f"{group}.{name!s}": build_object(f"{group}.{name!s}", node) for name, node in nodes.items() if node is not None
    }
    for key, instance in made.items():
        if isinstance(instance, OnExceptionCheckpoint):
            raise UserError(
                f"{key}: got OnExceptionCheckpoint, with which Lightning resumes from any last.ckpt by itself; type "
                f"{key}._target_=pytorch_lightning.callbacks.ModelCheckpoint +{key}.save_on_exception=true"
            )
    return [*made.values()]
