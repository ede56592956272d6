"""Focus against prediction: the published plots of an experiment, and accuracy against focus."""

from typing import TYPE_CHECKING, Any

from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import PAIR
from attnmosaic.plotting.palette import FOCUS_PREDICTION, GREY, LARGEST_WEIGHT, SPLITS
from attnmosaic.plotting.style import PAGE, entry, key, literal, over_epochs, panels_in_inches, stage_key
from attnmosaic.runs.rows import Rows, curve
from attnmosaic.runs.run import Run, seed_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "train": "train",
    "test": "test: new mosaics of the training patches",
    "held_out": "held out: mosaics of unseen patches",
}

PLOTS = (LARGEST_WEIGHT, FOCUS_PREDICTION)
"""The published plots, from the left."""

MANY = 40
"""From so many points on, a curve has no markers."""


def focus_tables(run: Run) -> dict[str, Rows]:
    """Returns ``focus_vs_pred_<split>.csv`` of those splits that were measured."""
    tables = {split: run.rows(f"focus_vs_pred_{split}") for split in SPLITS}
    return {split: rows for split, rows in tables.items() if rows}


def draw_focus(run: Run) -> "Figure":
    """Draws document 002's plots of an experiment: raw counts against epochs, a row of panels for each split.

    The left panel of a row has the mosaics whose largest weight is at least one half, and the others; the right one
    the four kinds of focus and prediction.
    """
    tables = focus_tables(run)
    mosaics = {
        split: sum(int(rows[0][weight.column]) for weight in PLOTS[0].values()) for split, rows in tables.items()
    }
    left = 0.3 + 0.065 * len(f"{max(mosaics.values()):,}")  # the axis' name, and its longest number
    figure, panels = panels_in_inches(len(tables), 2, 1.42, margins=(left, 0.5, 0.78, 0.45), gaps=(0.2, 0.26))
    for (split, rows), row_of_panels in zip(tables.items(), panels, strict=True):
        over_epochs(row_of_panels, run.stages, run.epochs_done)
        for axes, plot in zip(row_of_panels, PLOTS, strict=True):
            for drawn in plot.values():
                style = drawn.style if len(rows) < MANY else drawn.style | {"marker": ""}
                axes.plot(*curve(rows, drawn.column, "epochs"), label=drawn.column, clip_on=False, **style)
        _count_axes(row_of_panels[0], row_of_panels[1], mosaics[split])
        row_of_panels[0].set_title(TITLES[split])
    for axes in panels[:-1].flat:
        axes.tick_params(labelbottom=False)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    handles = [entry(drawn.label, **drawn.style) for drawn in LARGEST_WEIGHT.values()]
    handles += [entry(f"{kind.upper()}: {drawn.label}", **drawn.style) for kind, drawn in FOCUS_PREDICTION.items()]
    stages = stage_key(run.stages)
    key(figure, [*handles, *stages], columns=4 if stages else 3)
    if title := heading(run):
        figure.suptitle(literal(title, 200), y=1 - 0.06 / figure.get_figheight(), va="top")
    return figure


def heading(run: Run) -> str:
    """Returns the run in a line: its experiment, learning rates and schedule; empty without a config."""
    config = run.config
    if config is None:
        return ""
    schedule, rates = config["schedule"], config.get("lr", {})
    learners = {name for stage in ORDERS[schedule["order"]] for name in stage.learners}
    parts = [f"{name.capitalize()} lr {rates[name]:g}" for name in PAIR if name in learners and name in rates]
    if len(run.stages) > 1:
        parts.append(f"k = {schedule['k']}")
    return ", ".join([f"{config['name']}, seed {seed_name(config['seed'])}: {run.epochs_done} epochs", *parts])


def _count_axes(counts: "Axes", shares: "Axes", mosaics: int) -> None:
    """Gives two panels of counts the same axis: counts stand on its left, the same as shares on its right."""
    from matplotlib.ticker import FuncFormatter, LinearLocator

    for axes, form in ((counts, lambda n, _: f"{n:,.0f}"), (shares, lambda n, _: f"{n / mosaics:.2f}")):
        axes.set_ylim(0, mosaics)
        axes.yaxis.set_major_locator(LinearLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(form))
    counts.set_ylabel(f"of {mosaics:,} mosaics")
    shares.set_ylabel("share of them")
    shares.yaxis.tick_right()
    shares.yaxis.set_label_position("right")
    shares.spines[:].set_visible(True)
    shares.spines[["left", "top"]].set_visible(False)


def draw_accuracy_vs_focus(run: Run) -> "Figure":
    """Draws accuracy against focus through training: the way in their plane, and both against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    panels: Any = figure.subplot_mosaic([["way", "accuracy"], ["way", "focus"]], width_ratios=[1, 1.1])
    way, below = panels["way"], [panels["accuracy"], panels["focus"]]
    over_epochs(below, run.stages, run.epochs_done)
    handles = []
    for split, (label, color, style, marker, _) in SPLITS.items():
        epochs, accuracy = curve(run.metrics, f"{split}/accuracy")
        _, focus = curve(run.metrics, f"{split}/focus")
        if not epochs:
            continue
        drawn = {"color": color, "linestyle": style, "label": label, "clip_on": False}
        way.plot(focus, accuracy, marker=marker, markersize=2.4, markeredgewidth=0, **{**drawn, "linewidth": 1})
        way.plot(focus[0], accuracy[0], marker, color="white", markeredgecolor=color, markersize=6, clip_on=False)
        way.plot(focus[-1], accuracy[-1], marker, color=color, markeredgecolor="black", markersize=6.5, clip_on=False)
        if split == "train":
            _name_epochs(way, epochs, focus, accuracy)
        for axes, values in zip(below, (accuracy, focus), strict=True):
            axes.plot(epochs, values, marker=marker if len(epochs) < MANY else "", **drawn)
        handles.append(entry(label, **SPLITS[split].style))
    way.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, zorder=1)
    way.annotate(
        "accuracy = focus", (0.97, 0.97), (-2, -4), textcoords="offset points", rotation=45, rotation_mode="anchor",
        transform_rotates_text=True, ha="right", va="top", fontsize=6, color="0.45",
    )  # fmt: skip
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    way.set(xlim=(0, 1.04), ylim=(0, 1.06), xticks=ticks, yticks=ticks, aspect="equal")
    way.set(xlabel="focus", ylabel="accuracy")
    way.text(1, 0.02, "hollow: first measured\nframed: last\nnumbers: epochs (train)", ha="right", fontsize=6)
    way.grid(True, axis="both")
    for axes, name in zip(below, ("accuracy", "focus"), strict=True):
        axes.set(ylim=(0, 1), ylabel=name)
    below[0].tick_params(labelbottom=False)
    below[1].set_xlabel("epoch")
    key(figure, [*handles, *stage_key(run.stages)])
    return figure


def _name_epochs(axes: "Axes", epochs: list[int], x: list[float], y: list[float], apart: float = 0.13) -> None:
    """Writes epochs beside points of a way, those too near to the last one named left out."""
    named: list[tuple[float, float]] = []
    for place in dict.fromkeys([0, len(epochs) - 1, *range(len(epochs))]):
        if all(max(abs(x[place] - a), abs(y[place] - b)) >= apart for a, b in named):
            side: Any = {"xytext": (6, 2), "ha": "left"} if x[place] < 0.1 else {"xytext": (-5, 4), "ha": "right"}
            axes.annotate(
                f"{epochs[place]}", (x[place], y[place]), textcoords="offset points", fontsize=6, zorder=5, **side
            )
            named.append((x[place], y[place]))
