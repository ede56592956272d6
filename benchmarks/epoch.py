"""Measures where the time of a 2-D epoch goes: ``python -m benchmarks.epoch`` prints milliseconds per epoch by part."""

import contextlib
import logging
import warnings

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from attnmosaic.callbacks.attention_gradients import AlphaGradients
from attnmosaic.callbacks.checkpoints import CycleCheckpoint, LastCheckpoint
from attnmosaic.callbacks.csv_tables import RunTables
from attnmosaic.callbacks.diagnosis import Diagnosis
from attnmosaic.callbacks.eta import Pace
from attnmosaic.callbacks.snapshots import MosaicRecord
from attnmosaic.callbacks.tensorboard import Dashboards
from attnmosaic.config.schema import PRECISIONS
from attnmosaic.core.text import use_substitutes
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.sampler import row_loader
from attnmosaic.training.factory import build_module
from attnmosaic.training.runtime import job_globals
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import Steps
from attnmosaic.training.trainer import NoProfiler, build_trainer
from benchmarks.project import Stopwatch, configure, timed
from benchmarks.small import EPOCHS, EVERY, TINY, TINY_EPOCHS

PARTS: dict[str, dict[type, tuple[str, ...]]] = {
    "optimizer steps": {Steps: ("__call__",)},
    "metrics of the epoch's steps": {StagewiseModule: ("_finish_epoch",)},
    "evaluation of three splits, every fifth epoch": {StagewiseModule: ("validation_step", "on_validation")},
    "gradient curve": {AlphaGradients: ("on_train_epoch", "on_train_start")},
    "predictions of 16 mosaics": {MosaicRecord: ("on_train_epoch", "on_train_start", "on_validation")},
    "TensorBoard: pictures, histograms": {Dashboards: ("on_train", "on_validation")},
    "tables": {RunTables: ("on_train", "on_validation")},
    "checkpoints": {LastCheckpoint: ("on_train",), CycleCheckpoint: ("on_train",)},
    "findings and time left": {Diagnosis: ("on_train", "on_validation"), Pace: ("on_train",)},
}
"""Methods, by class, that do the work of each part. Scalars for TensorBoard count where they are logged."""

REST = "Lightning, its set-up, and all else"


def measure(*overrides: str) -> dict[str, float]:
    """Trains a 2-D run on one thread and returns the milliseconds per epoch of each part, and of the whole training."""
    config = configure("experiment=gaussian", "progress=quiet", *overrides, log=True)
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.enter_context(job_globals(0, 1, "highest"))
        data: MosaicDataModule = instantiate(config["data"], _convert_="all")
        data.setup()
        module, trainer = build_module(config, data), build_trainer(config, PRECISIONS[config["precision"]])
        watches = {part: stack.enter_context(Stopwatch(methods)) for part, methods in PARTS.items()}
        whole = timed(torch.device("cpu"), lambda: trainer.fit(module, datamodule=data))
    seconds = {part: watch.seconds for part, watch in watches.items()}
    seconds |= {REST: whole - sum(seconds.values()), "whole": whole}
    return {part: 1e3 * value / config["schedule"]["epochs"] for part, value in seconds.items()}


class Empty(pl.LightningModule):
    """Does nothing in any step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, *_: object) -> None: ...

    def validation_step(self, *_: object, dataloader_idx: int = 0) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning_alone(callbacks: int = 11) -> float:
    """Returns the milliseconds per epoch of Lightning with callbacks that do nothing, one batch and three splits."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=TINY_EPOCHS, check_val_every_n_epoch=EVERY, logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, profiler=NoProfiler(),
        callbacks=[type(f"Nothing{n}", (pl.Callback,), {})() for n in range(callbacks)],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = timed(
            torch.device("cpu"), lambda: trainer.fit(Empty(), row_loader(1, 1), [row_loader(1, 1) for _ in range(3)])
        )
    return 1e3 * seconds / TINY_EPOCHS


def main() -> None:
    """Runs the command line."""
    use_substitutes()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    measure(f"schedule.epochs={EPOCHS}")  # a first run imports and prepares
    runs = {
        "default, 12 steps": measure(f"schedule.epochs={EPOCHS}"),
        "one step": measure(*TINY, f"schedule.epochs={TINY_EPOCHS}"),
    }
    table = Table(title="milliseconds per epoch", title_justify="left")
    for column in ("part", *runs):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in (*PARTS, REST, "whole"):
        table.add_row(part, *(f"{times[part]:.2f}" for times in runs.values()))
    console = Console(width=110)
    console.print(table)
    console.print(f"Lightning alone, with as many callbacks that do nothing: {lightning_alone():.2f}")
    few = ("callbacks.gradients=null", "callbacks.record=null", "callbacks.dashboards=null")
    whole = measure(*TINY, *few, f"schedule.epochs={TINY_EPOCHS}")["whole"]
    console.print(f"one step an epoch, with {' '.join(few)}: {whole:.2f}")


if __name__ == "__main__":
    main()
