"""Plots heat maps of reproduced tables, and confusion matrices of two outputs."""

import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.plotting.style import COLUMN, DEFAULT_FORMATS, PAGE, PlottedFiles, draw_all
from attnmosaic.runs.rows import Confusion, curve
from attnmosaic.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attnmosaic.tables.table import Table


def confusions(run: Run, split: str = "held_out") -> list[Confusion]:
    """Returns the confusion matrices of a run's outputs on a split; empty if there are none."""
    return [matrix for output in run.outputs if (matrix := run.confusion(output, split))]


def draw_confusion(run: Run, split: str = "held_out") -> "Figure":
    """Plots the confusion matrices of both outputs; each row holds the fractions of one true value, in percent."""
    from matplotlib.figure import Figure

    matrices = confusions(run, split)
    figure = Figure(figsize=(PAGE, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, len(matrices), squeeze=False, width_ratios=[1, 1.6][: len(matrices)])[0]
    for axes, confusion in zip(panels, matrices, strict=True):
        output, values, fractions = confusion.output, confusion.values, np.array(confusion.fractions)
        image = axes.imshow(fractions, vmin=0, vmax=1)
        images = f"{confusion.examples:,} {split.replace('_', '-')} images"
        axes.set(title=f"{output}: {confusion.accuracy:.2%} right ({images})", aspect="equal", anchor="N")
        axes.set(xlabel=f"predicted {output}", ylabel=f"true {output}")
        size = 4.5 if len(values) > 20 else 6.5
        rotation = 90 if len(values) > 20 else 0
        axes.set_xticks(range(len(values)), values, fontsize=size, rotation=rotation)
        axes.set_yticks(range(len(values)), values, fontsize=size)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if len(values) <= 20:
            number_cells(axes, image, 100 * fractions, "{:.0f}", 6 if len(values) <= 10 else 5, at_least=0.5)
    bar = figure.colorbar(image, ax=panels, shrink=0.4, aspect=40, location="bottom")
    bar.set_label("fraction of the images with this true value (numbers in cells: percent)")
    bar.outline.set_visible(False)
    return figure


def number_cells(
    axes: "Axes", image: Any, values: np.ndarray, form: str, fontsize: float, at_least: float = -np.inf
) -> None:
    """Writes values into the cells of a heat map, black or white for contrast; skips values that are not finite."""
    shades = image.to_rgba(image.get_array())[..., :3] @ np.array([0.299, 0.587, 0.114])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and value >= at_least:
            color = "white" if shades[row, column] < 0.5 else "black"
            axes.text(column, row, form.format(value), ha="center", va="center", color=color, fontsize=fontsize)


def draw_tables(tables: Iterable["Table"], folder: Path, formats: Iterable[str] = DEFAULT_FORMATS) -> PlottedFiles:
    """Plots and saves ``<table>_heat_map`` and ``<table>_training_loss`` of tables that have matrices and runs."""
    drawn = PlottedFiles([], [])
    for table in tables:
        if not table.matrices or not table.measured:
            continue
        key = table.published.key
        figures = {
            f"{key}_heat_map": partial(draw_matrix, table),
            f"{key}_training_loss": partial(draw_losses, table),
        }
        done = draw_all(figures, folder, formats, smoke=any(row.smoke for row in table.rows))
        drawn.paths.extend(done.paths)
        drawn.failed.extend(done.failed)
    return drawn


def draw_matrix(table: "Table") -> "Figure":
    """Plots published values, reproduced means and their difference as three heat maps, in percent."""
    from matplotlib.figure import Figure

    views = {view.title: np.array([values for _, values in view.rows], dtype=float) for view in table.matrices}
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    panels: Any = figure.subplots(1, 3, sharey=True)
    # Both colour maps are readable for colour-blind readers and in grey.
    maps = (
        ("published", views["published"], "cividis", (0.3, 1.0), "{:.0f}"),
        ("reproduced, mean over seeds", views["reproduced"], "cividis", (0.3, 1.0), "{:.0f}"),
        ("reproduced minus published", views["difference"], "BrBG", (-0.2, 0.2), "{:+.0f}"),
    )
    for axes, (title, values, colors, (low, high), form) in zip(panels, maps, strict=True):
        image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        number_cells(axes, image, 100 * values, form, 5.5)
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, shrink=0.9)
        bar.outline.set_visible(False)
        axes.set(title=title, xlabel="measured on")
        names = [name.replace(" ", "\n") for name in table.published.columns]
        axes.set_xticks(range(len(names)), names, fontsize=6)
        if not np.isfinite(values).any():
            axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center", color="0.45")
        axes.set_yticks(range(len(table.rows)), [table.label(row) for row in table.rows])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("trained on")
    figure.suptitle(f"{table.published.title}; in percent", fontsize=7.5)
    return figure


def draw_losses(table: "Table") -> "Figure":
    """Plots the training loss of each row over epochs on a logarithmic scale, one line per run."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator

    figure = Figure(figsize=(COLUMN, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(table.rows):
        label: str | None = table.label(row)
        for run in row.runs:
            epochs, losses = curve(run.metrics, "running/loss")
            if not epochs:
                continue
            color = colormaps["viridis"](0.95 * i / max(1, len(table.rows) - 1))
            style = ("-", "--", "-.", ":")[i % 4]
            axes.plot(epochs, losses, color=color, linestyle=style, linewidth=1, label=label)
            label = None  # one legend entry per row
    axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_title(textwrap.fill(table.published.title, 52), fontsize=7)
    figure.legend(title="trained on", loc="outside lower center", ncols=3)
    return figure
