"""Marks what a smoke run wrote, so that it can never be taken for a result."""

import csv
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.training.base import RunModule

TEXT = "SMOKE RUN: no result"


class StampSmoke(pl.Callback):
    """After the last pass of a smoke run, adds a column to each of its tables and a banner to each of its pictures.

    Must come after the callbacks that write them. Other runs it leaves alone.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if pl_module.scale == "smoke" and trainer.state.fn != TrainerFn.FITTING and trainer.is_global_zero:
            for table in self.folder.glob("*.csv"):
                stamp_table(table)
            for picture in self.folder.glob("*.png"):
                stamp_picture(picture)


def stamp_table(path: Path) -> None:
    """Adds the column ``scale`` to a CSV file, smoke in every row."""
    with path.open(newline="") as file:
        heading, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*heading, "scale"], *([*row, "smoke"] for row in rows)])


def stamp_picture(path: Path) -> None:
    """Puts a banner over a picture."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.open(path).convert("RGB")
    size = max(12, min(picture.width // 16, picture.height // 8))
    stamped = Image.new("RGB", (picture.width, picture.height + 2 * size), "#D55E00")
    stamped.paste(picture, (0, 2 * size))
    middle = (picture.width // 2, size)
    ImageDraw.Draw(stamped).text(middle, TEXT, fill="white", anchor="mm", font=ImageFont.load_default(size))
    stamped.save(path)
