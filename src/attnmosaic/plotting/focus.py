"""Plots focus against prediction, as published, and accuracy against focus."""

from typing import TYPE_CHECKING, Any

from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import PAIR
from attnmosaic.plotting.palette import FOCUS_PREDICTION, GREY, LARGEST_WEIGHT, SPLITS
from attnmosaic.plotting.style import (
    PAGE,
    add_legend,
    label_text,
    legend_entry,
    panels_in_inches,
    set_up_epoch_axes,
    stage_entries,
)
from attnmosaic.runs.rows import Rows, curve
from attnmosaic.runs.run import Run, seed_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "train": "train",
    "test": "test: new mosaics of the training patches",
    "held_out": "held out: mosaics of patches never trained on",
}

PLOTS = (LARGEST_WEIGHT, FOCUS_PREDICTION)
"""The published plots, from left to right."""

MANY_POINTS = 40
"""A curve with at least this many points has no markers."""


def focus_tables(run: Run) -> dict[str, Rows]:
    """Returns the rows of ``focus_vs_pred_<split>.csv`` for each split that was evaluated."""
    tables = {split: run.rows(f"focus_vs_pred_{split}") for split in SPLITS}
    return {split: rows for split, rows in tables.items() if rows}


def draw_focus(run: Run) -> "Figure":
    """Plots counts of mosaics over epochs as in the stage-wise study, with a row of panels for each split.

    The left panel counts the mosaics whose largest weight is at least one half, and all other mosaics. The right panel
    counts the four combinations of focus and prediction.
    """
    tables = focus_tables(run)
    mosaics = {
        split: sum(int(rows[0][weight.column]) for weight in PLOTS[0].values()) for split, rows in tables.items()
    }
    left = 0.3 + 0.065 * len(f"{max(mosaics.values()):,}")  # room for the axis label and the longest number
    figure, panels = panels_in_inches(len(tables), 2, 1.42, margins=(left, 0.5, 0.78, 0.45), gaps=(0.2, 0.26))
    for (split, rows), row_of_panels in zip(tables.items(), panels, strict=True):
        set_up_epoch_axes(row_of_panels, run.stages, run.epochs_done)
        for axes, plot in zip(row_of_panels, PLOTS, strict=True):
            for spec in plot.values():
                style = spec.style if len(rows) < MANY_POINTS else spec.style | {"marker": ""}
                axes.plot(*curve(rows, spec.column, "epochs"), label=spec.column, clip_on=False, **style)
        _label_counts(row_of_panels[0], row_of_panels[1], mosaics[split])
        row_of_panels[0].set_title(TITLES[split])
    for axes in panels[:-1].flat:
        axes.tick_params(labelbottom=False)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    handles = [legend_entry(spec.label, **spec.style) for spec in LARGEST_WEIGHT.values()]
    handles += [legend_entry(f"{kind.upper()}: {spec.label}", **spec.style) for kind, spec in FOCUS_PREDICTION.items()]
    stages = stage_entries(run.stages)
    add_legend(figure, [*handles, *stages], columns=4 if stages else 3)
    if title := heading(run):
        figure.suptitle(label_text(title, 200), y=1 - 0.06 / figure.get_figheight(), va="top")
    return figure


def heading(run: Run) -> str:
    """Returns a line with the run's experiment, seed, learning rates and schedule, or "" without a config."""
    config = run.config
    if config is None:
        return ""
    schedule, rates = config["schedule"], config.get("lr", {})
    trained = {name for stage in ORDERS[schedule["order"]] for name in stage.training_networks}
    parts = [f"{name.capitalize()} lr {rates[name]:g}" for name in PAIR if name in trained and name in rates]
    if len(run.stages) > 1:
        parts.append(f"k = {schedule['k']}")
    return ", ".join([f"{config['name']}, seed {seed_name(config['seed'])}: {run.epochs_done} epochs", *parts])


def _label_counts(counts: "Axes", fractions: "Axes", mosaics: int) -> None:
    """Labels the common axis of two panels: with counts on the left, with fractions on the right."""
    from matplotlib.ticker import FuncFormatter, LinearLocator

    for axes, form in ((counts, lambda n, _: f"{n:,.0f}"), (fractions, lambda n, _: f"{n / mosaics:.2f}")):
        axes.set_ylim(0, mosaics)
        axes.yaxis.set_major_locator(LinearLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(form))
    counts.set_ylabel(f"mosaics (of {mosaics:,})")
    fractions.set_ylabel("fraction of mosaics")
    fractions.yaxis.tick_right()
    fractions.yaxis.set_label_position("right")
    fractions.spines[:].set_visible(True)
    fractions.spines[["left", "top"]].set_visible(False)


def draw_accuracy_vs_focus(run: Run) -> "Figure":
    """Plots accuracy against focus during training: as a path in their plane, and both over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    panels: Any = figure.subplot_mosaic([["path", "accuracy"], ["path", "focus"]], width_ratios=[1, 1.1])
    path, over_epochs = panels["path"], [panels["accuracy"], panels["focus"]]
    set_up_epoch_axes(over_epochs, run.stages, run.epochs_done)
    handles = []
    for split, (label, color, style, marker, _) in SPLITS.items():
        epochs, accuracy = curve(run.metrics, f"{split}/accuracy")
        _, focus = curve(run.metrics, f"{split}/focus")
        if not epochs:
            continue
        line_style = {"color": color, "linestyle": style, "label": label, "clip_on": False}
        path.plot(focus, accuracy, marker=marker, markersize=2.4, markeredgewidth=0, **{**line_style, "linewidth": 1})
        path.plot(focus[0], accuracy[0], marker, color="white", markeredgecolor=color, markersize=6, clip_on=False)
        path.plot(focus[-1], accuracy[-1], marker, color=color, markeredgecolor="black", markersize=6.5, clip_on=False)
        if split == "train":
            _annotate_epochs(path, epochs, focus, accuracy)
        for axes, values in zip(over_epochs, (accuracy, focus), strict=True):
            axes.plot(epochs, values, marker=marker if len(epochs) < MANY_POINTS else "", **line_style)
        handles.append(legend_entry(label, **SPLITS[split].style))
    path.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, zorder=1)
    path.annotate(
        "accuracy = focus", (0.97, 0.97), (-2, -4), textcoords="offset points", rotation=45, rotation_mode="anchor",
        transform_rotates_text=True, ha="right", va="top", fontsize=6, color="0.45",
    )  # fmt: skip
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    path.set(xlim=(0, 1.04), ylim=(0, 1.06), xticks=ticks, yticks=ticks, aspect="equal")
    path.set(xlabel="focus", ylabel="accuracy")
    text = "hollow: first evaluation\nblack edge: last evaluation\nnumbers: epochs (train)"
    path.text(1, 0.02, text, ha="right", fontsize=6)
    path.grid(True, axis="both")
    for axes, name in zip(over_epochs, ("accuracy", "focus"), strict=True):
        axes.set(ylim=(0, 1), ylabel=name)
    over_epochs[0].tick_params(labelbottom=False)
    over_epochs[1].set_xlabel("epoch")
    add_legend(figure, [*handles, *stage_entries(run.stages)])
    return figure


def _annotate_epochs(axes: "Axes", epochs: list[int], x: list[float], y: list[float], apart: float = 0.13) -> None:
    """Writes the epochs next to the points of a path; skips points closer than `apart` to an annotated point."""
    annotated: list[tuple[float, float]] = []
    for i in dict.fromkeys([0, len(epochs) - 1, *range(len(epochs))]):
        if all(max(abs(x[i] - a), abs(y[i] - b)) >= apart for a, b in annotated):
            side: Any = {"xytext": (6, 2), "ha": "left"} if x[i] < 0.1 else {"xytext": (-5, 4), "ha": "right"}
            axes.annotate(f"{epochs[i]}", (x[i], y[i]), textcoords="offset points", fontsize=6, zorder=5, **side)
            annotated.append((x[i], y[i]))
