"""Draws mosaics of 2-D points, and the predictions of the networks over the plane."""

from typing import TYPE_CHECKING, Any

import numpy as np

from attnmosaic.plotting.mosaics import SHOWN, captions, pick
from attnmosaic.plotting.palette import FOCUS_PREDICTION, FRAME, RED, class_style
from attnmosaic.plotting.point_tiles import region_colors
from attnmosaic.plotting.style import PAGE, entry, key, literal, panels_in_inches
from attnmosaic.runs.snapshots import Plane, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BASE_POINTS = 300
"""Base points in a panel, at most: they lie in heaps."""


def draw_points(record: Record, split: str = "held_out", n: int = SHOWN) -> "Figure":
    """Draws some mosaics of points, a panel each, of every kind there is.

    Circles are patches, their area is the weight; a square frames the true foreground; the star is the aggregate.
    The plane is tinted by What's prediction, so the star lies on the tint of the predicted class.
    """
    plane = plane_of(record)
    picks = pick(record, split, n)
    below = 0.15 + 0.15 * -(-(len(record.classes) + 4) // 4)  # the legend's
    figure, panels = panels_in_inches(-(-len(picks) // 3), 3, 2.2, margins=(0.05, 0.05, below, 0.2), gaps=(0.1, 0.22))
    framed = {"marker": "s", "color": "none", "markeredgecolor": FRAME, "markeredgewidth": 1.4}
    star = {"marker": "*", "color": RED, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (looked, i) in zip(panels.flat, picks, strict=False):
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        regions(axes, plane)
        base_points(axes, record, plane)
        points, alpha, true = looked.patches[i], looked.alpha[i], int(looked.foreground[i])
        axes.scatter(*points.T, s=10 + 220 * alpha, facecolors="none", edgecolors="black", linewidths=0.9, zorder=3)
        axes.plot(*points[true], markersize=18, zorder=3, **framed)
        axes.plot(*looked.aggregates[i], markersize=9, zorder=4, **star)
        kind, share, answer, truth = captions(record, looked, i, split)
        title = f"{kind} ({share})" if share else kind
        axes.set_title(title, color=FOCUS_PREDICTION[looked.kinds[i]].color, fontsize=7)
        axes.text(
            0.02, 0.02, f"says {answer}, true: {truth}", transform=axes.transAxes, fontsize=6.5, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
        )  # fmt: skip

    alone = {"linestyle": "none"}
    handles = [
        entry("patches, area: weight", marker="o", color="none", markeredgecolor="black", markersize=6, **alone),
        entry("true foreground", **framed, markersize=7, **alone),
        entry("aggregate", **star, markersize=9, **alone),
        *(base_entry(record, label) for label in [*range(len(record.classes)), None]),
    ]
    key(figure, handles, columns=4)
    return figure


def draw_regions(record: Record) -> "Figure":
    """Draws What's decision regions with the aggregates of mosaics in them, and Where's score of each place.

    Aggregates have the colour and marker of their true class, so one on another's tint is predicted wrongly. The
    last panel is left out where weights are fixed.
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
        for some in np.array_split(np.arange(len(truth)), 5):  # in turns, so that no class hides the others
            for label in labels:
                color, marker = class_style(label)
                ours = aggregates[some][truth[some] == label]
                axes.plot(*ours.T, color=color, marker=marker, markersize=3.2, label=f"{label}", **outline)
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
        bar = figure.colorbar(image, ax=axes, aspect=30, pad=0.02, label="score: more of it, more weight")
        bar.outline.set_visible(False)
    panels[0].set_ylabel("y")
    handles = []
    for label in labels:
        color, marker = class_style(label)
        name = f"aggregates, true class {literal(record.classes[label])}"
        handles.append(entry(name, color=color, marker=marker, markersize=4.5, **outline))
        handles.append(base_entry(record, label))
    key(figure, [*handles, base_entry(record, None)], columns=min(len(record.classes) + 1, 4))
    return figure


def plane_of(record: Record) -> Plane:
    """Returns the predictions of 2-D networks over the plane."""
    assert record.plane is not None, "only runs on points have a plane"
    return record.plane


def regions(axes: "Axes", plane: Plane) -> None:
    """Tints a panel by What's prediction."""
    left, right, bottom, top = plane.extent
    axes.imshow(region_colors(plane.regions), extent=(left, right, bottom, top), origin="lower", aspect="auto")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.grid(False)


def base_points(axes: "Axes", record: Record, plane: Plane, edge: float = 0) -> None:
    """Puts the pool's points into a panel, those of the background grey.

    Args:
        axes: the panel.
        record: names the classes.
        plane: has the points.
        edge: width of the white line around each.
    """
    every_nth = -(-len(plane.points) // BASE_POINTS)
    points, names = plane.points[::every_nth], np.array(record.all_classes)[plane.point_classes[::every_nth]]
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 2, "alpha": 0.6, "zorder": 2}
    style |= {"markeredgecolor": "white" if edge else "none", "markeredgewidth": edge}
    axes.plot(*points[~np.isin(names, record.classes)].T, color="0.5", **style)
    for label, name in enumerate(record.classes):
        axes.plot(*points[names == name].T, color=class_style(label)[0], **style)


def base_entry(record: Record, label: int | None) -> "Line2D":
    """Returns the legend's entry for the base points of a class, None for those of the background."""
    name, color = "background", "0.5"
    if label is not None:
        name, color = f"class {literal(record.classes[label])}", class_style(label)[0]
    return entry(f"base points, {name}", color=color, linestyle="none", marker="o", markersize=3, markeredgewidth=0)
