"""Plots the figures of a run when it ends."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.core.errors import not_among
from attnmosaic.plotting.style import DEFAULT_FORMATS, FORMATS

log = logging.getLogger(__name__)


class RunPictures(pl.Callback):
    """Plots all figures of a run after its last evaluation, from the files of earlier callbacks.

    See `attnmosaic.plotting.run.draw_run`; ``python -m attnmosaic.draw`` plots the figures again. Errors are logged.

    Args:
        folder: the run's folder.
        formats: file formats of the figures: png, pdf, svg.

    Raises:
        UserError: a format is unknown.
    """

    def __init__(self, folder: str | Path, formats: str | Sequence[str] = DEFAULT_FORMATS) -> None:
        self.folder = Path(folder)
        self.formats = (formats,) if isinstance(formats, str) else tuple(formats)
        for form in self.formats:
            if form not in FORMATS:
                raise not_among("callbacks.pictures.formats", form, FORMATS)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not trainer.is_global_zero:
            return
        try:
            from attnmosaic.plotting.run import draw_run

            draw_run(self.folder, self.formats)
        except Exception:  # a failed picture must not end the run
            log.warning("the figures could not be plotted", exc_info=True)
