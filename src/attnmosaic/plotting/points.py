"""Plots mosaics of 2-D points, and the networks' outputs over the plane."""

from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.plotting.mosaics import SHOWN, captions, pick
from attnmosaic.plotting.palette import FOCUS_PREDICTION, FRAME, RED, class_style
from attnmosaic.plotting.point_tiles import region_colors
from attnmosaic.plotting.style import PAGE, add_legend, label_text, legend_entry, panels_in_inches
from attnmosaic.runs.snapshots import Plane, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BASE_POINTS = 300
"""Largest number of base points in a panel, as base points overlap."""


def draw_points(record: Record, split: str = "held_out", n: int = SHOWN) -> "Figure":
    """Plots mosaics of points of every combination of focus and prediction, one per panel.

    Circles are patches, and their area grows with the weight. A square frames the true foreground, and a star is the
    aggregate. The background has the colour of What's prediction, so the star is on the colour of the predicted class.
    """
    plane = plane_of(record)
    picks = pick(record, split, n)
    below = 0.15 + 0.15 * -(-(len(record.classes) + 4) // 4)  # height of the legend
    figure, panels = panels_in_inches(-(-len(picks) // 3), 3, 2.2, margins=(0.05, 0.05, below, 0.2), gaps=(0.1, 0.22))
    framed = {"marker": "s", "color": "none", "markeredgecolor": FRAME, "markeredgewidth": 1.4}
    star = {"marker": "*", "color": RED, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (mosaics, i) in zip(panels.flat, picks, strict=False):
        axes.set_axis_on()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_visible(False)
        regions(axes, plane)
        base_points(axes, record, plane)
        points, alpha, true = mosaics.patches[i], mosaics.alpha[i], int(mosaics.foreground[i])
        axes.scatter(*points.T, s=10 + 220 * alpha, facecolors="none", edgecolors="black", linewidths=0.9, zorder=3)
        axes.plot(*points[true], markersize=18, zorder=3, **framed)
        axes.plot(*mosaics.aggregates[i], markersize=9, zorder=4, **star)
        kind, count, prediction, truth = captions(record, mosaics, i, split)
        title = f"{kind} ({count})" if count else kind
        axes.set_title(title, color=FOCUS_PREDICTION[mosaics.kinds[i]].color, fontsize=7)
        axes.text(
            0.02, 0.02, f"predicted: {prediction}, true: {truth}", transform=axes.transAxes, fontsize=6.5, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
        )  # fmt: skip

    circle = {"marker": "o", "color": "none", "markeredgecolor": "black"}
    no_line = {"linestyle": "none"}
    handles = [
        legend_entry("patches, area: weight", **circle, markersize=6, **no_line),
        legend_entry("true foreground", **framed, markersize=7, **no_line),
        legend_entry("aggregate", **star, markersize=9, **no_line),
        *(base_points_entry(record, label) for label in [*range(len(record.classes)), None]),
    ]
    add_legend(figure, handles, columns=4)
    return figure


def draw_regions(record: Record) -> "Figure":
    """Plots What's decision regions with the aggregates of mosaics, and Where's score over the plane.

    Aggregates have the colour and marker of their true class, so an aggregate in a region of another colour is
    predicted wrongly. With fixed attention weights there is no panel for Where.
    """
    from matplotlib.figure import Figure

    plane, labels = plane_of(record), range(len(record.classes))
    scored = bool(np.ptp(plane.scores) > 0)
    figure = Figure(figsize=(PAGE, 3.0 if scored else 3.9), layout="constrained")
    panels: Any = figure.subplots(1, 2 + scored, sharex=True, sharey=True)
    outline: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.3}
    for axes, split, aggregates, truth in (
        (panels[0], "training", plane.aggregates, plane.label),
        (panels[1], "held-out", plane.held_out_aggregates, plane.held_out_label),
    ):
        regions(axes, plane)
        base_points(axes, record, plane)
        for some in np.array_split(np.arange(len(truth)), 5):  # alternating, so that no class hides the others
            for label in labels:
                color, marker = class_style(label)
                of_class = aggregates[some][truth[some] == label]
                axes.plot(*of_class.T, color=color, marker=marker, markersize=3.2, label=f"{label}", **outline)
        axes.set(title=f"What, {len(truth):,} {split} mosaics", xlabel="x")
    if scored:
        axes = panels[2]
        left, right, bottom, top = plane.extent
        image = axes.imshow(
            plane.scores, extent=(left, right, bottom, top), origin="lower", aspect="auto", interpolation="bilinear"
        )
        base_points(axes, record, plane, edge=0.3)
        axes.set(title="Where", xlabel="x")
        axes.grid(False)
        bar = figure.colorbar(image, ax=axes, aspect=30, pad=0.02, label="score (higher: more weight)")
        bar.outline.set_visible(False)
    panels[0].set_ylabel("y")
    handles = []
    for label in labels:
        color, marker = class_style(label)
        name = f"aggregates, true class {label_text(record.classes[label])}"
        handles.append(legend_entry(name, color=color, marker=marker, markersize=4.5, **outline))
        handles.append(base_points_entry(record, label))
    add_legend(figure, [*handles, base_points_entry(record, None)], columns=min(len(record.classes) + 1, 4))
    return figure


def plane_of(record: Record) -> Plane:
    """Returns the networks' outputs over the plane, which runs on 2-D points have."""
    assert record.plane is not None, "only runs on 2-D points have a plane"
    return record.plane


def regions(axes: "Axes", plane: Plane) -> None:
    """Colours the background of a panel by What's prediction."""
    left, right, bottom, top = plane.extent
    axes.imshow(region_colors(plane.regions), extent=(left, right, bottom, top), origin="lower", aspect="auto")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.grid(False)


def base_points(axes: "Axes", record: Record, plane: Plane, edge: float = 0) -> None:
    """Plots the pool's points into a panel; background points are grey.

    Args:
        axes: the panel.
        record: the snapshots of the run, which have the names of the classes.
        plane: the part of the record with the points.
        edge: width of the white line around each point.
    """
    every_nth = -(-len(plane.points) // BASE_POINTS)
    points, names = plane.points[::every_nth], np.array(record.all_classes)[plane.point_classes[::every_nth]]
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 2, "alpha": 0.6, "zorder": 2}
    style |= {"markeredgecolor": "white" if edge else "none", "markeredgewidth": edge}
    axes.plot(*points[~np.isin(names, record.classes)].T, color="0.5", **style)
    for label, name in enumerate(record.classes):
        axes.plot(*points[names == name].T, color=class_style(label)[0], **style)


def base_points_entry(record: Record, label: int | None) -> "Line2D":
    """Returns the legend entry for the base points of a class, or of the background if `label` is None."""
    name, color = "background", "0.5"
    if label is not None:
        name, color = f"class {label_text(record.classes[label])}", class_style(label)[0]
    return legend_entry(
        f"base points, {name}", color=color, linestyle="none", marker="o", markersize=3, markeredgewidth=0
    )
