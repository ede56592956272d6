"""Plots curves over epochs: losses, gradients with respect to attention weights, accuracies of two outputs."""

from typing import TYPE_CHECKING, Any

from attnmosaic.plotting.palette import BLUE, GRADIENTS, ORANGE, SPLITS
from attnmosaic.plotting.style import (
    COLUMN,
    PAGE,
    add_legend,
    legend_entry,
    marker_for,
    set_up_epoch_axes,
    stage_entries,
)
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_loss(run: Run) -> "Figure":
    """Plots the training loss over epochs, the second plot of the 2-D gradient study."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axes = figure.subplots()
    set_up_epoch_axes([axes], run.stages, run.epochs_done)
    lines: list[Any] = []
    lowest = 0.0
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "running/loss": ("during the epoch", {"color": BLUE}),
        "train/loss": (
            "after the epoch, all mosaics" if run.stages else "after the epoch, all images",
            {"color": ORANGE, "marker": "o", "linestyle": "none"},
        ),
    }
    for column, (label, style) in styles.items():
        epochs, losses = curve(run.metrics, column)
        if epochs:
            style = {"marker": marker_for(epochs), **style}
            lines += axes.plot(epochs, losses, label=label, clip_on=False, **style)
            lowest = min(lowest, *losses)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.set_ylim(bottom=lowest)
    add_legend(figure, [*lines, *stage_entries(run.stages)], columns=2)
    return figure


def draw_gradients(run: Run) -> "Figure":
    """Plots the mean gradients of the loss with respect to attention weights, the first plot of the 2-D gradient study.

    A second panel has the absolute values on a logarithmic scale, because the gradients of the first epochs are much
    larger than those of later epochs.
    """
    from matplotlib.figure import Figure

    rows = run.rows("gradients")
    figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    axes, absolute = panels
    set_up_epoch_axes(panels, run.stages, int(rows[-1]["epoch"]))
    axes.axhline(0, color="black", linewidth=0.6)
    lines = []
    for spec in GRADIENTS.values():
        epochs, values = curve(rows, spec.column)
        style = spec.style | {"marker": marker_for(epochs)}
        lines += axes.plot(epochs, values, label=spec.label, **style)
        absolute.plot(epochs, [abs(value) for value in values], **style)
    axes.set(xlabel="epoch", title="gradient of the loss w.r.t. attention weights")
    # A run measures the first mosaics only; with callbacks=gradients all mosaics.
    mosaics = f"{int(rows[-1]['mosaics']):,}" if rows[-1].get("mosaics") else "the"
    axes.set_ylabel(f"mean over {mosaics} training mosaics\n(negative: more weight, less loss)")
    absolute.set(xlabel="epoch", title="absolute value of the gradient", yscale="log")
    add_legend(figure, [*lines, *stage_entries(run.stages)])
    return figure


def draw_outputs(run: Run) -> "Figure":
    """Plots the accuracies of both outputs, the digit and the sum or product, over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels: Any = figure.subplots(1, len(run.outputs), sharey=True, squeeze=False)[0]
    set_up_epoch_axes(panels, run.stages, run.epochs_done)
    handles = [legend_entry("train, during the epoch", color="0.6", linestyle=":")]
    for axes, output in zip(panels, run.outputs, strict=True):
        epochs, running = curve(run.metrics, f"running/{output}_accuracy")
        axes.plot(epochs, running, color="0.6", linestyle=":", marker=marker_for(epochs), clip_on=False)
        for split, spec in SPLITS.items():
            epochs, values = curve(run.metrics, f"{split}/{output}_accuracy")
            (line,) = axes.plot(epochs, values, label=spec.label, clip_on=False, **spec.style)
            if values and split == "held_out":
                title = f"{output}: {values[-1]:.1%} right (held-out images)"
                axes.set_title(title)
            if axes is panels[0] and values:
                handles.append(line)
        axes.set(xlabel="epoch", ylim=(0, 1))
    panels[0].set_ylabel("accuracy")
    add_legend(figure, handles)
    return figure
