"""Which arguments of Lightning's `Trainer` a run takes. Light: imports no Lightning.

Runs train in blocks of optimizer steps, and count, clip and evaluate by themselves, so that some arguments would do
nothing, or something else than Lightning documents. Each argument is listed here as one or the other;
``tests/config/test_trainer_arguments.py`` compares the lists with the signature of the installed version.
"""

import re
from collections.abc import Mapping
from typing import Any

from attnmosaic.core.errors import UserError

TAKEN = frozenset({
    "accelerator", "benchmark", "check_val_every_n_epoch", "default_root_dir", "detect_anomaly", "deterministic",
    "devices", "enable_model_summary", "inference_mode", "log_every_n_steps", "max_time", "min_epochs", "num_nodes",
    "plugins", "profiler", "reload_dataloaders_every_n_epochs", "sync_batchnorm", "val_check_interval",
})  # fmt: skip
"""Arguments that do what Lightning documents; some of their values are refused in `attnmosaic.config.validation`."""

_OFF = (None, 1.0)  # a whole 1 would be one batch
_ALL = "evaluations take all examples; type data.test_mosaics=N or data.held_out_images=N"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": (
        (1,),
        "each minibatch is an optimizer step; type data.batch_size=N, or optimizer.microbatches=N for less memory",
    ),
    "barebones": (
        (False,),
        "a run measures and writes; type logger=none callbacks.dashboards=null callbacks.pictures=null for the least",
    ),
    "callbacks": ((None,), "they are a section of their own; type +callbacks.NAME._target_=CLASS"),
    "enable_autolog_hparams": (
        (True,),
        "hyperparameters are logged with the metrics; type logger=none",
    ),
    "enable_checkpointing": (
        (None,),
        "checkpoints are written by callbacks; type callbacks.last=null callbacks.cycle=null for none",
    ),
    "enable_progress_bar": ((None,), "type progress=live, progress=lines or progress=quiet"),
    "fast_dev_run": ((False, 0), "type scale=smoke, which runs any experiment in seconds and stamps what it writes"),
    "gradient_clip_algorithm": ((None,), "gradients are clipped by their norm; type optimizer.clip_norm=1.0"),
    "gradient_clip_val": ((None,), "gradients are clipped for each network; type optimizer.clip_norm=1.0"),
    "limit_predict_batches": (_OFF, "nothing is predicted while training; leave it out"),
    "limit_test_batches": (_OFF, _ALL),
    "limit_train_batches": (
        _OFF,
        "a batch of Lightning's is a block of steps; type data.train_mosaics=N or data.train_images=N",
    ),
    "limit_val_batches": (_OFF, _ALL),
    "logger": ((None,), "it is a section of its own; type logger=tensorboard or logger=none"),
    "max_steps": ((-1,), "it would count blocks of steps; type schedule.epochs=N"),
    "min_steps": ((None,), "it would count blocks of steps; type +trainer.min_epochs=N"),
    "model_registry": ((None,), "checkpoints stay in the run's folder; leave it out"),
    "num_sanity_val_steps": ((0,), "evaluations follow epochs; type scale=smoke to see one within seconds"),
    "overfit_batches": ((0, 0.0), "type debug=overfit"),
    "precision": ((None,), "it is a key of its own; type precision=float32, precision=float64 or precision=bfloat16"),
    "use_distributed_sampler": ((False,), "processes share out each minibatch themselves; leave it out"),
}
"""Arguments that would do nothing or something else: the values that change nothing, and what to type instead."""

CHECKED = frozenset({"max_epochs", "strategy"})
"""Arguments that take few values."""


def check_trainer(trainer: Mapping[str, Any], epochs: int | None = None) -> None:
    """Checks the arguments of a run's trainer; what is none of them, Lightning refuses itself.

    Args:
        trainer: the resolved section of the config.
        epochs: those of the run's schedule; None where nothing is trained.

    Raises:
        UserError: one of them does nothing, or not what it says; names what to type instead.
    """
    for key, value in trainer.items():
        allowed, instead = REFUSED.get(key, ((value,), ""))
        if not any(type(value) is type(same) and value == same for same in allowed):
            raise UserError(f"trainer.{key}: got {_shown(value)}, which a run does not take: {instead}")
    if epochs is not None and trainer.get("max_epochs", epochs) != epochs:
        raise UserError(
            f"trainer.max_epochs: got {_shown(trainer['max_epochs'])}, but a run has the epochs of its schedule "
            f"({epochs}); type schedule.epochs={trainer['max_epochs'] or epochs}"
        )
    if trainer.get("strategy", "auto") not in ("auto", "ddp"):
        raise UserError(
            f"trainer.strategy: got {_shown(trainer['strategy'])}, allowed: auto, ddp; type trainer=ddp "
            "trainer.devices=2 for several processes"
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
            f"trainer.max_time: got {_shown(limit)}, needs days, hours, minutes and seconds as DD:HH:MM:SS; type for "
            "example '+trainer.max_time=\"00:01:30:00\"'"
        )


def _is_time(limit: Any) -> bool:
    if isinstance(limit, Mapping):
        units = {"weeks", "days", "hours", "minutes", "seconds"}
        return bool(limit) and limit.keys() <= units and all(type(n) in (int, float) and n >= 0 for n in limit.values())
    return isinstance(limit, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", limit) is not None


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
