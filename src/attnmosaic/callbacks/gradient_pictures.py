"""Document 000's plots, and What's decision regions for 2-D points, drawn when a run ends."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from attnmosaic.callbacks.pictures import BLUE, GREEN, ORANGE, RED
from attnmosaic.training.module import StagewiseModule
from attnmosaic.training.schedule import Stage

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn, not before
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's, as those of `pictures`; the markers tell classes apart in grey.
CLASS_STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), ("#CC79A7", "D"), ("#56B4E9", "v"), (RED, "P"))
SPLITS_DRAWN = ("train", "held_out")


class GradientPictures(pl.Callback):
    """Draws ``gradients.png``, ``loss.png`` and, where patches are 2-D points, ``regions.png``.

    The first two are document 000's plots, drawn from ``gradients.csv`` and ``metrics.csv``; each is left out where
    its table is not there. See `draw_gradients`, `draw_loss` and `draw_regions`.

    Args:
        folder: the run's folder, where the tables are and the pictures go.
        mosaics: how many mosaics of a split to show in ``regions.png``, at most.
    """

    def __init__(self, folder: str | Path, mosaics: int = 1000) -> None:
        self.folder = Path(folder)
        self.mosaics = mosaics

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StagewiseModule)
        if not trainer.is_global_zero:
            return
        drawn: dict[str, Callable[[], Figure]] = {}
        if (self.folder / "gradients.csv").exists():
            drawn["gradients"] = lambda: draw_gradients(self.folder)
        if (self.folder / "metrics.csv").exists():
            drawn["loss"] = lambda: draw_loss(self.folder)
        if pl_module.mosaics["train"].pool.patch_shape == (2,):
            drawn["regions"] = lambda: draw_regions(pl_module, self.mosaics)
        for name, draw in drawn.items():
            try:
                draw().savefig(self.folder / f"{name}.png", dpi=150)
            except Exception:  # a picture is not worth a run
                log.warning("%s.png could not be drawn", name, exc_info=True)


def draw_gradients(folder: Path) -> "Figure":
    """Draws document 000's first plot: the two mean gradients against epochs, Where's stages shaded.

    A second panel has their sizes on a logarithmic scale: the first epochs' dwarf those that follow.

    Args:
        folder: holds ``gradients.csv``.
    """
    rows = _read(folder / "gradients.csv")
    figure, (axes, sizes) = _curves(rows, 2)
    epochs = [int(row["epoch"]) for row in rows]
    axes.axhline(0, color="black", linewidth=0.8)
    for side, label, color, line in (
        ("foreground", "foreground patch", GREEN, "-"),
        ("background", "background patches, their sum", RED, "--"),
    ):
        values = [float(row[side]) for row in rows]
        axes.plot(epochs, values, line, color=color, label=label, linewidth=1.8)
        sizes.plot(epochs, [abs(value) for value in values], line, color=color, linewidth=1.8)
    axes.set(
        title="Gradient of the loss with respect to the attention weights",
        ylabel="mean over the training mosaics\n(below 0: more weight, less loss)",
    )
    sizes.set(title="Its size, without the sign", yscale="log")
    _legend(figure, axes, rows)
    return figure


def draw_loss(folder: Path) -> "Figure":
    """Draws document 000's second plot: the training loss against epochs, Where's stages shaded.

    Args:
        folder: holds ``metrics.csv``.
    """
    rows = _read(folder / "metrics.csv")
    figure, (axes,) = _curves(rows, 1)
    for column, label, style in (
        ("running/loss", "during the epoch", {"color": BLUE, "linewidth": 1.8}),
        ("train/loss", "after it, all training mosaics", {"color": ORANGE, "marker": "o", "linestyle": "none"}),
    ):
        measured = [(int(row["epoch"]), float(row[column])) for row in rows if row[column]]
        if measured:
            axes.plot(*zip(*measured, strict=True), label=label, **style)
    axes.set(title="Training loss", ylabel="loss, mean over mosaics")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    _legend(figure, axes, rows)
    return figure


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _curves(rows: list[dict[str, str]], panels: int) -> tuple["Figure", list["Axes"]]:
    """Returns panels over epochs; each epoch in which Where alone learned is shaded up to the point that it led to."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5 * panels, 4), layout="constrained")
    several: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in several:
        for row in rows:
            if row["stage"] == Stage.WHERE.name.lower():
                axes.axvspan(int(row["epoch"]) - 1, int(row["epoch"]), color="0.92", linewidth=0)
        axes.set(xlabel="epoch", xlim=(0, int(rows[-1]["epoch"])))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return figure, several


def _legend(figure: "Figure", axes: "Axes", rows: list[dict[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles, _ = axes.get_legend_handles_labels()
    if Stage.WHERE.name.lower() in {row["stage"] for row in rows}:
        handles.append(Patch(color="0.92", label="Where learns"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def draw_regions(module: StagewiseModule, n: int) -> "Figure":
    """Draws which class What sees in each place of the plane, and the first mosaics' aggregates over it.

    One panel for training mosaics, one for held-out ones. The plane is tinted by What's prediction; aggregates
    have the colour and marker of their true class, so one on another's tint is predicted wrongly. The base points of
    the pool lie faintly below.

    Args:
        module: patches are 2-D points.
        n: mosaics of each split, at most.
    """
    from matplotlib.colors import ListedColormap, to_rgb
    from matplotlib.figure import Figure

    names = module.mosaics["train"].foreground_classes
    styles = [CLASS_STYLES[i % len(CLASS_STYLES)] for i in range(len(names))]
    extent = _extent([module.mosaics[split].pool.patches for split in SPLITS_DRAWN])
    tints = ListedColormap([tuple(0.75 + 0.25 * part for part in to_rgb(color)) for color, _ in styles])
    regions = _regions(module, extent)
    module.frozen_where.clear()

    figure = Figure(figsize=(12, 6), layout="constrained")
    panels: Any = figure.subplots(1, len(SPLITS_DRAWN), sharex=True, sharey=True)
    for axes, split in zip(panels, SPLITS_DRAWN, strict=True):
        data = module.mosaics[split]
        axes.imshow(regions, extent=extent, origin="lower", cmap=tints, vmin=0, vmax=len(names) - 1, aspect="auto")
        points, of = data.pool.patches.double().cpu(), data.pool.labels.cpu()
        label_of = [data.pool.classes.index(name) for name in names]
        shown = torch.arange(min(n, len(data)), device=data.index.device)
        aggregates = module.frozen_where.attend(split, shown)[1].double().cpu()
        truth = data.label[shown].cpu()
        rest = ~torch.isin(of, torch.tensor(label_of))
        axes.scatter(*points[rest].T, s=6, color="0.5", alpha=0.5, linewidths=0)
        for label, (color, _) in enumerate(styles):
            axes.scatter(*points[of == label_of[label]].T, s=6, color=color, alpha=0.5, linewidths=0)
        for part in torch.arange(len(shown)).split(50):  # in turns, so that no class hides the others
            for label, (color, marker) in enumerate(styles):
                ours = aggregates[part][truth[part] == label]
                axes.scatter(*ours.T, s=26, color=color, marker=marker, edgecolors="black", linewidths=0.4)
        title = {"train": "{:,} training mosaics", "held_out": "{:,} held-out mosaics"}[split]
        axes.set(title=title.format(len(shown)), xlabel="x", xlim=extent[:2], ylim=extent[2:])
    panels[0].set_ylabel("y")
    figure.suptitle("What's decision regions (tinted by class), and where the weighted sums of mosaics lie in them")
    figure.legend(handles=_key(names, styles), loc="outside lower center", ncols=len(names) + 1, frameon=False)
    return figure


def _key(names: tuple[str, ...], styles: list[tuple[str, str]]) -> list["Line2D"]:
    """Returns the legend's entries: a column of two for each class, one for the background."""
    from matplotlib.lines import Line2D

    def entry(label: str, color: str, marker: str, size: float, edge: float) -> Line2D:
        style = {"markersize": size, "markeredgewidth": edge, "markeredgecolor": "black"}
        return Line2D([], [], color=color, marker=marker, linestyle="none", label=label, **style)  # type: ignore[arg-type]

    key = []
    for name, (color, marker) in zip(names, styles, strict=True):
        key.append(entry(f"weighted sums, true class {name}", color, marker, 6, 0.4))
        key.append(entry(f"base points of class {name}", color, "o", 3.5, 0))
    return [*key, entry("background base points", "0.5", "o", 3.5, 0)]


def _extent(pools: list[Tensor]) -> tuple[float, float, float, float]:
    """Returns (left, right, bottom, top) around all points, with a margin."""
    points = torch.cat([pool.double().cpu() for pool in pools])
    low, high = points.min(dim=0).values, points.max(dim=0).values
    margin = 0.05 * (high - low).clamp_min(1e-6)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


@torch.no_grad()
def _regions(module: StagewiseModule, extent: tuple[float, float, float, float], side: int = 400) -> np.ndarray:
    """Returns What's prediction in the middle of each of side x side cells, ``[y, x]``."""
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    left, right, bottom, top = extent
    y, x = torch.meshgrid(bottom + (top - bottom) * middle, left + (right - left) * middle, indexing="ij")
    what, data = module.pair.what, module.mosaics["train"].pool.patches
    training = what.training
    what.eval()
    logits = what(torch.stack([x, y], dim=-1).view(-1, 2).to(data))
    what.train(training)
    return logits.argmax(dim=1).view(side, side).cpu().numpy()
