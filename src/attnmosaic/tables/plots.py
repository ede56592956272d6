"""What a table shows at a glance: heat maps of a matrix, training losses of its rows. Read from the disk alone."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnmosaic.runs import Run
from attnmosaic.tables.reproduced import Reproduced

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn, not before
    from matplotlib.figure import Figure


def draw_tables(tables: Iterable[Reproduced], runs: Iterable[Run], folder: Path) -> list[Path]:
    """Draws ``<table>_heat_map.png`` and ``<table>_training_loss.png`` for each matrix, and returns their paths."""
    runs = list(runs)
    drawn = []
    for table in tables:
        if not table.published.matrix or not any(cell.values for row in table.rows for cell in row.cells):
            continue
        for name, figure in (("heat_map", draw_matrix(table)), ("training_loss", draw_losses(table, runs))):
            drawn.append(folder / f"{table.published.key}_{name}.png")
            figure.savefig(drawn[-1], dpi=150)
    return drawn


def draw_matrix(table: Reproduced) -> "Figure":
    """Draws published values, reproduced means and their difference as three heat maps."""
    import numpy as np
    from matplotlib.figure import Figure

    shown, rows = table.published.shown, table.rows
    published, means = np.full((2, len(rows), len(shown)), np.nan)
    for i, row in enumerate(rows):
        for cell in row.cells:
            j = shown.index(cell.metric)
            means[i, j] = np.nan if cell.mean is None else cell.mean
        for metric, value in table.published.rows.get(row.name, {}).items():
            published[i, shown.index(metric)] = value
    figure = Figure(figsize=(21, 5.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    # cividis is read alike by colour-blind readers and in grey; so is brown against blue-green.
    kinds = (
        ("published", published, "cividis", (0.3, 1.0), "{:.2f}"),
        ("reproduced", means, "cividis", (0.3, 1.0), "{:.2f}"),
        ("reproduced minus published", means - published, "BrBG", (-0.2, 0.2), "{:+.2f}"),
    )
    for axes, (title, values, colors, (low, high), form) in zip(panels, kinds, strict=True):
        image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set_title(title)
        axes.set(xlabel="measured on", ylabel="trained on")
        axes.set_xticks(range(len(shown)), table.published.columns)
        axes.set_yticks(range(len(rows)), [table.published.label(row.name) for row in rows])
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = image.cmap(image.norm(value))[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
                axes.text(j, i, form.format(value), ha="center", va="center", color="w" if dark else "k", fontsize=9)
    figure.suptitle(_headline(table))
    return figure


def draw_losses(table: Reproduced, runs: Iterable[Run]) -> "Figure":
    """Draws the training loss of each row against epochs, on a logarithmic scale, a line a run."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    order = [row.name for row in table.rows]
    labelled = set()
    for run in runs:
        name = (run.config or {}).get("name")
        losses = _losses(run.folder / "metrics.csv")
        if name not in order or not losses:
            continue
        place = order.index(name)
        axes.plot(
            range(1, len(losses) + 1),
            losses,
            color=colormaps["viridis"](0.95 * place / max(1, len(order) - 1)),
            linestyle=("-", "--", "-.", ":")[place % 4],
            linewidth=1.5,
            label=table.published.label(name) if name not in labelled else None,
        )
        labelled.add(name)
    axes.set(xlabel="epoch", ylabel="mean training loss", yscale="log", title=_headline(table))
    axes.legend(title="trained on", ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _headline(table: Reproduced) -> str:
    return f"{'SMOKE, NO RESULT: ' if any(row.smoke for row in table.rows) else ''}{table.published.title}"


def _losses(file: Path) -> list[float]:
    try:
        with file.open(newline="") as opened:
            return [float(row["running/loss"]) for row in csv.DictReader(opened) if row["running/loss"]]
    except OSError:
        return []
