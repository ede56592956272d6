"""Marks what a smoke run drew, so that it can never be taken for a result; its tables say so themselves."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.training.base import RunModule

TEXT = "SMOKE RUN: no result"
PICTURES = ("focus_vs_pred", "mosaics", "confusion", "gradients", "loss", "regions")


class StampSmoke(pl.Callback):
    """After the last pass of a smoke run, puts a banner over each of its pictures. Other runs it leaves alone.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        if pl_module.scale == "smoke" and trainer.state.fn != TrainerFn.FITTING and trainer.is_global_zero:
            for name in PICTURES:
                if (picture := self.folder / f"{name}.png").exists():
                    stamp_picture(picture)


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
