"""Curves over epochs: losses, gradients with respect to the attention weights, accuracies of two outputs."""

from typing import TYPE_CHECKING, Any

from attnmosaic.plotting.palette import BLUE, GRADIENTS, ORANGE, SPLITS
from attnmosaic.plotting.style import COLUMN, PAGE, entry, key, over_epochs, points_for, stage_key
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_loss(run: Run) -> "Figure":
    """Draws document 000's second plot, the training loss against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axes = figure.subplots()
    over_epochs([axes], run.stages, run.epochs_done)
    lines: list[Any] = []
    lowest = 0.0
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "running/loss": ("during the epoch", {"color": BLUE}),
        "train/loss": (
            "after it, all mosaics" if run.stages else "after it, all images",
            {"color": ORANGE, "marker": "o", "linestyle": "none"},
        ),
    }
    for column, (label, style) in styles.items():
        epochs, losses = curve(run.metrics, column)
        if epochs:
            style = {"marker": points_for(epochs), **style}
            lines += axes.plot(epochs, losses, label=label, clip_on=False, **style)
            lowest = min(lowest, *losses)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.set_ylim(bottom=lowest)
    key(figure, [*lines, *stage_key(run.stages)], columns=2)
    return figure


def draw_gradients(run: Run) -> "Figure":
    """Draws document 000's first plot: the loss's mean gradients with respect to attention weights against epochs.

    A second panel has their sizes on a logarithmic scale: the first epochs' dwarf those that follow.
    """
    from matplotlib.figure import Figure

    rows = run.rows("gradients")
    figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    axes, sizes = panels
    over_epochs(panels, run.stages, int(rows[-1]["epoch"]))
    axes.axhline(0, color="black", linewidth=0.6)
    lines = []
    for drawn in GRADIENTS.values():
        epochs, values = curve(rows, drawn.column)
        shown = drawn.style | {"marker": points_for(epochs)}
        lines += axes.plot(epochs, values, label=drawn.label, **shown)
        sizes.plot(epochs, [abs(value) for value in values], **shown)
    axes.set(xlabel="epoch", title="gradient of the loss w.r.t. attention weights")
    # Runs have them over some mosaics, with callbacks=gradients over all.
    over = f"{int(rows[-1]['mosaics']):,}" if rows[-1].get("mosaics") else "the"
    axes.set_ylabel(f"mean over {over} training mosaics\n(below 0: more weight, less loss)")
    sizes.set(xlabel="epoch", title="its size, without the sign", yscale="log")
    key(figure, [*lines, *stage_key(run.stages)])
    return figure


def draw_outputs(run: Run) -> "Figure":
    """Draws the accuracies of two outputs against epochs: those of the digit, and of the sum or product."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels: Any = figure.subplots(1, len(run.outputs), sharey=True, squeeze=False)[0]
    over_epochs(panels, run.stages, run.epochs_done)
    handles = [entry("during the epoch, still learning", color="0.6", linestyle=":")]
    for axes, output in zip(panels, run.outputs, strict=True):
        epochs, running = curve(run.metrics, f"running/{output}_accuracy")
        axes.plot(epochs, running, color="0.6", linestyle=":", marker=points_for(epochs), clip_on=False)
        for split, drawn in SPLITS.items():
            epochs, values = curve(run.metrics, f"{split}/{output}_accuracy")
            (line,) = axes.plot(epochs, values, label=drawn.label, clip_on=False, **drawn.style)
            if values and split == "held_out":
                title = f"{output}: {values[-1]:.1%} of held-out images right"
                axes.set_title(title)
            if axes is panels[0] and values:
                handles.append(line)
        axes.set(xlabel="epoch", ylim=(0, 1))
    panels[0].set_ylabel("accuracy")
    key(figure, handles)
    return figure
