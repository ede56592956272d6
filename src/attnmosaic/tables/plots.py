"""What a table shows at a glance: heat maps of a matrix, training losses of its rows. Read from the disk alone."""

import csv
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnmosaic.tables.reproduced import Reproduced

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn, not before
    from matplotlib.figure import Figure


def draw_tables(tables: Iterable[Reproduced], folder: Path) -> list[Path]:
    """Draws ``<table>_heat_map.png`` and ``<table>_training_loss.png`` for each matrix, and returns their paths."""
    drawn = []
    for table in tables:
        if not table.published.matrix or not any(cell.values for row in table.rows for cell in row.cells):
            continue
        for name, figure in (("heat_map", draw_matrix(table)), ("training_loss", draw_losses(table))):
            drawn.append(folder / f"{table.published.key}_{name}.png")
            figure.savefig(drawn[-1], dpi=150)
    return drawn


def draw_matrix(table: Reproduced) -> "Figure":
    """Draws published values, reproduced means and their difference as three heat maps."""
    import numpy as np
    from matplotlib.figure import Figure

    shown, rows = table.published.shown, table.rows
    published, means, differences = np.full((3, len(rows), len(shown)), np.nan)
    for i, row in enumerate(rows):
        for cell in row.cells:
            for values, value in ((means, cell.mean), (differences, row.difference(cell))):
                values[i, shown.index(cell.metric)] = np.nan if value is None else value
        for metric, value in table.published.rows.get(row.name, {}).items():
            published[i, shown.index(metric)] = value
    figure = Figure(figsize=(21, 5.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    # cividis is read alike by colour-blind readers and in grey; so is brown against blue-green.
    kinds = (
        ("published", published, "cividis", (0.3, 1.0), "{:.2f}"),
        ("reproduced", means, "cividis", (0.3, 1.0), "{:.2f}"),
        ("reproduced minus published", differences, "BrBG", (-0.2, 0.2), "{:+.2f}"),
    )
    for axes, (title, values, colors, (low, high), form) in zip(panels, kinds, strict=True):
        image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set_title(title)
        axes.set(xlabel="measured on", ylabel="trained on")
        axes.set_xticks(range(len(shown)), table.published.columns)
        axes.set_yticks(range(len(rows)), [table.label(row) for row in rows])
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = image.cmap(image.norm(value))[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
                axes.text(j, i, form.format(value), ha="center", va="center", color="w" if dark else "k", fontsize=9)
    figure.suptitle(table.title)
    return figure


def draw_losses(table: Reproduced) -> "Figure":
    """Draws the training loss of each row against epochs, on a logarithmic scale, a line a run."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(table.rows):
        label: str | None = table.label(row)
        for run in row.runs:
            losses = _losses(run.folder / "metrics.csv")
            if not losses:
                continue
            axes.plot(
                range(1, len(losses) + 1),
                losses,
                color=colormaps["viridis"](0.95 * place / max(1, len(table.rows) - 1)),
                linestyle=("-", "--", "-.", ":")[place % 4],
                linewidth=1.5,
                label=label,
            )
            label = None  # one entry of the legend a row
    axes.set(xlabel="epoch", ylabel="mean training loss", yscale="log", title=textwrap.fill(table.title, 64))
    axes.legend(title="trained on", ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _losses(file: Path) -> list[float]:
    try:
        with file.open(newline="") as opened:
            return [float(row["running/loss"]) for row in csv.DictReader(opened) if row["running/loss"]]
    except OSError:
        return []
