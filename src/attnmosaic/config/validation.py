"""Checks the values of a run's config before torch is imported: ranges, words, sections, classes and processes."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.availability import check_available, check_data_fit
from attnmosaic.config.classes import split_classes
from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.config.image_folders import check_folder, foreground_missing, root_folder
from attnmosaic.config.resolution import walk
from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import PAIR, PRECISIONS, PROGRESS, folder_name, metrics_of, networks_of
from attnmosaic.config.trainer_arguments import check_trainer
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.processes import launched_rank
from attnmosaic.core.quoting import in_shell
from attnmosaic.core.text import short_value

_SPLITS = ("train", "test", "held_out")
_Allowed = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, bits: int = 31) -> tuple[_Allowed, str]:
    """Returns the rule for a whole number; torch and numpy support counts below 2^31 and seeds below 2^63."""
    wording = f"a whole number of at least {least} and below 2^{bits}"
    return lambda v: _is_integer(v) and least <= v < 2**bits, wording


def _one_or_each(allowed: _Allowed) -> _Allowed:
    """Returns the rule for one value or a list of values, such as one value for each channel."""
    return lambda v: all(map(allowed, v if isinstance(v, list) else [v]))


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _are_classes(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _are_means(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 3 and all(map(_is_mean, value))


def _is_mean(value: Any) -> bool:
    return _is_point(value) or (isinstance(value, list) and len(value) > 0 and all(map(_is_point, value)))


_RULES: tuple[tuple[str, _Allowed, str, object], ...] = (
    ("seed.all seed.data seed.init seed.order data.seed data.order_seed", *_whole(0, 63), 0),
    ("schedule.k schedule.epochs optimizer.microbatches? compute.threads? data.train_mosaics", *_whole(1), 1),
    ("data.test_mosaics data.held_out_mosaics data.train_images? data.held_out_images? data.points", *_whole(1), 1),
    ("data.batch_size data.steps_per_block? data.eval_batch_size? data.image_size?", *_whole(1), 1),
    ("trainer.check_val_every_n_epoch trainer.max_epochs trainer.log_every_n_steps", *_whole(1), 1),
    ("trainer.reload_dataloaders_every_n_epochs", *_whole(0), 0),
    ("data.patches", *_whole(2), 9),
    ("lr.what lr.where lr.network optimizer.clip_norm? data.variance", _is_positive, "a number above 0", 0.01),
    ("compute.cache_gb", lambda v: _is_number(v) and v >= 0, "a number of at least 0", 1.0),
    ("objective.entropy", lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1", 0.0),
    ("data.held_out_share", lambda v: _is_number(v) and 0 < v < 1, "a fraction above 0 and below 1", 0.2),
    ("data.mean", _one_or_each(_is_number), "a number, or a list of one number for each channel", 0.5),
    ("data.std", _one_or_each(_is_positive), "a number above 0, or a list of one for each channel", 0.5),
    ("data.foreground data.background?", _are_classes, "a list of class names or indices", "[0,1]"),
    ("data.classes?", _are_names, "a list of class names, in quotes if they look like numbers or true", '["0",cat]'),
    ("data.means", _are_means, "three or more classes, each a point [x, y] or a list of points", "[[0,0],[1,1],[2,2]]"),
    ("data.redraw trainer.benchmark? trainer.detect_anomaly", _is_bool, "true or false", "true"),
    ("trainer.enable_model_summary? trainer.inference_mode trainer.sync_batchnorm", _is_bool, "true or false", "true"),
    ("trainer.deterministic?", lambda v: _is_bool(v) or v == "warn", "true, false or warn", "true"),
    ("data.views?", lambda v: isinstance(v, dict), "a section with a key for each view", "null"),
    ("trainer.val_check_interval", lambda v: v == 1 and isinstance(v, float), "1.0: a run evaluates after epochs", 1.0),
)
"""Rules: keys (``?`` allows null), the check of their values, the description of allowed values, and an example.

Missing keys are not checked.
"""

_WORDS: tuple[tuple[str, Sequence[str]], ...] = (
    ("schedule.order", tuple(ORDERS)),
    ("precision", tuple(PRECISIONS)),
    ("compute.matmul_precision", ("highest", "high", "medium")),
    ("compute.engine", ("auto", "eager")),
    ("compute.pool", ("auto", "device", "host")),
    ("scale", ("full", "smoke")),
    ("progress", PROGRESS),
)

_HYDRA_KEYS: dict[str, tuple[type, str]] = {
    "_target_": (str, "the name of a class or function, for example torch.optim.SGD"),
    "_partial_": (bool, "true or false"),
    "_recursive_": (bool, "true or false"),
}
"""Keys that Hydra reads without a check: the type of their values, and the description of allowed values."""


def check(config: DictConfig) -> None:
    """Checks a run's config without heavy imports; of the data, only file names are read.

    Raises:
        UserError: a value is wrong; the message gives the key, its value, the allowed values and what to type.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if "data.foreground" in missing and (root := OmegaConf.select(config, "data.root")) is not None:
        raise foreground_missing(root)
    if missing:
        raise UserError(f"{missing[0]}: required; type {missing[0]}=VALUE")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_settings(plain)
    check_trainer(plain["trainer"], plain["schedule"]["epochs"] if "max_epochs" in plain["trainer"] else None)
    _check_processes(plain)
    if plain["data"].get("weights") is not None and plain["schedule"]["order"] != "what_only":
        raise UserError(
            "data.weights: gives fixed attention weights, so only What can train, but got "
            f"schedule.order={plain['schedule']['order']}; type schedule=what_only, or data.weights=null"
        )
    _check_classes(plain["data"])
    check_data_fit(plain["data"])
    check_available(plain["data"])
    if plain["ckpt_path"] is not None:
        check_ckpt_path(plain["ckpt_path"])


def check_settings(plain: dict[str, Any]) -> None:
    """Checks a run's resolved settings, without checks of files, memory or devices.

    Raises:
        UserError: see `check`.
    """
    folder_name(plain["name"])
    _check_sections(plain)
    _check_networks(plain)
    for names, allowed, wording, example in _RULES:
        for name in names.split():
            _check_rule(plain, name, allowed, wording, example)
    metrics = [f"{split}/{metric}" for split in _SPLITS for metric in metrics_of(plain)]
    for key, words in (*_WORDS, ("optimized_metric", metrics)):
        if (value := _lookup(plain, key)) not in words:
            raise not_among(key, value, words)
    _check_nodes(plain)
    for name, view in (plain["data"].get("views") or {}).items():
        _check_view(name, view)


def check_ckpt_path(path: str | Path) -> None:
    """Checks that a checkpoint exists.

    Raises:
        UserError: the file does not exist.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"ckpt_path: '{path}' does not exist; type ckpt_path=RUN/checkpoints/last.ckpt")


def _check_sections(plain: dict[str, Any]) -> None:
    """Checks that sections have keys: an interpolation can replace a section by any value."""
    optional = ("logger", "callbacks")
    for section in ("data", "model", "objective", "trainer", "optimizer", "scheduler", *optional):
        value = plain[section]
        if not isinstance(value, Mapping) and not (value is None and section in optional):
            raise UserError(f"{section}: got {short_value(value)}, needs a section with keys; see conf/{section}")


def _check_rule(plain: dict[str, Any], name: str, allowed: _Allowed, wording: str, example: object) -> None:
    key = name.removesuffix("?")
    value = _lookup(plain, key, _MISSING)
    if value is _MISSING or (value is None and key != name) or allowed(value):
        return
    example = in_shell(f"{key}={example}")
    raise UserError(f"{key}: got {short_value(value)}, needs {wording}; type for example {example}")


_MISSING = object()


def _lookup(plain: Any, key: str, default: Any = None) -> Any:
    for part in key.split("."):
        if not isinstance(plain, dict) or part not in plain:
            return default
        plain = plain[part]
    return plain


def _check_networks(plain: dict[str, Any]) -> None:
    """Checks that model, data, schedule and optimizer all fit a pair, or all fit one network with two outputs."""
    model, data = plain["model"], plain["data"]
    of_pair = [name for name in PAIR if model.get(name)]
    if networks_of(plain) == PAIR:
        if missing := [name for name in PAIR if name not in of_pair]:
            raise UserError(f"model.{missing[0]}: required; type for example model=mlp")
        if "operation" in data:
            raise UserError(
                "model: got a where/what pair, but these data are images with a number; "
                "type experiment=mnist_sum or experiment=mnist_product"
            )
        return
    if of_pair:
        raise UserError(f"model.{of_pair[0]}: a run trains either a pair or model.network; remove one from the command")
    if "operation" not in data:
        raise UserError(
            "model.network: needs images with a number, but these data are mosaics; type data=digits_and_number"
        )
    if str(data["operation"]) not in OPERATIONS:
        raise not_among("data.operation", data["operation"], OPERATIONS)
    order, microbatches = plain["schedule"]["order"], plain["optimizer"]["microbatches"]
    if order != "joint":
        raise UserError(f"schedule.order: got {order}, but model.network trains in every epoch; type schedule=joint")
    if microbatches is not None:
        raise UserError(
            f"optimizer.microbatches: got {microbatches}, but model.network trains on complete minibatches; "
            "type optimizer.microbatches=null"
        )


def _check_processes(plain: dict[str, Any]) -> None:
    """Checks the devices of a run: one process for each device, and at least one example for each process."""
    trainer = plain["trainer"]
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if nodes != 1:
        raise UserError(
            f"trainer.num_nodes: got {nodes}, but torchrun or srun sets it; remove it and type torchrun "
            f"--nnodes={nodes} --nproc-per-node=N -m attnmosaic.train trainer=ddp"
        )
    count = devices if _is_integer(devices) else len(devices) if isinstance(devices, list) else 1
    rank = launched_rank(os.environ)
    if rank is not None and (count != rank.count or isinstance(devices, list)):
        raise UserError(
            f"trainer.devices: got {devices}, but torchrun or srun has started {rank.count} processes; type "
            "trainer=ddp and remove trainer.devices"
        )
    if trainer.get("strategy") != "ddp":
        if count > 1:
            raise UserError(
                f"trainer.devices: got {devices}, but a run without trainer=ddp uses one device; type trainer=ddp "
                f"trainer.devices={count} for one process on each device, or trainer.devices=1"
            )
        return
    if not (_is_integer(devices) and devices >= 1) and not (
        isinstance(devices, list) and all(map(_is_integer, devices))
    ):
        raise UserError(
            f"trainer.devices: got {devices}, needs a number of processes or a list of GPUs with trainer=ddp; "
            "type for example trainer.devices=2"
        )
    size = plain["data"].get("batch_size", count)
    if count > size:
        raise UserError(
            f"trainer.devices: got {devices}, but minibatches of {size} (data.batch_size) are too small for {count} "
            f"processes; type trainer.devices={size}, or data.batch_size={count}"
        )


def _check_classes(data: dict[str, Any]) -> None:
    """Checks foreground and background if the config or an image folder gives the classes."""
    if "foreground" not in data:
        return
    classes: Sequence[str] | None = data.get("classes")
    if "means" in data:
        classes = [str(i) for i in range(len(data["means"]))]
    elif "root" in data:
        classes = check_folder(root_folder(data["root"]))
    if classes is not None:
        split_classes(data["foreground"], data.get("background"), classes)


def _check_nodes(plain: dict[str, Any]) -> None:
    """Checks that each part of a run has a ``_target_``, and the values of the keys in `_HYDRA_KEYS`."""
    for key in ("data", "objective", "trainer"):
        _check_target(key, plain[key])
    for part in ("model", "optimizer"):
        for name in networks_of(plain):
            _check_target(f"{part}.{name}", plain[part].get(name))
    optional = [("data.weights", plain["data"].get("weights"))]
    for part in ("logger", "callbacks"):
        optional += [(f"{part}.{name}", node) for name, node in (plain[part] or {}).items()]
    for key, node in optional:
        if node is not None:
            _check_target(key, node)
    for path, value in walk(plain):
        expected, wording = _HYDRA_KEYS.get(path[-1], (object, ""))
        if not isinstance(value, expected) or (expected is str and not value):
            raise UserError(f"{'.'.join(map(str, path))}: got {short_value(value)}, needs {wording}")


def _check_target(key: str, node: Any) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"{key}: got {short_value(node)}, needs a _target_ and its arguments; see conf/{key.partition('.')[0]}"
        )


def _check_view(name: Any, view: Any) -> None:
    """Checks a view; its name becomes part of file names, like the names of the splits."""
    key = f"data.views.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,60}", name) or name in _SPLITS:
        raise UserError(
            f"{short_value(key)}: not a valid name of a view; use letters, digits or _, but not train, test or held_out"
        )
    if not isinstance(view, Mapping) or set(view) != {"split", "weights"}:
        raise UserError(
            f"{key}: got {short_value(view)}, needs keys split and weights; see experiment=weighted_average"
        )
    _check_target(f"{key}.weights", view["weights"])
