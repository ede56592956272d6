"""Plots the figures of a run when it ends."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.cli.progress import PLOTTED_BY_SWEEP
from attnmosaic.core.errors import not_among
from attnmosaic.plotting import run
from attnmosaic.plotting.run import FIGURES, MAIN, RUN_FORMATS
from attnmosaic.plotting.style import FORMATS

log = logging.getLogger(__name__)


class RunPictures(pl.Callback):
    """Plots figures of a run after its last evaluation, from the files of earlier callbacks.

    See `attnmosaic.plotting.run.draw_run`; ``python -m attnmosaic.draw`` plots all figures. Errors are logged. A sweep
    on this machine plots the figures of its jobs itself, after its last job.

    Args:
        folder: the run's folder.
        formats: file formats of the figures: png, pdf, svg.
        figures: ``main`` for the figures that a user looks at first; ``all`` for all figures and the animation.

    Attributes:
        some_missing: whether this callback has plotted the main figures only.

    Raises:
        UserError: a format, or the value of `figures`, is unknown.
    """

    def __init__(self, folder: str | Path, formats: str | Sequence[str] = RUN_FORMATS, figures: str = MAIN) -> None:
        self.folder = Path(folder)
        self.formats = (formats,) if isinstance(formats, str) else tuple(formats)
        self.figures = figures
        self.some_missing = False
        for form in self.formats:
            if form not in FORMATS:
                raise not_among("callbacks.pictures.formats", form, FORMATS)
        if figures not in FIGURES:
            raise not_among("callbacks.pictures.figures", figures, FIGURES)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING or not trainer.is_global_zero:
            return
        # The sweep does not know how a subclass plots, so a subclass plots in the job itself.
        if PLOTTED_BY_SWEEP in os.environ and type(self) is RunPictures:
            return
        try:
            run.draw_run(self.folder, self.formats, self.figures)
            self.some_missing = self.figures == MAIN
        except Exception:  # a failed picture must not end the run
            log.warning("the figures could not be plotted", exc_info=True)


def some_figures_missing(trainer: pl.Trainer) -> bool:
    """Returns whether a run has plotted its main figures only, so that a command can plot the others."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, RunPictures) and callback.some_missing for callback in callbacks)
