"""Table of what each config key decides, and the identity of a run, which follows from this table."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from attnmosaic.config.schema import untrained_networks


class Kind(Enum):
    """What a config key decides: numbers, seeds, the machine or the output.

    Attributes:
        NUMBERS: data, networks, training: the run's numbers depend on the key.
        OPTIMIZER: the run's numbers; optimizers and schedulers keep the value in their states, so a resumed run cannot
            change it.
        SEED: random numbers only; runs of one table row may differ in it.
        MACHINE: device, threads, sizes of blocks and frequency of evaluation. It changes the training by rounding
            errors at most; runs of one table row may differ in it.
        OUTPUT: paths and what is written, logged and shown; the run's numbers do not depend on the key.
    """

    NUMBERS = auto()
    OPTIMIZER = auto()
    SEED = auto()
    MACHINE = auto()
    OUTPUT = auto()


KINDS: dict[str, Kind] = {
    "scale|schedule|model|objective|precision": Kind.NUMBERS,
    "lr|scheduler|optimizer.(what|where|network)": Kind.OPTIMIZER,
    "optimizer.(clip_norm|microbatches)": Kind.NUMBERS,
    "began_otherwise": Kind.NUMBERS,  # see `attnmosaic.training.resume.find_checkpoint`
    "seed|data.(seed|order_seed)": Kind.SEED,
    "data.**.(cache_dir|lock_dir|download)": Kind.OUTPUT,
    "data.(train_set|test_set).root": Kind.OUTPUT,  # the data set has a name, so its folder changes nothing
    "data.(steps_per_block|eval_batch_size)": Kind.MACHINE,
    "data.(_target_|root|train_set|test_set|classes|foreground|background|color|image_size|mean|std)": Kind.NUMBERS,
    "data.(means|variance|points|patches|weights|views|operation|redraw|batch_size)": Kind.NUMBERS,
    "data.(train_mosaics|test_mosaics|held_out_mosaics|train_images|held_out_images|held_out_share)": Kind.NUMBERS,
    "compute.(threads|matmul_precision|engine|cache_gb)": Kind.MACHINE,
    "compute.pool": Kind.OUTPUT,  # the numbers are bit-identical for all values
    "trainer.**.(default_root_dir|profiler|log_every_n_steps)": Kind.OUTPUT,
    "trainer.(accelerator|devices|check_val_every_n_epoch|num_sanity_val_steps|enable_*)": Kind.MACHINE,
    "trainer.use_distributed_sampler": Kind.MACHINE,
    "trainer.(_target_|max_epochs|min_epochs|max_time|benchmark|detect_anomaly|deterministic)": Kind.NUMBERS,
    "trainer.(inference_mode|num_nodes|plugins|reload_dataloaders_every_n_epochs|strategy)": Kind.NUMBERS,
    "trainer.(sync_batchnorm|val_check_interval)": Kind.NUMBERS,
    "logger|callbacks": Kind.OUTPUT,  # except callbacks that change the training, see `_changes_training`
    "name|run_dir|paths|ckpt_path|optimized_metric|progress": Kind.OUTPUT,
    "at_most": Kind.OUTPUT,  # the config is saved with the reduced counts themselves
    "trust|images|grid|device|image|number|invert": Kind.OUTPUT,  # keys of commands that do not train
}
"""Patterns of keys and what these keys decide.

The first pattern that matches a key is used; if no pattern does, the first pattern that matches the key's section, then
the section above it. ``*`` matches any part of a name, ``**.`` any number of sections, ``(a|b)`` either name. A key
without a matching pattern decides numbers: an argument of a custom data module, or a key that an interpolation reads.
"""

ADDED: dict[str, Any] = {}
"""Keys that were added after version 0.1.0, with their defaults, for example ``{"compute.engine": "auto"}``.

A key with its default value is not part of a run's identity, so earlier runs without the key keep their identity.
"""

PATHS = (
    "run_dir|ckpt_path|paths",
    "(data|trainer|logger|callbacks).**.(root|folder|dirpath|save_dir|default_root_dir|cache_dir|lock_dir)",
)
"""Patterns, as in `KINDS`, of keys that are paths: keys of attnmosaic, torchvision and Lightning."""

OFTEN_VARIED = (
    "scale", "data._target_", "lr", "schedule",
    "data.(patches|train_mosaics|operation|train_images|redraw|batch_size)", "precision",
)  # fmt: skip
"""Patterns, as in `KINDS`, of the keys that comparisons of runs show even if no command set them, in this order."""

GROUPS = ("experiment", "debug")
"""Config groups whose options also set keys of other sections that decide numbers."""


def classified(key: str) -> Kind | None:
    """Returns what a dotted key decides; None if no pattern of `KINDS` matches the key or one of its sections."""
    row = _row(key, KINDS)
    return None if row is None else [*KINDS.values()][row]


@lru_cache(maxsize=10_000)
def kind_of(key: str) -> Kind:
    """Returns what a dotted key decides; `Kind.NUMBERS` for keys that match no pattern."""
    return classified(key) or Kind.NUMBERS


def is_path(key: str) -> bool:
    """Whether the value of a dotted key is a path."""
    return _row(key, PATHS) is not None


def often_varied(keys: Iterable[str]) -> list[str]:
    """Returns the dotted keys that match `OFTEN_VARIED`, in its order."""
    rows = {key: row for key in keys if (row := _row(key, OFTEN_VARIED)) is not None}
    return sorted(rows, key=rows.__getitem__)


def _row(key: str, patterns: Iterable[str]) -> int | None:
    """Returns the index of the first pattern that matches a key, or else its innermost section that any matches."""
    while key:
        for row, pattern in enumerate(patterns):
            if _compiled(pattern).fullmatch(key):
                return row
        key = key.rpartition(".")[0]
    return None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = {"**.": r"(?:.+\.)?", "*": r"[^.]+", ".": r"\."}
    return re.compile(re.sub(r"\*\*\.|[*.]", lambda match: parts[match[0]], pattern))


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns the hash of a run's identity, see `identity_settings`."""
    return hashlib.sha256(json.dumps(identity_settings(config), sort_keys=True).encode()).hexdigest()[:16]


def identity_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's identity: its settings except `Kind.OUTPUT` and settings of networks that it does not train.

    Raises:
        KeyError: a section of the config is missing.
    """
    if missing := {"data", "compute", "trainer"} - config.keys():
        raise KeyError(min(missing))
    kept, untrained = _without_output(config), untrained_networks(config)
    for section in ("lr", "model", "optimizer", "scheduler"):
        kept[section] = {name: node for name, node in kept[section].items() if name not in untrained}
    if callbacks := {name: node for name, node in (config["callbacks"] or {}).items() if _changes_training(node)}:
        kept["callbacks"] = json.loads(json.dumps(callbacks).replace(str(config["run_dir"]), "RUN_DIR"))
    return kept


def _without_output(node: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    kept = {}
    for name, child in node.items():
        key = f"{section}{name}"
        if kind_of(key) is not Kind.OUTPUT and not (key in ADDED and child == ADDED[key]):
            kept[name] = _without_output(child, f"{key}.") if isinstance(child, dict) else child
    return kept


_CALLBACKS_THAT_CHANGE_TRAINING = (
    "EarlyStopping", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging",
    "GradientAccumulationScheduler",
)  # fmt: skip


def _changes_training(callback: Any) -> bool:
    """Whether a callback is a Lightning callback that changes the training; other callbacks only write or log."""
    if not isinstance(callback, dict):
        return False
    is_timer = callback.get("duration") is not None
    return callback["_target_"].rpartition(".")[2] in _CALLBACKS_THAT_CHANGE_TRAINING or is_timer
