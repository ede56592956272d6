"""Checks the arguments of Lightning's `Trainer` in a run's config. Imports no Lightning.

A run trains in blocks of optimizer steps, and attnmosaic itself counts steps, clips gradients and evaluates. Some
arguments would therefore have no effect, or another effect than Lightning documents; they are refused.
``tests/config/test_trainer_arguments.py`` checks that the lists here cover all arguments of the installed version.
"""

import re
from collections.abc import Mapping
from typing import Any

from attnmosaic.core.errors import UserError

SUPPORTED = frozenset({
    "accelerator", "benchmark", "check_val_every_n_epoch", "default_root_dir", "detect_anomaly", "deterministic",
    "devices", "enable_model_summary", "inference_mode", "log_every_n_steps", "max_time", "min_epochs", "num_nodes",
    "plugins", "profiler", "reload_dataloaders_every_n_epochs", "sync_batchnorm", "val_check_interval",
})  # fmt: skip
"""Arguments with the effect that Lightning documents; `attnmosaic.config.validation` checks some of their values."""

_NO_LIMIT = (None, 1.0)  # Lightning reads the integer 1 as one batch
_EVALUATES_ALL = "evaluations use all examples; type data.test_mosaics=N or data.held_out_images=N for fewer"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": (
        (1,),
        "each minibatch is one optimizer step; type data.batch_size=N, or optimizer.microbatches=N to use less memory",
    ),
    "barebones": (
        (False,),
        "a run always measures and writes files; type logger=none callbacks.dashboards=null callbacks.pictures=null "
        "for the smallest output",
    ),
    "callbacks": ((None,), "callbacks have their own config section; type +callbacks.NAME._target_=CLASS"),
    "enable_autolog_hparams": (
        (True,),
        "hyperparameters are logged together with the metrics; type logger=none to log neither",
    ),
    "enable_checkpointing": (
        (None,),
        "callbacks write the checkpoints; type callbacks.last=null callbacks.cycle=null to write none",
    ),
    "enable_progress_bar": (
        (None,),
        "progress is a top-level key; type progress=live, progress=lines or progress=quiet",
    ),
    "fast_dev_run": ((False, 0), "type scale=smoke, which runs any experiment in seconds and marks all its output"),
    "gradient_clip_algorithm": (
        (None,),
        "gradients are always clipped by their norm; type for example optimizer.clip_norm=1.0",
    ),
    "gradient_clip_val": (
        (None,),
        "gradients are clipped separately for each network; type for example optimizer.clip_norm=1.0",
    ),
    "limit_predict_batches": (_NO_LIMIT, "a run has no prediction loop; remove the argument"),
    "limit_test_batches": (_NO_LIMIT, _EVALUATES_ALL),
    "limit_train_batches": (
        _NO_LIMIT,
        "a batch of Lightning is a block of steps here; type data.train_mosaics=N or data.train_images=N",
    ),
    "limit_val_batches": (_NO_LIMIT, _EVALUATES_ALL),
    "logger": ((None,), "loggers have their own config section; type logger=tensorboard or logger=none"),
    "max_steps": ((-1,), "Lightning would count blocks of steps; type schedule.epochs=N"),
    "min_steps": ((None,), "Lightning would count blocks of steps; type +trainer.min_epochs=N"),
    "model_registry": ((None,), "checkpoints stay in the run's folder; remove the argument"),
    "num_sanity_val_steps": (
        (0,),
        "a run evaluates only after training epochs; type scale=smoke to see an evaluation within seconds",
    ),
    "overfit_batches": ((0, 0.0), "type debug=overfit instead"),
    "precision": (
        (None,),
        "precision is a top-level key; type precision=float32, precision=float64 or precision=bfloat16",
    ),
    "use_distributed_sampler": ((False,), "each process computes its shard of every minibatch; remove the argument"),
}
"""Arguments without their documented effect: the accepted values, and the reason with what to type instead."""

RESTRICTED = frozenset({"max_epochs", "strategy"})
"""Arguments for which `check_trainer` accepts few values."""


def check_trainer(trainer: Mapping[str, Any], epochs: int | None = None) -> None:
    """Checks the arguments of a run's trainer; Lightning itself refuses unknown arguments.

    Args:
        trainer: the resolved section of the config.
        epochs: number of epochs of the run's schedule; None for a command that does not train.

    Raises:
        UserError: an argument has no effect or an undocumented effect; the message says what to type instead.
    """
    for key, value in trainer.items():
        accepted, reason = REFUSED.get(key, ((value,), ""))
        if not any(type(value) is type(same) and value == same for same in accepted):
            raise UserError(f"trainer.{key}: got {_shown(value)}, not supported: {reason}")
    if epochs is not None and trainer.get("max_epochs", epochs) != epochs:
        raise UserError(
            f"trainer.max_epochs: got {_shown(trainer['max_epochs'])}, must be equal to schedule.epochs "
            f"({epochs}); type schedule.epochs={trainer['max_epochs'] or epochs}"
        )
    if trainer.get("strategy", "auto") not in ("auto", "ddp"):
        raise UserError(
            f"trainer.strategy: got {_shown(trainer['strategy'])}, allowed: auto, ddp; type trainer=ddp "
            "trainer.devices=2 to train with several processes"
        )
    least = trainer.get("min_epochs")
    if least is not None and (not isinstance(least, int) or isinstance(least, bool) or not 0 <= least <= (epochs or 0)):
        raise UserError(
            f"trainer.min_epochs: got {_shown(least)}, needs a whole number from 0 to schedule.epochs ({epochs}); "
            "type for example +trainer.min_epochs=1"
        )
    limit = trainer.get("max_time")
    if limit is not None and not _is_time(limit):
        raise UserError(
            f"trainer.max_time: got {_shown(limit)}, needs days, hours, minutes and seconds in the form DD:HH:MM:SS; "
            "type for example '+trainer.max_time=\"00:01:30:00\"'"
        )


def _is_time(limit: Any) -> bool:
    if isinstance(limit, Mapping):
        units = {"weeks", "days", "hours", "minutes", "seconds"}
        return bool(limit) and limit.keys() <= units and all(type(n) in (int, float) and n >= 0 for n in limit.values())
    return isinstance(limit, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", limit) is not None


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
