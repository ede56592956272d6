"""Plots the figures of a run from the files in its folder."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnmosaic.plotting import animation, curves, focus, heatmaps, mosaics, points
from attnmosaic.plotting.style import DEFAULT_FORMATS, PlottedFiles, draw_all, without_garbage_collection
from attnmosaic.runs.discovery import last_written
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import METRICS_CSV, Run
from attnmosaic.runs.snapshots import RECORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MAIN, ALL = FIGURES = ("main", "all")
"""The figures that a user looks at first, or all figures and the animation."""

_MAIN_FIGURES = ("accuracy", "focus_vs_pred", "mosaics")

RUN_FORMATS = ("png",)
"""File formats that a run writes at its end without other settings."""


@without_garbage_collection()
def draw_run(folder: Path, formats: Iterable[str] = DEFAULT_FORMATS, figures: str = ALL) -> PlottedFiles:
    """Plots each figure whose input files exist, and saves it in the run's folder.

    All pictures of a smoke run have a banner. A figure that cannot be plotted, and a file that cannot be read, is
    logged and skipped.

    Args:
        folder: the run's folder; the run can still be running.
        formats: file formats of the figures, from `attnmosaic.plotting.style.FORMATS`.
        figures: ``main`` or ``all``, see `FIGURES`.
    """
    run = Run(folder)
    record = run.snapshots
    drawn = draw_all(figures_of(run, figures), folder, formats, run.smoke)
    for name, reason in run.problems.items():
        log.warning("%s: %s", folder / name, reason)
    if RECORD in run.problems:
        drawn.failed.append("mosaics")
    if record is not None and figures == ALL and animation.weights_change(record):
        try:
            drawn.paths.append(animation.draw_animation(folder / animation.NAME, record, run.stages, run.smoke))
        except Exception:  # a failed picture must not end the run
            log.warning("%s: %s could not be drawn", folder, animation.NAME, exc_info=True)
            drawn.failed.append("animation")
    return drawn


def up_to_date(run: Run, formats: Iterable[str], figures: str) -> bool:
    """Returns whether `draw_run` with the same arguments has plotted the run's final files."""
    files = [run.folder / f"{name}.{form}" for name in figures_of(run, figures) for form in formats]
    if figures == ALL and run.snapshots is not None and animation.weights_change(run.snapshots):
        files.append(run.folder / animation.NAME)
    measured = max(last_written(run.folder / name) for name in (METRICS_CSV, RECORD))
    return all(last_written(file) >= measured for file in files)


def figures_of(run: Run, which: str = ALL) -> dict[str, Callable[[], "Figure"]]:
    """Returns a function for each figure whose input files exist, by name; `which` is ``main`` or ``all``."""
    return {name: draw for name, draw in _all_figures(run).items() if which == ALL or name in _MAIN_FIGURES}


def _all_figures(run: Run) -> dict[str, Callable[[], "Figure"]]:
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
