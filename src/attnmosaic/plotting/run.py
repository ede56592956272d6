"""Plots every figure of a run from the files in its folder."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnmosaic.plotting import animation, curves, focus, heatmaps, mosaics, points
from attnmosaic.plotting.style import DEFAULT_FORMATS, PlottedFiles, draw_all
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import Run
from attnmosaic.runs.snapshots import RECORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def draw_run(folder: Path, formats: Iterable[str] = DEFAULT_FORMATS) -> PlottedFiles:
    """Plots each figure whose input files exist, and saves it in the run's folder.

    All pictures of a smoke run have a banner. A figure that cannot be plotted, and a file that cannot be read, is
    logged and skipped.

    Args:
        folder: the run's folder; the run can still be running.
        formats: file formats of the figures, from `attnmosaic.plotting.style.FORMATS`.
    """
    run = Run(folder)
    record = run.snapshots
    drawn = draw_all(figures_of(run), folder, formats, run.smoke)
    for name, reason in run.problems.items():
        log.warning("%s: %s", folder / name, reason)
    if RECORD in run.problems:
        drawn.failed.append("mosaics")
    if record is not None and animation.weights_change(record):
        try:
            drawn.paths.append(animation.draw_animation(folder / animation.NAME, record, run.stages, run.smoke))
        except Exception:  # a failed picture must not end the run
            log.warning("%s: %s could not be drawn", folder, animation.NAME, exc_info=True)
            drawn.failed.append("animation")
    return drawn


def figures_of(run: Run) -> dict[str, Callable[[], "Figure"]]:
    """Returns a function for each figure whose input files exist, by name."""
    figures: dict[str, Callable[[], Figure]] = {}
    if run.outputs and run.metrics:
        figures["accuracy"] = partial(curves.draw_outputs, run)
    if heatmaps.confusions(run):
        figures["confusion"] = partial(heatmaps.draw_confusion, run)
    if focus.focus_tables(run):
        figures["focus_vs_pred"] = partial(focus.draw_focus, run)
    if curve(run.metrics, "train/focus")[0]:
        figures["accuracy_vs_focus"] = partial(focus.draw_accuracy_vs_focus, run)
    if run.metrics:
        figures["loss"] = partial(curves.draw_loss, run)
    if run.rows("gradients"):
        figures["gradients"] = partial(curves.draw_gradients, run)
    record = run.snapshots
    if record is not None and record.plane is not None:
        figures["mosaics"] = partial(points.draw_points, record)
        figures["regions"] = partial(points.draw_regions, record)
    elif record is not None and any(group.is_image for group in record.final.values()):
        figures["mosaics"] = partial(mosaics.draw_mosaics, record)
        figures["classes"] = partial(mosaics.draw_classes, record)
    return figures
