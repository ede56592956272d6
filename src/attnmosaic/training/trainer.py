"""Builds the Lightning trainer of a run, with its loggers and callbacks."""

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
from pytorch_lightning.profilers import PassThroughProfiler

from attnmosaic.config.schema import metrics_of
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.library_internals import keep_signal_handlers
from attnmosaic.core.processes import RankInfo
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.training.checkpointing import AtomicCheckpointIO
from attnmosaic.training.distributed import ConnectedDDPStrategy
from attnmosaic.training.instantiation import build_object

log = logging.getLogger(__name__)


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, without the generator that Lightning's own starts for each of an epoch's hundreds of hooks."""

    def profile(self, action_name: str) -> Any:
        return contextlib.nullcontext()


def build_trainer(config: Mapping[str, Any], precision: str, info: RankInfo | None = None) -> pl.Trainer:
    """Builds the Lightning trainer of a run, with its callbacks, loggers and strategy.

    Args:
        config: the resolved config. Its sections ``logger`` and ``callbacks`` map names to ``_target_`` nodes; names
            set to null are skipped.
        precision: Lightning's name of the precision.
        info: rank of this process in a run of several processes; None for a run of one process.

    Raises:
        UserError: the trainer does not take an argument, or a device is missing.
    """
    accelerator = str(config["trainer"].get("accelerator", "auto"))
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator: got {accelerator}, but PyTorch finds no GPU on this machine; "
            "type trainer.accelerator=cpu (or auto)"
        )
    callbacks = _instances("callbacks", config.get("callbacks"))
    _check_monitored(config, callbacks)
    # last.ckpt is written after all other checkpoints of an epoch, so it holds the states of their callbacks: a run
    # that resumes from it does not write these checkpoints again.
    callbacks.sort(key=lambda callback: getattr(callback, "written_last", False))
    arguments: dict[str, Any] = {
        "precision": precision,
        "logger": _instances("logger", config.get("logger")) or False,
        "callbacks": callbacks,
        # By default Lightning adds its own progress bar and checkpoint if the callbacks have none.
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        **({"profiler": NoProfiler()} if config["trainer"].get("profiler") is None else {}),
        **_processes(config["trainer"], info),
    }
    trainer: pl.Trainer = build_object("trainer", config["trainer"], **arguments)
    keep_signal_handlers(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user has set none in trainer.plugins
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    _check_devices(config["trainer"], trainer, 1 if info is None else info.count)
    return trainer


def _processes(node: Mapping[str, Any], info: RankInfo | None) -> dict[str, Any]:
    """Returns the trainer's arguments that set the processes of the run, so that Lightning does not guess them."""
    if info is None:
        # Without this plugin Lightning takes a process with SLURM_NTASKS for one of several and requeues the job.
        plugins = {} if node.get("plugins") else {"plugins": [LightningEnvironment()]}
        return {**plugins, **({"strategy": "auto"} if node.get("strategy") == "ddp" else {})}
    devices = node["devices"] if isinstance(node["devices"], list) else info.local_count
    return {"strategy": ConnectedDDPStrategy(), "devices": devices, "num_nodes": info.count // info.local_count}


def _check_devices(node: Mapping[str, Any], trainer: pl.Trainer, processes: int) -> None:
    device = trainer.strategy.root_device.type
    if trainer.world_size != processes:
        raise UserError(
            f"trainer.devices: got {node['devices']}, which is {trainer.world_size} devices on this machine, needs "
            f"{processes}; type trainer=ddp trainer.devices={trainer.world_size}, or trainer.devices=1"
        )
    if node.get("sync_batchnorm") and device != "cuda":
        raise UserError(
            "trainer.sync_batchnorm: got true, but torch synchronises batch normalisation only on GPUs; "
            "remove '+trainer.sync_batchnorm' from the command"
        )
    if device == "mps":
        raise UserError(
            "trainer.accelerator: Apple GPUs lack float64, which the metrics need; type trainer.accelerator=cpu"
        )


def _check_monitored(config: Mapping[str, Any], callbacks: Sequence[pl.Callback]) -> None:
    """Checks that every monitored metric is measured, and in the epochs in which its callback needs it.

    Nothing is checked if a callback is custom, as it can log any metric.
    """
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
        some_epochs_only = monitor not in measured[: len(metrics)] and every > 1
        if isinstance(callback, EarlyStopping) and some_epochs_only and node.get("check_on_train_epoch_end"):
            raise UserError(
                f"{key}: got {monitor}, which is measured every {every} epochs, but needed after every epoch; type "
                f"callbacks.{name}.check_on_train_epoch_end=false, or trainer.check_val_every_n_epoch=1"
            )


def reason_of_end(trainer: pl.Trainer, epochs: int) -> str | None:
    """Returns why a run ended before the last epoch of its schedule; None if it trained for all epochs.

    Args:
        trainer: the run's trainer, after `fit`.
        epochs: number of epochs of the schedule.
    """
    if trainer.current_epoch >= epochs:
        return None
    reasons = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reasons.append(callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop."))
        seconds_left = callback.time_remaining() if isinstance(callback, Timer) else None
        if seconds_left is not None and seconds_left <= 0:
            reasons.append("The time limit was reached (trainer.max_time, or the duration of a Timer).")
    return " ".join(reasons) or "A callback asked for it."


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Keeps this program's signal handlers while a trainer runs.

    Ctrl-C raises KeyboardInterrupt; Lightning would exit with code 1 and ignore a second Ctrl-C. SIGTERM is ignored in
    a job that this program has submitted to Slurm. Slurm sends SIGTERM when it preempts the job, and kills and requeues
    the job after a grace time. If the job ended within that time, Slurm would count it as failed.
    """
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        signal.signal(
            signal.SIGTERM, lambda *_: log.warning("SIGTERM from Slurm: training continues until Slurm ends this job")
        )
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        raise end.__context__ from None
    finally:
        with contextlib.suppress(ValueError):  # only the main thread can set handlers
            for signum, handler in handlers.items():
                signal.signal(signum, handler)


def _instances(group: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    """Instantiates the nodes of a config group, without the names set to null."""
    if nodes is None:
        return []
    instances = {
        f"{group}.{name!s}": build_object(f"{group}.{name!s}", node) for name, node in nodes.items() if node is not None
    }
    for key, instance in instances.items():
        if isinstance(instance, OnExceptionCheckpoint):
            raise UserError(
                f"{key}: got OnExceptionCheckpoint, which makes Lightning itself resume from any last.ckpt; type "
                f"{key}._target_=pytorch_lightning.callbacks.ModelCheckpoint +{key}.save_on_exception=true"
            )
    return [*instances.values()]
