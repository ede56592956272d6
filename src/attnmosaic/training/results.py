"""Writes the final metrics of a run to its folder and to TensorBoard, and formats them as a table."""

import json
import math
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.box import SIMPLE
from rich.table import Table

import attnmosaic
from attnmosaic.config.identity import config_hash
from attnmosaic.core.console import render_text
from attnmosaic.core.errors import RunError
from attnmosaic.core.files import sync_files, write_atomically
from attnmosaic.runs.discovery import run_of
from attnmosaic.training.base import RunModule
from attnmosaic.training.tensorboard import hparams_summaries, hyperparameters
from attnmosaic.training.trainer import reason_of_end


def finish_run(config: dict[str, Any], trainer: pl.Trainer, module: RunModule) -> dict[str, float]:
    """Writes the final metrics, those of the trainer's last validation, and returns them.

    ``result.json`` is written last, because it marks the run as finished.

    Raises:
        RunError: a final metric is not finite.
    """
    metrics, folder = evaluation_of(module), Path(config["run_dir"])
    not_finite = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not_finite:
        name = not_finite[0]
        raise RunError(f"the final {name} is {metrics[name]}, so the final weights are unusable; try a smaller lr")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # With the names of the curves, at their last epoch, so that the HParams page adds no charts.
            logger.log_metrics(metrics, step=module.epochs_done)
            params, differ, shown = hyperparameters(config, run_of(folder))
            summaries = hparams_summaries(params, metrics, differ, shown)
            for summary in summaries if trainer.is_global_zero else ():
                logger.experiment.file_writer.add_summary(summary)
            logger.experiment.close()
    if trainer.is_global_zero:
        sync_files(folder)  # so that a power failure cannot leave a result without its tables
        write_atomically(folder / "result.json", json.dumps(_result(config, metrics, trainer, module), indent=2))
    return metrics


def evaluation_of(module: RunModule) -> dict[str, float]:
    """Returns the metrics of the module's last evaluation as ``{"<split>/<metric>": value}``."""
    return {name: value for name, value in module.epoch_metrics.items() if not name.startswith("running/")}


def _result(
    config: dict[str, Any], metrics: dict[str, float], trainer: pl.Trainer, module: RunModule
) -> dict[str, Any]:
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    return {
        "metrics": metrics,
        "name": config["name"],
        "scale": config["scale"],
        "epochs": trainer.current_epoch,
        "ended_early": reason_of_end(trainer, config["schedule"]["epochs"]),
        "warnings": list(module.findings),
        "seconds": round(timers[0].time_elapsed("train"), 3) if timers else None,
        "seed": config["seed"],
        "config_hash": config_hash(config),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({cpu_name()})",
        "processes": trainer.world_size,
        "convolutions": module.convolutions,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns versions of software that results can depend on, from the imported modules, which may be uninstalled."""
    return {
        "python": platform.python_version(),
        "attnmosaic": attnmosaic.__version__,
        "torch": str(torch.__version__),
        "pytorch-lightning": pl.__version__,  # type: ignore[attr-defined]
        "numpy": np.__version__,
    }


def cpu_name() -> str:
    """Returns the model of this machine's processor, or its architecture if the system does not report a model."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def final_table(metrics: Mapping[str, float], module: RunModule) -> str:
    """Returns the final metrics as a text table at most 80 characters wide, with one row for each split or view."""
    title = "SMOKE: few examples, few epochs, no result" if module.scale == "smoke" else None
    table = Table(title=title, caption=module.table_caption, caption_justify="left", box=SIMPLE, padding=0)
    table.add_column("split")
    for name in module.table_columns:
        table.add_column(name.upper() if name[0] == "f" and len(name) == 4 else name, justify="right")
    for split in dict.fromkeys(name.split("/")[0] for name in metrics):
        table.add_row(split, *(f"{metrics[f'{split}/{name}']:.4f}" for name in module.table_columns))
    return "\n" + "\n".join(line.rstrip() for line in render_text(table).splitlines()).strip("\n")
