"""What each config key decides: one table, and the identity of a run that follows from it."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from attnmosaic.config.schema import other_networks


class Kind(Enum):
    """What a config key decides.

    Attributes:
        NUMBERS: what is trained on what, and how.
        OPTIMIZER: likewise; optimizers and schedulers keep it in their states, so a resumed run cannot change it.
        SEED: chance alone; runs of one group may differ in it.
        MACHINE: where and in which portions a run computes, and how often it measures. It changes what is learned by
            rounding at most; runs of one group may differ in it.
        OUTPUT: no number: where files lie, what is written, logged and shown.
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
    "data.(train_set|test_set).root": Kind.OUTPUT,  # a named data set is the same wherever it lies
    "data.(steps_per_block|eval_batch_size)": Kind.MACHINE,
    "data.(_target_|root|train_set|test_set|classes|foreground|background|color|image_size|mean|std)": Kind.NUMBERS,
    "data.(means|variance|points|patches|weights|views|operation|redraw|batch_size)": Kind.NUMBERS,
    "data.(train_mosaics|test_mosaics|held_out_mosaics|train_images|held_out_images|held_out_share)": Kind.NUMBERS,
    "compute.(threads|matmul_precision|engine|cache_gb)": Kind.MACHINE,
    "compute.pool": Kind.OUTPUT,  # the same numbers wherever it is, bit for bit
    "trainer.**.(default_root_dir|profiler|log_every_n_steps)": Kind.OUTPUT,
    "trainer.(accelerator|devices|check_val_every_n_epoch|num_sanity_val_steps|enable_*)": Kind.MACHINE,
    "trainer.use_distributed_sampler": Kind.MACHINE,
    "trainer.(_target_|max_epochs|min_epochs|max_time|benchmark|detect_anomaly|deterministic)": Kind.NUMBERS,
    "trainer.(inference_mode|num_nodes|plugins|reload_dataloaders_every_n_epochs|strategy)": Kind.NUMBERS,
    "trainer.(sync_batchnorm|val_check_interval)": Kind.NUMBERS,
    "logger|callbacks": Kind.OUTPUT,  # but for callbacks that change how a run trains, see `_decides`
    "name|run_dir|paths|ckpt_path|optimized_metric|progress": Kind.OUTPUT,
    "at_most": Kind.OUTPUT,  # the counts that it cuts are saved as they were cut
    "trust|images|grid|device|image|number|invert": Kind.OUTPUT,  # of commands that train nothing
}
"""What keys decide: the first row that matches a key counts, or else its section, or the section of that.

``*`` stands for any part of a name, ``**.`` for any sections or none, ``(a|b)`` for either name. A key that no row
matches (an argument of a user's own data module, or one that an interpolation reads) decides numbers.
"""

ADDED: dict[str, Any] = {}
"""Keys that were added after version 0.1.0, with their defaults: ``{"compute.engine": "auto"}``.

At its default such a key is left out of a run's identity, which so is that of an earlier run without the key.
"""

PATHS = (
    "run_dir|ckpt_path|paths",
    "(data|trainer|logger|callbacks).**.(root|folder|dirpath|save_dir|default_root_dir|cache_dir|lock_dir)",
)
"""Keys that name a file or folder, in the patterns of `KINDS`: arguments of ours, torchvision's and Lightning's."""

OFTEN_VARIED = (
    "scale", "data._target_", "lr", "schedule",
    "data.(patches|train_mosaics|operation|train_images|redraw|batch_size)", "precision",
)  # fmt: skip
"""Keys that runs are compared by also where nobody typed them, in the patterns of `KINDS` and the order of display."""

GROUPS = ("experiment", "debug")
"""Config groups whose options set keys of other sections, keys that decide numbers among them."""


def classified(key: str) -> Kind | None:
    """Returns what a dotted key decides; None if `KINDS` has neither the key nor a section that it lies in."""
    row = _row(key, KINDS)
    return None if row is None else [*KINDS.values()][row]


@lru_cache(maxsize=10_000)
def kind_of(key: str) -> Kind:
    """Returns what a dotted key decides."""
    return classified(key) or Kind.NUMBERS


def is_path(key: str) -> bool:
    """Whether a dotted key names a file or folder."""
    return _row(key, PATHS) is not None


def often_varied(keys: Iterable[str]) -> list[str]:
    """Returns the dotted keys among some that are in `OFTEN_VARIED`, in its order."""
    rows = {key: row for key in keys if (row := _row(key, OFTEN_VARIED)) is not None}
    return sorted(rows, key=rows.__getitem__)


def _row(key: str, patterns: Iterable[str]) -> int | None:
    """Returns the number of the first pattern that matches a key, or else one of its sections, the innermost first."""
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
    """Returns a hash of a run's identity, see `identity_settings`."""
    return hashlib.sha256(json.dumps(identity_settings(config), sort_keys=True).encode()).hexdigest()[:16]


def identity_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's identity: all settings but those of `Kind.OUTPUT`, and of networks that the run does not train.

    Raises:
        KeyError: the config lacks a section.
    """
    if absent := {"data", "compute", "trainer"} - config.keys():
        raise KeyError(min(absent))
    kept, others = _without_output(config), other_networks(config)
    for section in ("lr", "model", "optimizer", "scheduler"):
        kept[section] = {name: node for name, node in kept[section].items() if name not in others}
    if deciding := {name: node for name, node in (config["callbacks"] or {}).items() if _decides(node)}:
        kept["callbacks"] = json.loads(json.dumps(deciding).replace(str(config["run_dir"]), "RUN_DIR"))
    return kept


def _without_output(node: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    kept = {}
    for name, child in node.items():
        key = f"{section}{name}"
        if kind_of(key) is not Kind.OUTPUT and not (key in ADDED and child == ADDED[key]):
            kept[name] = _without_output(child, f"{key}.") if isinstance(child, dict) else child
    return kept


_DECIDING = (
    "EarlyStopping", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging",
    "GradientAccumulationScheduler",
)  # fmt: skip


def _decides(callback: Any) -> bool:
    """Whether a callback is one of Lightning's that change how a run trains; others only write or log."""
    if not isinstance(callback, dict):
        return False
    return callback["_target_"].rpartition(".")[2] in _DECIDING or callback.get("duration") is not None  # a Timer's
