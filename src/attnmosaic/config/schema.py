"""The config's schema: its keys and their types, and the names that follow from them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import II, MISSING, OmegaConf

from attnmosaic.config.groups import options
from attnmosaic.core.errors import UserError
from attnmosaic.core.processes import launched_rank
from attnmosaic.core.text import truncate

PRECISIONS = {"float32": "32-true", "float64": "64-true", "bfloat16": "bf16-mixed"}
"""Our names of precisions and Lightning's."""

PROGRESS = ("auto", "live", "lines", "quiet")
"""How a run or a sweep shows its progress, see `attnmosaic.cli.progress`."""

METRICS = (
    "loss", "accuracy", "focus", "ftpt", "ffpt", "ftpf", "ffpf", "confident", "foreground_weight", "entropy",
)  # fmt: skip
"""The metrics of a pair on each split, see `attnmosaic.metrics.focus.FocusMetrics`."""

PAIR = ("what", "where")
"""The networks of a run on mosaics, in the order of the seeds of their first weights."""


def networks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the networks that a run trains: those of a pair, or the one with two outputs."""
    return ("network",) if config["model"].get("network") else PAIR


def other_networks(config: Mapping[str, Any]) -> set[str]:
    """Returns the names of the networks that a run does not train; their settings count for nothing."""
    return {*PAIR, "network"} - set(networks_of(config))


def metrics_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the metrics of a run on each split."""
    return METRICS if networks_of(config) == PAIR else two_output_metrics(config["data"]["operation"])


def two_output_metrics(operation: str) -> tuple[str, ...]:
    """Returns the metrics of a network with two outputs on each split, see `TwoOutputMetrics`."""
    return ("loss", "digit_accuracy", f"{operation}_accuracy")


def processes_of(config: Mapping[str, Any]) -> int:
    """Returns the number of processes that train a run: one for each device if the trainer's strategy is ddp."""
    trainer = config["trainer"]
    devices = trainer.get("devices", 1) if trainer.get("strategy") == "ddp" else 1
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return max(1, devices) if isinstance(devices, int) else 1


def conf_dir() -> str:
    """Returns the folder of configs: inside the installed package, or at the top of the repository."""
    inside = Path(str(files("attnmosaic"))) / "conf"
    return str(inside if inside.is_dir() else inside.parents[2] / "conf")


@dataclass
class Seed:
    all: int = 0
    data: int = II("seed.all")
    init: int = II("seed.all")
    order: int = II("seed.all")


@dataclass
class Lr:
    what: float = MISSING
    where: float = MISSING
    network: float = MISSING


@dataclass
class ScheduleConfig:
    order: str = MISSING
    k: int = MISSING
    epochs: int = MISSING


@dataclass
class OptimizerConfig:
    what: dict[str, Any] = MISSING
    where: dict[str, Any] = MISSING
    network: dict[str, Any] | None = field(default_factory=dict)
    clip_norm: float | None = None
    microbatches: int | None = None


@dataclass
class SchedulerConfig:
    what: Any = None
    where: Any = None
    network: Any = None


@dataclass
class ModelConfig:
    # Empty by default and not null: OmegaConf fails on overrides of keys below a null.
    where: dict[str, Any] | None = field(default_factory=dict)
    what: dict[str, Any] | None = field(default_factory=dict)
    network: dict[str, Any] | None = field(default_factory=dict)


@dataclass
class ComputeConfig:
    threads: int | None = None
    matmul_precision: str = "highest"
    engine: str = "auto"
    pool: str = "auto"
    cache_gb: float = 1.0


@dataclass
class PathsConfig:
    data: str = MISSING
    cache: str = MISSING
    output: str = MISSING


@dataclass
class TrainConfig:
    """The config of a run, explained in ``conf/train.yaml``."""

    name: str = MISSING
    seed: Seed = field(default_factory=Seed)
    lr: Lr = field(default_factory=Lr)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: dict[str, Any] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: dict[str, Any] = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    precision: str = "float32"
    scale: str = "full"
    at_most: dict[str, Any] = field(default_factory=dict)
    progress: str = "auto"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    ckpt_path: str | None = None
    optimized_metric: str = "test/accuracy"
    paths: PathsConfig = field(default_factory=PathsConfig)
    run_dir: str = MISSING


def _open() -> Any:
    """Returns an empty section that takes any key, without a ``+`` before it."""
    return OmegaConf.create({}, flags={"struct": False})


@dataclass
class EvaluateConfig:
    """The config of an evaluation, explained in ``conf/evaluate.yaml``."""

    name: str = MISSING
    ckpt_path: str = MISSING
    data: Any = field(default_factory=_open)
    trainer: dict[str, Any] = MISSING
    compute: Any = field(default_factory=_open)
    trust: Any = field(default_factory=list)
    paths: dict[str, Any] = field(default_factory=dict)
    run_dir: str = MISSING


@dataclass
class ExplainConfig:
    """The config of predictions on the user's images, explained in ``conf/explain.yaml``."""

    name: str = MISSING
    ckpt_path: str = MISSING
    images: str = MISSING
    grid: int | None = None
    device: str = "auto"
    trust: Any = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    run_dir: str = MISSING


@dataclass
class PredictConfig:
    """The config of the prediction of one image, explained in ``conf/predict.yaml``."""

    ckpt_path: str = MISSING
    image: str = MISSING
    number: int = MISSING
    invert: bool = False
    trust: Any = field(default_factory=list)


def register() -> None:
    """Registers the schemas and the resolvers with Hydra."""
    # The row of a table that an experiment is: row1 of table1/row1.
    OmegaConf.register_new_resolver("row", lambda name: folder_name(name).rpartition("/")[2], replace=True)
    OmegaConf.register_new_resolver("folder", folder_name, replace=True)
    # An argument that conf/ has for a target; `scaled` removes it where the target was replaced.
    OmegaConf.register_new_resolver("with", lambda target, value: _node(value), replace=True)
    OmegaConf.register_new_resolver("output_dir", output_dir, replace=True)
    OmegaConf.register_new_resolver("options", options, replace=True)
    OmegaConf.register_new_resolver("processes", processes, replace=True)
    schemas = {"train": TrainConfig, "evaluate": EvaluateConfig, "explain": ExplainConfig, "predict": PredictConfig}
    for name, schema in schemas.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema)


def _node(value: Any) -> Any:
    """Returns a resolver's value as OmegaConf requires it: as a node if it is a list or a dict."""
    return OmegaConf.create(value) if isinstance(value, (list, dict)) else value


def output_dir(default: str) -> str:
    """Returns the folder that Hydra gives to a job, or the default where there is no job (in a notebook).

    Where a config is only shown (``--cfg job --resolve``) it is the folder that a run would have.
    """
    if not HydraConfig.initialized():
        return default
    hydra: Any = HydraConfig.get()
    return str(hydra.run.dir if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir)


def processes(default: int) -> int:
    """Returns how many processes torchrun or srun has started for this run; a default where neither has."""
    started = launched_rank(os.environ)
    return default if started is None else started.count


def folder_name(name: object) -> str:
    """Returns a run's ``name``, which becomes a path of folders, if it leads downwards and its parts are names.

    Raises:
        UserError: it does not, or a part has more than 200 bytes.
    """
    text = str(name)
    good = all(part.strip(" .") and len(part.encode(errors="replace")) <= 200 for part in text.split("/"))
    if not good or not text.isprintable() or "\\" in text:
        raise UserError(
            f"name: got {truncate(text, 80)!a}, needs a name that a folder can have, without .. and not beginning with /; "
            "type for example name=mine"
        )
    return text
