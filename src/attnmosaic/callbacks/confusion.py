"""What two outputs take for what: as tables and as a picture."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.metrics.two_outputs import TwoOutputMetrics

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn, not before
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _matrices(metrics: TwoOutputMetrics) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """Returns for either output its counts (true in rows, predicted in columns) and the values of its classes."""
    counts = {"digit": metrics.digit, metrics.operation.name: metrics.result}
    values = {"digit": tuple(range(10)), metrics.operation.name: metrics.operation.values}
    return {name: (counts[name].cpu().numpy(), values[name]) for name in counts}


def write_confusion(folder: Path, split: str, metrics: TwoOutputMetrics, scale: str = "full") -> None:
    """Writes ``confusion_<output>_<split>.csv``: raw counts, a row for each true value, a column for each predicted."""
    for name, (counts, values) in _matrices(metrics).items():
        with (folder / f"confusion_{name}_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            stamp = [scale] if scale == "smoke" else []
            writer.writerow([f"true {name}", *values, *(["scale"] if stamp else [])])
            writer.writerows([value, *row, *stamp] for value, row in zip(values, counts.tolist(), strict=True))


def draw_confusion(metrics: TwoOutputMetrics) -> "Figure":
    """Draws both confusion matrices, each row as shares of its true value."""
    from matplotlib.figure import Figure

    matrices = _matrices(metrics)
    figure = Figure(figsize=(16, 9.5), layout="constrained")
    panels: Any = figure.subplots(1, 2, width_ratios=[1, 1.6])
    for axes, (name, (counts, values)) in zip(panels, matrices.items(), strict=True):
        # A value that does not occur has a row of zeros.
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        accuracy = counts.trace() / counts.sum()
        axes.set(title=f"{name}: {accuracy:.2%} right", xlabel=f"predicted {name}", ylabel=f"true {name}")
        ticks = np.arange(len(values))
        many = len(values) > 20
        axes.set_xticks(ticks, [*map(str, values)], fontsize=7 if many else 9, rotation=90 if many else 0)
        axes.set_yticks(ticks, [*map(str, values)], fontsize=7 if many else 9)
        _number_cells(axes, shares, fontsize=5.5 if many else 7 if len(values) > 10 else 9)
    figure.colorbar(image, ax=panels, label="share of the true value", shrink=0.6, location="bottom", aspect=50)
    figure.suptitle("held-out images: each row sums to 1; cells in percent", fontsize=10)
    return figure


def _number_cells(axes: "Axes", shares: np.ndarray, fontsize: float) -> None:
    """Writes the shares that are at least half a percent into their cells."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "black" if share > 0.5 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=fontsize)
