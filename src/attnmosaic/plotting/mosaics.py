"""Draws mosaics of images with their weights and predictions, and patches of each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attnmosaic.plotting.palette import FOCUS_PREDICTION, FRAME, GREEN, RED
from attnmosaic.plotting.style import PAGE, literal
from attnmosaic.plotting.tiles import answer_of, columns, to_rgb
from attnmosaic.runs.snapshots import PredictedMosaics, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6
"""Mosaics in a figure."""

WIDEST = 12
"""Patches shown in a row; of larger mosaics the foreground and those with the most weight."""

_PLACES = {"grid": (0.06, 0.88), "strip": (1.05, 3.3), "sum": (4.46, 0.6), "true": (5.17, 0.6), "text": (5.88, 1.1)}
"""The parts of a row: where they begin and how wide they are, in inches."""

_ROW, _HEADING = 1.0, 0.24
"""Inches: the height of a row, and of the line above all rows."""

Pick = tuple[PredictedMosaics, int]


def pick(record: Record, split: str = "held_out", n: int = SHOWN) -> list[Pick]:
    """Chooses mosaics of every kind in turn, as far as there are any, and returns them kind by kind.

    Those followed through training come first, as they are as good as drawn at random; then those kept for being
    the worst of their kind, the least bad of them first.
    """
    groups = [record.followed[split].at(-1)] if split in record.followed else []
    if split in record.final:
        groups.append(record.final[split])
    of_kind: dict[str, dict[int, Pick]] = {kind: {} for kind in FOCUS_PREDICTION}
    known = set()
    for group in groups:
        places = range(len(group)) if group is groups[0] else reversed(range(len(group)))
        for i in places:
            if (row := int(group.rows[i])) not in known:
                known.add(row)
                of_kind[group.kinds[i]][row] = group, i
    turns = sorted((turn, k) for k, picks in enumerate(of_kind.values()) for turn in range(len(picks)))[:n]
    return [[*of_kind[kind].values()][turn] for k, kind in enumerate(of_kind) for turn, of in turns if of == k]


def captions(record: Record, looked: PredictedMosaics, i: int, split: str = "held_out") -> tuple[str, str, str, str]:
    """Returns the texts beside a mosaic: its kind, how many there are of it, prediction and true class."""
    kind, truth = looked.kinds[i], record.classes[looked.label[i]]
    counts = record.counts.get(split)
    share = f"{counts[kind]:,} of {sum(counts.values()):,} {split.replace('_', ' ')}" if counts else ""
    answer = literal(answer_of(looked, i, record.classes), 30)
    return f"{kind.upper()}: {FOCUS_PREDICTION[kind].label}", share, answer, literal(truth)


def draw_mosaics(record: Record, split: str = "held_out", n: int = SHOWN) -> "Figure":
    """Draws some mosaics, a row each, of every kind there is.

    From the left: the mosaic with its true foreground framed; its patches with their weights, as bars and numbers;
    the aggregate; the true foreground patch; the kind of mosaic with how many there are of it, prediction and truth.

    Args:
        record: of images.
        split: which mosaics.
        n: how many, at most.
    """
    from matplotlib.figure import Figure

    picks = pick(record, split, n)
    patches = picks[0][0].patches.shape[1]
    height = _HEADING + _ROW * len(picks)
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    which = "its" if patches <= WIDEST else f"{WIDEST} of its {patches}"
    headings = ("mosaic", f"{which} patches with their attention weights", "aggregate", "foreground")
    for heading, (left, width) in zip(headings, _PLACES.values(), strict=False):
        axes.text(left + width / 2, height - 0.15, heading, ha="center", fontsize=7, color="0.35")
    axes.text(_PLACES["text"][0], height - 0.15, "What's answer", fontsize=7, color="0.35")
    for row, (looked, i) in enumerate(picks):
        _draw_row(axes, record, looked, i, split, height - _HEADING - _ROW * (row + 0.5))
    axes.set(xlim=(0, PAGE), ylim=(0, height), aspect="auto")  # inches; images would have set their own
    return figure


def _draw_row(axes: "Axes", record: Record, looked: PredictedMosaics, i: int, split: str, middle: float) -> None:
    patches, true = looked.patches[i], int(looked.foreground[i])
    left, width = _PLACES["grid"]
    across = columns(len(patches))
    pitch = width / across
    top = middle + pitch * -(-len(patches) // across) / 2
    for p, pixels in enumerate(patches):
        x, y = left + p % across * pitch, top - (p // across + 1) * pitch
        _patch(axes, pixels, x, y, 0.94 * pitch, framed=p == true)

    _draw_strip(axes, patches, looked.alpha[i], true, middle)
    for name, pixels in (("sum", looked.aggregates[i]), ("true", patches[true])):
        left, width = _PLACES[name]
        _patch(axes, pixels, left, middle - width / 2, width, framed=name == "true")

    kind, share, answer, truth = captions(record, looked, i, split)
    right = looked.predicted[i] == looked.label[i]
    lines = (
        (0.27, kind, {"color": FOCUS_PREDICTION[looked.kinds[i]].color, "weight": "bold"}),
        (0.13, share, {"color": "0.35"}),
        (-0.07, answer, {"color": GREEN if right else RED}),
        (-0.21, f"true: {truth}", {"color": "black"}),
    )
    for up, text, style in lines:
        axes.text(_PLACES["text"][0], middle + up, text, va="center", fontsize=6.5, **style)  # type: ignore[arg-type]


def _draw_strip(axes: "Axes", patches: np.ndarray, alpha: np.ndarray, true: int, middle: float) -> None:
    """Draws patches beside each other, their weights below as bars and numbers."""
    from matplotlib.patches import Rectangle

    left, width = _PLACES["strip"]
    by_weight = [p for p in np.argsort(-alpha, kind="stable") if p != true]
    shown = sorted([true, *by_weight[: WIDEST - 1]])
    pitch = min(width / max(len(shown), 9), 0.45)
    left += (width - pitch * len(shown)) / 2
    floor, tall, ceiling = middle - 0.32, 0.36, middle + 0.44
    for place, p in enumerate(shown):
        x = left + place * pitch
        _patch(axes, patches[p], x, ceiling - 0.94 * pitch, 0.94 * pitch, framed=p == true)
        for share, color in ((1, "0.94"), (alpha[p], FRAME if p == true else "0.55")):
            axes.add_patch(Rectangle((x + 0.2 * pitch, floor), 0.54 * pitch, share * tall, color=color, linewidth=0))
        axes.text(
            x + 0.47 * pitch, floor - 0.03, f"{alpha[p]:.2f}", ha="center", va="top", fontsize=6,
            weight="bold" if p == alpha.argmax() else "normal",
        )  # fmt: skip


def _patch(axes: "Axes", pixels: np.ndarray, x: float, y: float, side: float, framed: bool = False) -> None:
    """Puts pixels ``[H, W, C]``, 0 to 255, into the middle of a square."""
    from matplotlib.patches import Rectangle

    height, width = (side * extent / max(pixels.shape[:2]) for extent in pixels.shape[:2])
    left, bottom = x + (side - width) / 2, y + (side - height) / 2
    axes.imshow(to_rgb(pixels), extent=(left, left + width, bottom, bottom + height), aspect="auto")
    if framed:
        axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=FRAME, linewidth=1.6))


def draw_classes(record: Record, across: int = 12, rows: int = 3) -> "Figure":
    """Draws patches of each foreground class, and some of the background, as they stand in training mosaics.

    Args:
        record: of images.
        across: patches in a row.
        rows: of the background.
    """
    from matplotlib.figure import Figure

    groups = [looked for part in (record.followed, record.final) for split, looked in part.items() if split == "train"]
    foreground: dict[int, list[np.ndarray]] = {label: [] for label in range(len(record.classes))}
    background: list[np.ndarray] = []
    for looked in groups:
        for patches, true, label in zip(looked.patches, looked.foreground, looked.label, strict=True):
            foreground[int(label)].append(patches[true])
            background.extend(np.delete(patches, true, axis=0))
    lines: list[tuple[str, Sequence[np.ndarray]]] = [
        (record.classes[label], _different(found, across)) for label, found in foreground.items()
    ]
    behind = _different(background, across * rows)
    lines += [("background" if i == 0 else "", behind[i : i + across]) for i in range(0, len(behind), across)]

    pitch, margin = (PAGE - 0.9) / across, 0.06
    height = pitch * len(lines) + 3 * margin
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, (name, patches) in enumerate(lines):
        y = height - margin - (row + 1) * pitch - (margin if row >= len(record.classes) else 0)
        axes.text(0.78, y + 0.47 * pitch, literal(name, 14), ha="right", va="center")
        for place, pixels in enumerate(patches):
            _patch(axes, pixels, 0.84 + place * pitch, y, 0.94 * pitch)
    axes.set(xlim=(0, PAGE), ylim=(0, height), aspect="auto")
    return figure


def _different(patches: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    """Returns the first n patches that are not alike."""
    return list({patch.tobytes(): patch for patch in patches}.values())[:n]
