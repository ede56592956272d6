"""Schemas of the commands' configs, and values that follow from a config: networks, metrics, processes, folders."""

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
"""Values of ``precision`` and Lightning's names for them."""

PROGRESS = ("auto", "live", "lines", "quiet")
"""Values of ``progress``: how a run or a sweep shows its progress, see `attnmosaic.cli.progress`."""

METRICS = (
    "loss", "accuracy", "focus", "ftpt", "ffpt", "ftpf", "ffpf", "confident", "foreground_weight", "entropy",
)  # fmt: skip
"""Metrics of a pair on each split, see `attnmosaic.metrics.focus.FocusMetrics`."""

PAIR = ("what", "where")
"""Names of the networks of a pair, in the order of the seeds of their initial weights."""


def networks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the networks that a run trains: a pair, or the network with two outputs."""
    return ("network",) if config["model"].get("network") else PAIR


def untrained_networks(config: Mapping[str, Any]) -> set[str]:
    """Returns the names of the networks that a run does not train; their settings have no effect."""
    return {*PAIR, "network"} - set(networks_of(config))


def metrics_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a run's metrics on each split."""
    return METRICS if networks_of(config) == PAIR else two_output_metrics(config["data"]["operation"])


def two_output_metrics(operation: str) -> tuple[str, ...]:
    """Returns the names of a two-output network's metrics on each split, see `TwoOutputMetrics`."""
    return ("loss", "digit_accuracy", f"{operation}_accuracy")


def processes_of(config: Mapping[str, Any]) -> int:
    """Returns the number of processes that train a run: one for each device with ``trainer=ddp``, otherwise one."""
    trainer = config["trainer"]
    devices = trainer.get("devices", 1) if trainer.get("strategy") == "ddp" else 1
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return max(1, devices) if isinstance(devices, int) else 1


def conf_dir() -> str:
    """Returns the folder ``conf``, which is inside the installed package or at the top of the repository."""
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
    # The default is an empty dict because OmegaConf cannot override keys inside null.
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
    """Schema of a run's config; ``conf/train.yaml`` explains its keys."""

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
    """Returns an empty section in which overrides can set any key without ``+``."""
    return OmegaConf.create({}, flags={"struct": False})


@dataclass
class EvaluateConfig:
    """Schema of an evaluation's config; ``conf/evaluate.yaml`` explains its keys."""

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
    """Schema of ``attnmosaic.explain``, predictions on a user's images; ``conf/explain.yaml`` explains its keys."""

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
    """Schema of ``attnmosaic.predict``, the prediction of one image; ``conf/predict.yaml`` explains its keys."""

    ckpt_path: str = MISSING
    image: str = MISSING
    number: int = MISSING
    invert: bool = False
    trust: Any = field(default_factory=list)


def register() -> None:
    """Registers the schemas and the resolvers with Hydra."""
    # The last part of an experiment's name: row1 for table1/row1.
    OmegaConf.register_new_resolver("row", lambda name: folder_name(name).rpartition("/")[2], replace=True)
    OmegaConf.register_new_resolver("folder", folder_name, replace=True)
    # An argument that a file of conf/ defines for its target; `with_scale` removes it if the target was replaced.
    OmegaConf.register_new_resolver("with", lambda target, value: _node(value), replace=True)
    OmegaConf.register_new_resolver("output_dir", output_dir, replace=True)
    OmegaConf.register_new_resolver("options", options, replace=True)
    OmegaConf.register_new_resolver("processes", processes, replace=True)
    schemas = {"train": TrainConfig, "evaluate": EvaluateConfig, "explain": ExplainConfig, "predict": PredictConfig}
    for name, schema in schemas.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema)


def _node(value: Any) -> Any:
    """Returns the value of a resolver in OmegaConf's form: a list or dict becomes a node."""
    return OmegaConf.create(value) if isinstance(value, (list, dict)) else value


def output_dir(default: str) -> str:
    """Returns the folder of Hydra's job, or the default without a job (in a notebook).

    When a config is only printed (``--cfg job --resolve``), it is the folder that a run would get.
    """
    if not HydraConfig.initialized():
        return default
    hydra: Any = HydraConfig.get()
    return str(hydra.run.dir if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir)


def processes(default: int) -> int:
    """Returns the number of processes that torchrun or srun has started for this run, or the default without them."""
    rank = launched_rank(os.environ)
    return default if rank is None else rank.count


def folder_name(name: object) -> str:
    """Returns a run's ``name`` as text after checking that it is a valid relative path of folders.

    Raises:
        UserError: the path is absolute, has ``..`` or characters that cannot be printed, or a part has over 200 bytes.
    """
    text = str(name)
    good = all(part.strip(" .") and len(part.encode(errors="replace")) <= 200 for part in text.split("/"))
    if not good or not text.isprintable() or "\\" in text:
        raise UserError(
            f"name: got {truncate(text, 80)!a}, needs a name that a folder can have, without '..' and without "
            "'/' at its beginning; type for example name=mine"
        )
    return text
