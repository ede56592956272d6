"""Runs of the package, with the time of each epoch."""

import functools
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from attnmosaic.callbacks.attention_gradients import AlphaGradients
from attnmosaic.callbacks.csv_tables import RunTables
from attnmosaic.callbacks.figures import RunPictures
from attnmosaic.callbacks.snapshots import MosaicRecord
from attnmosaic.callbacks.tensorboard import Dashboards
from attnmosaic.config.resolution import resolve
from attnmosaic.config.schema import PRECISIONS, conf_dir, register
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool
from attnmosaic.training.factory import build_module
from attnmosaic.training.results import finish_run
from attnmosaic.training.tensorboard import EventLogger
from attnmosaic.training.trainer import build_trainer


class RandomImages(MosaicDataModule):
    """Random images in the number and size of CIFAR-10's training images; speed does not depend on their content.

    Args:
        images: number of images in the training pool, U.
        side: height and width of an image in pixels.
        **mosaics: see `MosaicDataModule`.
    """

    def __init__(self, *, images: int = 50_000, side: int = 32, **mosaics: Any) -> None:
        super().__init__(**mosaics)
        self.images = images
        self.side = side

    def load_pools(self) -> tuple[Pool, Pool]:
        def pool(rng: np.random.Generator, n: int) -> Pool:
            pixels = rng.integers(256, size=(n, self.side, self.side, 3), dtype=np.uint8)
            return Pool(torch.from_numpy(pixels), torch.arange(n) % 10, tuple("0123456789"))

        return pool(self.rng(10), self.images), pool(self.rng(11), 100)


IMAGES = (
    "experiment=stagewise", "data=digits", "data._target_=benchmarks.project.RandomImages", "~data.classes",
    "~data.mean", "~data.std", "~data.held_out_share", "data.test_mosaics=1", "data.held_out_mosaics=1",
)  # fmt: skip
"""Overrides for the run of the stage-wise study, on random images."""

POINTS = ("experiment=gaussian", "data.train_mosaics=30000", "data.test_mosaics=1", "data.held_out_mosaics=1")
"""Overrides for the default 2-D run, with as many mosaics as the runs of the stage-wise study."""


class EpochTimes(pl.Callback):
    """Measures the seconds of each epoch by stage; the first epoch of a stage includes the stage's preparations."""

    def __init__(self) -> None:
        self.first: dict[str, list[float]] = defaultdict(list)
        self.others: dict[str, list[float]] = defaultdict(list)
        self._stage = ""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        finish(pl_module.device)
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        finish(pl_module.device)
        stage = pl_module.stage.name.lower()
        (self.others if stage == self._stage else self.first)[stage].append(time.perf_counter() - self._begin)
        self._stage = stage

    def cycle(self, k: int) -> float:
        """Returns the seconds of k epochs of What and k epochs of Where."""
        return sum(np.median(self.first[s]) + (k - 1) * np.median(self.others[s]) for s in ("what", "where"))


def finish(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Returns the seconds of a function call, to the end of its work on the device."""
    finish(device)
    begin = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - begin


def configure(*overrides: str, log: bool = False) -> dict[str, Any]:
    """Returns the resolved config of a run; without ``log`` it has no logger, evaluations, snapshots and figures."""
    register()
    callbacks = ("record", "gradients", "dashboards", "pictures")
    quiet = ("logger=none", "trainer.check_val_every_n_epoch=100000", *(f"callbacks.{name}=null" for name in callbacks))
    quiet = () if log else quiet
    folder = tempfile.mkdtemp()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return resolve(compose("train", [*overrides, *quiet, f"run_dir={folder}"]))


def train(*overrides: str, data: MosaicDataModule | None = None) -> tuple[EpochTimes, pl.Trainer]:
    """Trains in the same way as `attnmosaic.train`, with checkpoints and tables; returns the times of the epochs.

    Args:
        *overrides: overrides of the config.
        data: data module; None to build it from the config.
    """
    config = configure(*overrides)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    config["callbacks"]["progress"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if data is None:
            data = make_data(*overrides)
        module = build_module(config, data)
        trainer = build_trainer(config, PRECISIONS[config["precision"]])
        times = EpochTimes()
        trainer.callbacks.append(times)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
    return times, trainer


class Stopwatch:
    """Measures the seconds spent in methods of some classes; nested calls of these methods count once.

    Args:
        methods: method names, or the beginnings of method names, by class.
    """

    def __init__(self, methods: Mapping[type, tuple[str, ...]]) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._originals = {
            (kind, name): getattr(kind, name)
            for kind, starts in methods.items()
            for name in dir(kind)
            if name.startswith(starts)
        }

    def __enter__(self) -> "Stopwatch":
        for (kind, name), method in self._originals.items():
            setattr(kind, name, self._timed(method))
        return self

    def __exit__(self, *_: object) -> None:
        for (kind, name), method in self._originals.items():
            if name in vars(kind):
                setattr(kind, name, method)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._depth += 1
            begin = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - begin

        return timed


LOGGING: dict[type, tuple[str, ...]] = {
    AlphaGradients: ("on_train", "on_validation"),
    Dashboards: ("on_train", "on_validation"),
    MosaicRecord: ("on_train", "on_validation"),
    RunPictures: ("on_train", "on_validation"),
    RunTables: ("on_train", "on_validation"),
    EventLogger: ("log_metrics", "finalize"),
}
"""Methods, by class, with which a default run writes and draws everything except checkpoints."""


TESTED = ("data.test_mosaics=10000", "data.held_out_mosaics=10000")
"""Overrides for as many test mosaics as in the run of the stage-wise study."""


def logging_of_a_run() -> tuple[float, float]:
    """Returns the seconds of a default CIFAR run, and the seconds of them that logging and drawing take.

    Only one cycle of stages is run, with its evaluations; its times are multiplied by the run's number of cycles.
    """
    cycles = 18
    config = configure(*IMAGES, *TESTED, "schedule.epochs=10", log=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    config["callbacks"]["progress"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = instantiate(config["data"], _convert_="all")
        data.setup()
        module = build_module(config, data)
        trainer = build_trainer(config, PRECISIONS[config["precision"]])
        with Stopwatch(LOGGING) as training:
            begin = time.perf_counter()
            trainer.fit(module, datamodule=data)
            cycle = time.perf_counter() - begin
        with Stopwatch(LOGGING) as end:
            trainer.validate(module, datamodule=data, verbose=False)
            finish_run(config, trainer, module)
    return cycles * cycle + end.seconds, cycles * training.seconds + end.seconds


def make_data(*overrides: str) -> MosaicDataModule:
    """Builds the data module of a config and samples its mosaics."""
    data: MosaicDataModule = instantiate(configure(*overrides)["data"], _convert_="all")
    data.setup()
    return data


def validate(trainer: pl.Trainer) -> float:
    """Returns the seconds of a complete evaluation, including the set-up of Lightning's loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finish(trainer.strategy.root_device)
        begin = time.perf_counter()
        trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
        finish(trainer.strategy.root_device)
        return time.perf_counter() - begin
