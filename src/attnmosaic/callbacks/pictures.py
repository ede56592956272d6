"""Pictures of a run, drawn when it ends."""

import contextlib
import csv
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from attnmosaic.callbacks.confusion import draw_confusion
from attnmosaic.callbacks.tables import FOCUS_COLUMNS
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.training.module import StagewiseModule
from attnmosaic.training.schedule import Stage
from attnmosaic.training.two_outputs import TwoOutputModule

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn, not before
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by the line styles.
GREEN, BLUE, ORANGE, RED, GREY = "#009E73", "#0072B2", "#E69F00", "#D55E00", "#999999"
CELLS = (
    ("focus, right", GREEN, "-"),
    ("no focus, right", BLUE, "--"),
    ("focus, wrong", ORANGE, "-."),
    ("no focus, wrong", RED, ":"),
)


class RunPictures(pl.Callback):
    """Draws ``focus_vs_pred.png`` and ``mosaics.png`` of a pair, ``confusion.png`` of two outputs.

    The first shows focus against prediction through training, from the published tables on disk; the second
    some held-out mosaics with their weights, aggregate, prediction and truth; the third what is taken for what in
    held-out images, with the final weights.

    Args:
        folder: the run's folder, where the tables are and the pictures go.
        mosaics: how many mosaics to show.
    """

    def __init__(self, folder: str | Path, mosaics: int = 4) -> None:
        self.folder = Path(folder)
        self.mosaics = mosaics

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero and isinstance(pl_module, StagewiseModule)):
            return
        with _worth_no_run():
            if (self.folder / "focus_vs_pred_train.csv").exists():
                stages = [pl_module.schedule.stage(epoch) for epoch in range(trainer.current_epoch)]
                draw_focus(self.folder, stages).savefig(self.folder / "focus_vs_pred.png", dpi=150)
            shape = pl_module.mosaics["held_out"].pool.patch_shape
            if shape == (2,) or len(shape) == 3:
                draw_mosaics(pl_module, "held_out", self.mosaics).savefig(self.folder / "mosaics.png", dpi=150)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        after_training = trainer.state.fn != TrainerFn.FITTING
        if after_training and trainer.is_global_zero and isinstance(pl_module, TwoOutputModule):
            with _worth_no_run():
                figure = draw_confusion(pl_module.evaluation("held_out"))
                figure.savefig(self.folder / "confusion.png", dpi=150)


@contextlib.contextmanager
def _worth_no_run() -> Iterator[None]:
    try:
        yield
    except Exception:  # a picture is not worth a run
        log.warning("a picture could not be drawn", exc_info=True)


def draw_focus(folder: Path, stages: list[Stage]) -> "Figure":
    """Draws each split's four focus/prediction shares against epochs, Where's stages shaded.

    Args:
        folder: holds ``focus_vs_pred_<split>.csv``.
        stages: the stage of each epoch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 3, sharey=True))
    for axes, split in zip(panels, SPLITS, strict=True):
        with (folder / f"focus_vs_pred_{split}.csv").open(newline="") as file:
            rows = [[float(row[name]) for name in FOCUS_COLUMNS] for row in csv.DictReader(file)]
        for epoch, stage in enumerate(stages):
            if stage is Stage.WHERE:
                axes.axvspan(epoch + 0.5, epoch + 1.5, color="0.93", linewidth=0)
        for cell, (label, color, line) in enumerate(CELLS):
            shares = [row[3 + cell] / sum(row[3:]) for row in rows]
            axes.plot([row[0] for row in rows], shares, line, color=color, label=label, linewidth=1.8)
        axes.set(title=split.replace("_", " "), xlabel="epoch", ylim=(0, 1), xlim=(0.5, len(stages) + 0.5))
    panels[0].set_ylabel("share of mosaics")
    panels[-1].legend(title="grey: Where learns", fontsize=8, title_fontsize=8)
    return figure


def draw_mosaics(module: StagewiseModule, split: str, n: int) -> "Figure":
    """Draws the first n mosaics of a split with where the network looks."""
    data = module.mosaics[split]
    rows = torch.arange(min(n, len(data)), device=data.index.device)
    module.frozen_where.clear()
    training = module.pair.what.training
    module.pair.what.eval()
    with torch.no_grad():
        alpha, aggregates = module.frozen_where.attend(split, rows)
        predicted = module.pair.what(aggregates).argmax(dim=1)
    module.pair.what.train(training)
    patches = data.patches(rows, alpha.dtype)
    drawn = {"alpha": alpha, "aggregates": aggregates, "patches": patches, "predicted": predicted}
    drawn = {name: value.float().cpu() for name, value in drawn.items()}
    draw = _draw_images if data.pool.is_image else _draw_points
    return draw(data, **drawn)


def _title(data: Mosaics, i: int, predicted: torch.Tensor) -> tuple[str, str]:
    guess, truth = int(predicted[i]), int(data.label[i])
    names = data.foreground_classes
    return f"{names[guess]} (true: {names[truth]})", GREEN if guess == truth else RED


def _draw_images(
    data: Mosaics, alpha: torch.Tensor, aggregates: torch.Tensor, patches: torch.Tensor, predicted: torch.Tensor
) -> "Figure":
    from matplotlib.figure import Figure

    n, p = alpha.shape
    shown = min(p, 12)
    figure = Figure(figsize=(1.0 * (shown + 2.2), 1.25 * n + 0.3), layout="constrained")
    grid: Any = figure.subplots(n, shown + 1, squeeze=False, width_ratios=[1] * shown + [1.25])
    low, high = patches.min(), patches.max()

    def image(axes: "Axes", picture: torch.Tensor) -> None:
        pixels = ((picture - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
        axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])

    for i in range(n):
        for j in range(shown):
            axes = grid[i, j]
            image(axes, patches[i, j])
            true = j == int(data.foreground[i])
            for spine in axes.spines.values():
                spine.set(visible=true, color=ORANGE, linewidth=3)
            looks = j == int(alpha[i].argmax())
            axes.set_xlabel(f"{alpha[i, j]:.2f}", fontsize=9, fontweight="bold" if looks else "normal", labelpad=2)
        image(grid[i, -1], aggregates[i])
        title, color = _title(data, i, predicted)
        grid[i, -1].set_xlabel(title, color=color, fontsize=8, labelpad=2)
    figure.suptitle("patches with their weights, the true foreground framed; last: the weighted sum", fontsize=9)
    return figure


def _draw_points(
    data: Mosaics, alpha: torch.Tensor, aggregates: torch.Tensor, patches: torch.Tensor, predicted: torch.Tensor
) -> "Figure":
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(alpha), 3.7), layout="constrained")
    panels: Any = figure.subplots(1, len(alpha), squeeze=False, sharex=True, sharey=True)[0]
    points = data.pool.patches.float().cpu()
    foreground = dict(zip(data.foreground_classes, itertools.cycle((BLUE, GREEN, "#CC79A7", "#56B4E9")), strict=False))
    colors = [foreground.get(data.pool.classes[label], "0.8") for label in data.pool.labels.tolist()]
    for i, axes in enumerate(panels):
        axes.scatter(points[:, 0], points[:, 1], c=colors, s=14, linewidths=0)
        x, y = patches[i, :, 0], patches[i, :, 1]
        axes.scatter(x, y, s=20 + 280 * alpha[i], facecolors="none", edgecolors="black", label="patches, by weight")
        true = data.foreground[i]
        axes.scatter(x[true], y[true], marker="s", s=420, facecolors="none", edgecolors=ORANGE, label="foreground")
        axes.scatter(*aggregates[i], marker="*", s=130, color=RED, edgecolors="white", label="weighted sum")
        title, color = _title(data, i, predicted)
        axes.set_title(title, color=color, fontsize=10)
    handles, labels = panels[-1].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([60])
    return figure
