"""What two outputs take for what, from their confusion matrices on the disk."""

from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.drawing.curves import outputs_of
from attnmosaic.drawing.figures import PAGE
from attnmosaic.drawing.source import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def confusion_tables(source: Source, split: str = "held_out") -> dict[str, tuple[np.ndarray, list[str]]]:
    """Returns for each output its counts, true values in rows and predicted ones in columns, and those values."""
    tables = {}
    for output in outputs_of(source):
        if rows := source.rows(f"confusion_{output}_{split}"):
            values = [row[f"true {output}"] for row in rows]
            tables[output] = np.array([[int(row[value]) for value in values] for row in rows]), values
    return tables


def draw_confusion(source: Source, split: str = "held_out") -> "Figure":
    """Draws the confusion matrices of both outputs, each row as shares of its true value, in percent."""
    from matplotlib.figure import Figure

    tables = confusion_tables(source, split)
    figure = Figure(figsize=(PAGE, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, len(tables), squeeze=False, width_ratios=[1, 1.6][: len(tables)])[0]
    for axes, (output, (counts, values)) in zip(panels, tables.items(), strict=True):
        # A value that does not occur has a row of zeros.
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, vmin=0, vmax=1)
        right = counts.trace() / counts.sum()
        what = split.replace("_", "-")
        axes.set(title=f"{output}: {right:.2%} of {counts.sum():,} {what} images right", aspect="equal", anchor="N")
        axes.set(xlabel=f"predicted {output}", ylabel=f"true {output}")
        size = 4.5 if len(values) > 20 else 6.5
        turned = 90 if len(values) > 20 else 0
        axes.set_xticks(range(len(values)), values, fontsize=size, rotation=turned)
        axes.set_yticks(range(len(values)), values, fontsize=size)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if len(values) <= 20:
            number_cells(axes, image, 100 * shares, "{:.0f}", 6 if len(values) <= 10 else 5, at_least=0.5)
    bar = figure.colorbar(image, ax=panels, shrink=0.4, aspect=40, location="bottom")
    bar.set_label("share of the true value; in cells percent")
    bar.outline.set_visible(False)
    return figure


def number_cells(
    axes: "Axes", image: Any, values: np.ndarray, form: str, fontsize: float, at_least: float = -np.inf
) -> None:
    """Writes values into the cells of a heat map, dark on light and light on dark; what is no number is left out."""
    shades = image.to_rgba(image.get_array())[..., :3] @ np.array([0.299, 0.587, 0.114])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and value >= at_least:
            color = "white" if shades[row, column] < 0.5 else "black"
            axes.text(column, row, form.format(value), ha="center", va="center", color=color, fontsize=fontsize)
