"""Checks of a config: everything the config alone can tell, before torch is imported."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.availability import check_available
from attnmosaic.config.classes import check_names, split_classes
from attnmosaic.config.image_folders import check_folder, root_folder
from attnmosaic.config.memory import check_data_fit
from attnmosaic.config.operations import OPERATIONS
from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import PAIR, PRECISIONS, PROGRESS, metrics_of, networks_of
from attnmosaic.config.structure import check_nodes, check_sections
from attnmosaic.config.trainer_arguments import check_trainer
from attnmosaic.core.errors import UserError, not_among
from attnmosaic.core.processes import launched
from attnmosaic.core.quoting import in_shell


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_Rule = tuple[Callable[[Any], bool], str, object]
_MOST = 2**31
"""Counts and seeds are below it: torch and numpy hold such numbers everywhere."""
_COUNT: _Rule = (lambda v: _integer(v) and 1 <= v < _MOST, "a whole number of at least 1 and below 2^31", 1)
_SEED: _Rule = (lambda v: _integer(v) and 0 <= v < 2**63, "a whole number of at least 0 and below 2^63", 0)
_POSITIVE: _Rule = (lambda v: _number(v) and v > 0, "a number above 0", 0.01)
_NOT_NEGATIVE: _Rule = (lambda v: _number(v) and v >= 0, "a number of at least 0", 1.0)
_SHARE: _Rule = (lambda v: _number(v) and 0 < v < 1, "a share above 0 and below 1", 0.2)
_UNIT: _Rule = (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1", 0.0)
_PATCHES: _Rule = (lambda v: _integer(v) and 2 <= v < _MOST, "a whole number of at least 2 and below 2^31", 9)
_CLASSES: _Rule = (
    lambda v: isinstance(v, list) and not any(isinstance(item, (list, dict)) for item in v),
    "a list of class names or indices",
    "[0,1]",
)
_MEAN: _Rule = (lambda v: all(map(_number, v if isinstance(v, list) else [v])), "a number, or one a channel", 0.5)
_STD: _Rule = (
    lambda v: all(_number(x) and x > 0 for x in (v if isinstance(v, list) else [v])),
    "a number above 0, or one a channel",
    0.5,
)
_ONE: _Rule = (lambda v: v == 1 and isinstance(v, float), "1.0: evaluations come at the end of an epoch", 1.0)
_FLAG: _Rule = (lambda v: isinstance(v, bool), "true or false", "true")
_DETERMINISTIC: _Rule = (lambda v: isinstance(v, bool) or v == "warn", "true, false or warn", "true")
_WHOLE: _Rule = (lambda v: _integer(v) and 0 <= v < _MOST, "a whole number of at least 0 and below 2^31", 0)
_MEANS: _Rule = (
    lambda v: isinstance(v, list) and len(v) >= 3 and all(_is_mean(m) for m in v),
    "a list of at least three classes, each a point [x, y] or a list of such points",
    "[[0,0],[1,1],[2,2]]",
)


def _is_mean(value: Any) -> bool:
    def point(v: Any) -> bool:
        return isinstance(v, list) and len(v) == 2 and all(map(_number, v))

    return point(value) or (isinstance(value, list) and len(value) > 0 and all(map(point, value)))


# A key that is absent (a data module of one's own may have others) or null where null means "off" passes.
_RULES: dict[str, _Rule] = {
    "seed.all": _SEED,
    "seed.data": _SEED,
    "seed.init": _SEED,
    "seed.order": _SEED,
    "lr.what": _POSITIVE,
    "lr.where": _POSITIVE,
    "lr.network": _POSITIVE,
    "schedule.k": _COUNT,
    "schedule.epochs": _COUNT,
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.microbatches": _COUNT,
    "objective.entropy": _UNIT,
    "compute.threads": _COUNT,
    "compute.cache_gb": _NOT_NEGATIVE,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.max_epochs": _COUNT,
    "trainer.benchmark": _FLAG,
    "trainer.detect_anomaly": _FLAG,
    "trainer.deterministic": _DETERMINISTIC,
    "trainer.enable_model_summary": _FLAG,
    "trainer.inference_mode": _FLAG,
    "trainer.sync_batchnorm": _FLAG,
    "trainer.log_every_n_steps": _COUNT,
    "trainer.reload_dataloaders_every_n_epochs": _WHOLE,
    "trainer.val_check_interval": _ONE,
    "data.seed": _SEED,
    "data.order_seed": _SEED,
    "data.mean": _MEAN,
    "data.std": _STD,
    "data.foreground": _CLASSES,
    "data.background": _CLASSES,
    "data.patches": _PATCHES,
    "data.train_mosaics": _COUNT,
    "data.test_mosaics": _COUNT,
    "data.held_out_mosaics": _COUNT,
    "data.batch_size": _COUNT,
    "data.steps_per_block": _COUNT,
    "data.eval_batch_size": _COUNT,
    "data.means": _MEANS,
    "data.variance": _POSITIVE,
    "data.points": _COUNT,
    "data.image_size": _COUNT,
    "data.held_out_share": _SHARE,
    "data.train_images": _COUNT,
    "data.held_out_images": _COUNT,
    "data.redraw": _FLAG,
}
_NULLABLE = {
    "optimizer.clip_norm", "optimizer.microbatches", "compute.threads", "data.background", "data.image_size",
    "trainer.benchmark", "trainer.deterministic", "trainer.enable_model_summary",
    "data.steps_per_block", "data.eval_batch_size", "data.train_images", "data.held_out_images",
}  # fmt: skip


def check(config: DictConfig) -> None:
    """Checks a run's config; imports nothing heavy and touches no data beyond listing a folder.

    Raises:
        UserError: naming the key, what was given, what is allowed and what to type instead.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        key = missing[0]
        raise UserError(f"{key}: has no value and needs one; type {key}={_EXAMPLES.get(key, 'VALUE')}")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    _check_run_dir(str(plain["run_dir"]))
    check_sections(plain)
    _check_networks(plain)
    check_settings(plain)
    check_trainer(plain["trainer"], plain["schedule"]["epochs"] if "max_epochs" in plain["trainer"] else None)
    _check_processes(plain)
    if plain["data"].get("weights") is not None and plain["schedule"]["order"] != "what_only":
        raise UserError(
            "data.weights: decree the attention, so Where cannot learn; got "
            f"schedule.order={plain['schedule']['order']}, type schedule=what_only (or data.weights=null)"
        )
    _check_classes(plain["data"])
    check_data_fit(plain["data"])
    check_available(plain["data"])
    if config.ckpt_path is not None:
        check_ckpt_path(config.ckpt_path)


def _check_run_dir(folder: str) -> None:
    """Checks that a run's folder has a name that is text: TensorBoard and torch write to no other."""
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"run_dir: got {folder!a}, which is no text where file names are {sys.getfilesystemencoding()}; "
            "set PYTHONUTF8=1 in the environment, or type hydra.run.dir=DIR"
        ) from error


def check_settings(plain: dict[str, Any]) -> None:
    """Checks what a run's resolved settings tell by themselves: nothing is looked at beside them.

    Raises:
        UserError: see `check`.
    """
    for key, (allowed, wording, example) in _RULES.items():
        found, value = _lookup(plain, key)
        if found and not (value is None and key in _NULLABLE) and not allowed(value):
            shown = "null" if value is None else value
            raise UserError(f"{key}: got {shown}, needs {wording}; type for example {in_shell(f'{key}={example}')}")
    check_nodes(plain)
    for key, words in (
        ("schedule.order", tuple(ORDERS)),
        ("precision", tuple(PRECISIONS)),
        ("compute.matmul_precision", ("highest", "high", "medium")),
        ("compute.engine", ("auto", "eager")),
        ("compute.pool", ("auto", "device", "host")),
        ("scale", ("full", "smoke")),
        ("progress", PROGRESS),
        ("optimized_metric", tuple(f"{s}/{m}" for s in ("train", "test", "held_out") for m in metrics_of(plain))),
    ):
        if (value := _lookup(plain, key)[1]) not in words:
            raise not_among(key, value, words)


def check_ckpt_path(path: str | Path) -> None:
    """Checks that a checkpoint is there.

    Raises:
        UserError: it is not.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"ckpt_path: '{path}' does not exist; checkpoints lie in a run's checkpoints folder")


def _check_networks(plain: dict[str, Any]) -> None:
    """Checks that model, data, schedule and optimizer are all of a pair's run, or all of one network's."""
    model, data = plain["model"], plain["data"]
    if networks_of(plain) == PAIR:
        absent = [name for name in PAIR if not model.get(name)]
        if absent:
            raise UserError(f"model.{absent[0]}: has no value and needs one; type for example model=mlp")
        if "operation" in data:
            raise UserError(
                "model: got a where/what pair, but these data are images with a number; "
                "type experiment=mnist_sum or experiment=mnist_product"
            )
        return
    given = [name for name in PAIR if model.get(name)]
    if given:
        raise UserError(f"model.{given[0]}: a run trains a pair or model.network, not both; leave out one of them")
    if "operation" not in data:
        raise UserError(
            "model.network: takes images with a number, but these data are mosaics; type data=digits_and_number"
        )
    if not isinstance(data["operation"], str) or data["operation"] not in OPERATIONS:
        raise not_among("data.operation", data["operation"], OPERATIONS)
    order, microbatches = plain["schedule"]["order"], plain["optimizer"]["microbatches"]
    if order != "joint":
        raise UserError(f"schedule.order: got {order}, but one network learns in every epoch; type schedule=joint")
    if microbatches is not None:
        raise UserError(
            f"optimizer.microbatches: got {microbatches}, but model.network takes each minibatch whole; "
            "type optimizer.microbatches=null"
        )


def _check_processes(plain: dict[str, Any]) -> None:
    """Checks how many devices train the run, and that there is a process for each and work for every process."""
    trainer = plain["trainer"]
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if nodes != 1:
        raise UserError(
            f"trainer.num_nodes: got {nodes}, which torchrun and srun decide; leave it out and type torchrun "
            f"--nnodes={nodes} --nproc-per-node=N -m attnmosaic.train trainer=ddp"
        )
    several = devices if _integer(devices) else len(devices) if isinstance(devices, list) else 1
    started = launched(os.environ)
    if started is not None and (several != started.count or isinstance(devices, list)):
        raise UserError(
            f"trainer.devices: got {devices}, but torchrun or srun has started {started.count} processes; type "
            "trainer=ddp and leave trainer.devices out"
        )
    if trainer.get("strategy") != "ddp":
        if several > 1:
            raise UserError(
                f"trainer.devices: got {devices}, a run uses one; type trainer=ddp trainer.devices={several} for a "
                "process on each, or trainer.devices=1"
            )
        return
    if not (_integer(devices) and devices >= 1) and not (isinstance(devices, list) and all(map(_integer, devices))):
        raise UserError(
            f"trainer.devices: got {devices}, needs with trainer=ddp a number of processes, or a list of GPUs; "
            "type for example trainer.devices=2"
        )
    size = plain["data"].get("batch_size", several)
    if several > size:
        raise UserError(
            f"trainer.devices: got {devices}, but the {several} processes share out minibatches of {size} "
            f"(data.batch_size); type trainer.devices={size}, or data.batch_size={several}"
        )


_EXAMPLES = {"data.root": "DIR (a folder that holds one folder of images a class)"}


def _lookup(plain: Any, key: str) -> tuple[bool, Any]:
    for part in key.split("."):
        if not isinstance(plain, dict) or part not in plain:
            return False, None
        plain = plain[part]
    return True, plain


def _check_classes(data: dict[str, Any]) -> None:
    """Checks foreground and background where the config (or a look at a folder) tells the classes."""
    if "foreground" not in data:
        return
    classes: Sequence[str] | None = data.get("classes")
    if classes is not None:
        check_names(classes)
    if "means" in data:
        classes = [str(i) for i in range(len(data["means"]))]
    elif "root" in data:
        classes = check_folder(root_folder(data["root"]))
    if classes is not None:
        split_classes(data["foreground"], data.get("background"), classes)
