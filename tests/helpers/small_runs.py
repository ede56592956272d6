"""Builds and trains modules in the same way as `attnmosaic.train.train`, but without files."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from attnmosaic.callbacks.checkpoints import CycleCheckpoint
from attnmosaic.config.resolution import resolve
from attnmosaic.config.schema import PRECISIONS, conf_dir, register
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training.factory import build_module
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.trainer import build_trainer


def build(config: DictConfig) -> tuple[StagewiseModule, MosaicDataModule]:
    """Builds the module and the data module of a config."""
    resolved = resolve(config)
    data: MosaicDataModule = instantiate(resolved["data"], _convert_="all")
    data.setup()
    return build_module(resolved, data), data


def fit(
    config: DictConfig, *callbacks: pl.Callback, module: StagewiseModule | None = None, **trainer: Any
) -> StagewiseModule:
    """Trains a module, by default the config's, and returns it."""
    built, data = build(config)
    module = module or built
    fitted = build_trainer(config, PRECISIONS[config.precision])
    fitted.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    fitted.fit(module, datamodule=data, **trainer)
    return module


def train_in(folder: Path, *overrides: str) -> None:
    """Trains in a folder, with all files; for fixtures that several tests share."""
    from attnmosaic.train import train

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train(compose("train", [*overrides, f"run_dir={folder}"]))


class AfterEpoch(pl.Callback):
    """Calls a function with the epoch, counted from 0, and the module after each epoch."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.call(trainer.current_epoch, pl_module)


class EveryEpoch(CycleCheckpoint):
    """Saves a checkpoint after every epoch: ``epoch-0001.ckpt``, ``epoch-0002.ckpt`` and so on."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch + 1:04}.ckpt")


class OtherNet(ConvNet):
    """A network of a user that is derived from `ConvNet`, and could compute something else."""


class Normed(nn.Module):
    """A network with batch normalization, which has running statistics, and dropout."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_shape[0], 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


NORMED = [
    f"{override}"
    for n in ("where", "what")
    for override in (f"~model.{n}.hidden", f"model.{n}._target_=helpers.small_runs.Normed")
]
"""Overrides that make both networks `Normed`."""
