"""Plots mosaics of images with their attention weights and predictions, and patches of each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attnmosaic.plotting.palette import FOCUS_PREDICTION, FRAME, GREEN, RED
from attnmosaic.plotting.style import PAGE, label_text
from attnmosaic.plotting.tiles import columns, prediction_text, to_rgb
from attnmosaic.runs.snapshots import PredictedMosaics, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6
"""Largest number of mosaics in a figure."""

MOST_IN_STRIP = 12
"""Largest number of patches in a row; a larger mosaic shows the foreground and the patches with the most weight."""

_COLUMNS = {"grid": (0.06, 0.88), "strip": (1.05, 3.3), "sum": (4.46, 0.6), "true": (5.17, 0.6), "text": (5.88, 1.1)}
"""Left edge and width of each part of a row, in inches."""

_ROW, _HEADING = 1.0, 0.24
"""Height of a row and of the headings, in inches."""

Pick = tuple[PredictedMosaics, int]


def pick(record: Record, split: str = "held_out", n: int = SHOWN) -> list[Pick]:
    """Chooses mosaics of all kinds in turn, and returns them kind by kind.

    The kinds are the combinations of focus and prediction. Mosaics followed during training are chosen first, because
    they are a random sample. The worst mosaics of a kind are chosen next, the least bad ones first.
    """
    groups = [record.followed[split].at(-1)] if split in record.followed else []
    if split in record.final:
        groups.append(record.final[split])
    of_kind: dict[str, dict[int, Pick]] = {kind: {} for kind in FOCUS_PREDICTION}
    chosen_rows = set()
    for group in groups:
        order = range(len(group)) if group is groups[0] else reversed(range(len(group)))
        for i in order:
            if (row := int(group.rows[i])) not in chosen_rows:
                chosen_rows.add(row)
                of_kind[group.kinds[i]][row] = group, i
    turns = sorted((turn, k) for k, picks in enumerate(of_kind.values()) for turn in range(len(picks)))[:n]
    return [[*of_kind[kind].values()][turn] for k, kind in enumerate(of_kind) for turn, of in turns if of == k]


def captions(record: Record, mosaics: PredictedMosaics, i: int, split: str = "held_out") -> tuple[str, str, str, str]:
    """Returns the texts next to a mosaic: its kind, the number of mosaics of this kind, prediction and true class."""
    kind, truth = mosaics.kinds[i], record.classes[mosaics.label[i]]
    counts = record.counts.get(split)
    count = f"{counts[kind]:,} of {sum(counts.values()):,} {split.replace('_', ' ')}" if counts else ""
    prediction = label_text(prediction_text(mosaics, i, record.classes), 30)
    return f"{kind.upper()}: {FOCUS_PREDICTION[kind].label}", count, prediction, label_text(truth)


def draw_mosaics(record: Record, split: str = "held_out", n: int = SHOWN) -> "Figure":
    """Plots mosaics of every combination of focus and prediction, one per row.

    From left to right: the mosaic with a frame around the true foreground; the patches with their attention weights as
    bars and numbers; the aggregate; the true foreground patch; a text with the kind of the mosaic, the number of
    mosaics of this kind, the prediction and the true class.

    Args:
        record: the snapshots of a run on images.
        split: the split that the mosaics are from.
        n: largest number of mosaics.
    """
    from matplotlib.figure import Figure

    picks = pick(record, split, n)
    patches = picks[0][0].patches.shape[1]
    height = _HEADING + _ROW * len(picks)
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    shown = "its" if patches <= MOST_IN_STRIP else f"{MOST_IN_STRIP} of its {patches}"
    headings = ("mosaic", f"{shown} patches with their attention weights", "aggregate", "foreground")
    for heading, (left, width) in zip(headings, _COLUMNS.values(), strict=False):
        axes.text(left + width / 2, height - 0.15, heading, ha="center", fontsize=7, color="0.35")
    axes.text(_COLUMNS["text"][0], height - 0.15, "prediction", fontsize=7, color="0.35")
    for row, (mosaics, i) in enumerate(picks):
        _draw_row(axes, record, mosaics, i, split, height - _HEADING - _ROW * (row + 0.5))
    axes.set(xlim=(0, PAGE), ylim=(0, height), aspect="auto")  # in inches; imshow has changed the limits
    return figure


def _draw_row(axes: "Axes", record: Record, mosaics: PredictedMosaics, i: int, split: str, middle: float) -> None:
    """Plots one row: a mosaic, its weights, aggregate, foreground and texts."""
    patches, true = mosaics.patches[i], int(mosaics.foreground[i])
    left, width = _COLUMNS["grid"]
    across = columns(len(patches))
    pitch = width / across
    top = middle + pitch * -(-len(patches) // across) / 2
    for p, pixels in enumerate(patches):
        x, y = left + p % across * pitch, top - (p // across + 1) * pitch
        _patch(axes, pixels, x, y, 0.94 * pitch, framed=p == true)

    _draw_strip(axes, patches, mosaics.alpha[i], true, middle)
    for name, pixels in (("sum", mosaics.aggregates[i]), ("true", patches[true])):
        left, width = _COLUMNS[name]
        _patch(axes, pixels, left, middle - width / 2, width, framed=name == "true")

    kind, count, prediction, truth = captions(record, mosaics, i, split)
    right = mosaics.predicted[i] == mosaics.label[i]
    lines = (
        (0.27, kind, {"color": FOCUS_PREDICTION[mosaics.kinds[i]].color, "weight": "bold"}),
        (0.13, count, {"color": "0.35"}),
        (-0.07, prediction, {"color": GREEN if right else RED}),
        (-0.21, f"true: {truth}", {"color": "black"}),
    )
    for up, text, style in lines:
        axes.text(_COLUMNS["text"][0], middle + up, text, va="center", fontsize=6.5, **style)  # type: ignore[arg-type]


def _draw_strip(axes: "Axes", patches: np.ndarray, alpha: np.ndarray, true: int, middle: float) -> None:
    """Plots patches side by side, with their weights below as bars and numbers."""
    from matplotlib.patches import Rectangle

    left, width = _COLUMNS["strip"]
    by_weight = [p for p in np.argsort(-alpha, kind="stable") if p != true]
    shown = sorted([true, *by_weight[: MOST_IN_STRIP - 1]])
    pitch = min(width / max(len(shown), 9), 0.45)
    left += (width - pitch * len(shown)) / 2
    floor, tall, ceiling = middle - 0.32, 0.36, middle + 0.44
    for i, p in enumerate(shown):
        x = left + i * pitch
        _patch(axes, patches[p], x, ceiling - 0.94 * pitch, 0.94 * pitch, framed=p == true)
        for weight, color in ((1, "0.94"), (alpha[p], FRAME if p == true else "0.55")):
            axes.add_patch(Rectangle((x + 0.2 * pitch, floor), 0.54 * pitch, weight * tall, color=color, linewidth=0))
        axes.text(
            x + 0.47 * pitch, floor - 0.03, f"{alpha[p]:.2f}", ha="center", va="top", fontsize=6,
            weight="bold" if p == alpha.argmax() else "normal",
        )  # fmt: skip


def _patch(axes: "Axes", pixels: np.ndarray, x: float, y: float, side: float, framed: bool = False) -> None:
    """Plots a patch, pixels ``[H, W, C]`` from 0 to 255, in the middle of a square."""
    from matplotlib.patches import Rectangle

    height, width = (side * extent / max(pixels.shape[:2]) for extent in pixels.shape[:2])
    left, bottom = x + (side - width) / 2, y + (side - height) / 2
    axes.imshow(to_rgb(pixels), extent=(left, left + width, bottom, bottom + height), aspect="auto")
    if framed:
        axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=FRAME, linewidth=1.6))


def draw_classes(record: Record, across: int = 12, rows: int = 3) -> "Figure":
    """Plots patches of each foreground class and of the background, taken from training mosaics.

    Args:
        record: the snapshots of a run on images.
        across: number of patches in a row.
        rows: number of rows of background patches.
    """
    from matplotlib.figure import Figure

    groups = [part["train"] for part in (record.followed, record.final) if "train" in part]
    foreground: dict[int, list[np.ndarray]] = {label: [] for label in range(len(record.classes))}
    background: list[np.ndarray] = []
    for mosaics in groups:
        for patches, true, label in zip(mosaics.patches, mosaics.foreground, mosaics.label, strict=True):
            foreground[int(label)].append(patches[true])
            background.extend(np.delete(patches, true, axis=0))
    lines: list[tuple[str, Sequence[np.ndarray]]] = [
        (record.classes[label], _distinct(patches, across)) for label, patches in foreground.items()
    ]
    shown = _distinct(background, across * rows)
    lines += [("background" if i == 0 else "", shown[i : i + across]) for i in range(0, len(shown), across)]

    pitch, margin = (PAGE - 0.9) / across, 0.06
    height = pitch * len(lines) + 3 * margin
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, (name, patches) in enumerate(lines):
        y = height - margin - (row + 1) * pitch - (margin if row >= len(record.classes) else 0)
        axes.text(0.78, y + 0.47 * pitch, label_text(name, 14), ha="right", va="center")
        for i, pixels in enumerate(patches):
            _patch(axes, pixels, 0.84 + i * pitch, y, 0.94 * pitch)
    axes.set(xlim=(0, PAGE), ylim=(0, height), aspect="auto")
    return figure


def _distinct(patches: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    """Returns the first n patches, without duplicates."""
    return list({patch.tobytes(): patch for patch in patches}.values())[:n]
