"""Computes the geometry of line charts over epochs; the template writes them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attnmosaic.reporting.formatting import measured, tick
from attnmosaic.runs.rows import Span

WIDTH = 400
LEFT, RIGHT, TOP, BOTTOM = 46, 390, 24, 200
"""The edges of the plot area, in units of the SVG's view box."""

DASHES = {"-": "", "--": "7 4", "-.": "9 3 2 3", ":": "2 3"}
"""SVG's dash patterns by matplotlib's line styles."""

MOST_POINTS = 800
"""The most points of a curve; longer curves are thinned out."""

Ticks = list[tuple[float, str]]
Points = list[tuple[int, float]]


class Line(NamedTuple):
    """A curve: its name, the name of its colour, its line style as matplotlib writes it, and its points."""

    name: str
    color: str
    style: str
    points: Points


class PlacedLine(NamedTuple):
    """A curve with its geometry: an SVG path, dots if it has few points, and its last value as text."""

    name: str
    color: str
    dash: str
    path: str
    dots: list[tuple[float, float]]
    text: str


class Band(NamedTuple):
    """The epochs of one stage as a vertical band: left edge, width and the stage's name."""

    x: float
    width: float
    name: str


@dataclass(frozen=True)
class Chart:
    """A line chart over epochs with the coordinates of all its parts, ready for SVG.

    Attributes:
        title: title of the chart.
        note: explanation next to the title, or empty.
        x_ticks, y_ticks: coordinates and texts of the ticks.
        bands: bands of the stages.
        named: whether all bands are wide enough for the names of their stages.
        lines: curves.
        zero: y coordinate of 0 if a line is drawn there, otherwise None.
        values: data from which the page's script shows the values at the epoch under the pointer.
    """

    title: str
    note: str
    x_ticks: Ticks
    y_ticks: Ticks
    bands: list[Band]
    named: bool
    lines: list[PlacedLine]
    zero: float | None
    values: dict[str, Any] = field(repr=False)

    @property
    def stages(self) -> list[str]:
        """The names of the stages, in the order of their first epochs."""
        return list(dict.fromkeys(band.name for band in self.bands))


class Scale(NamedTuple):
    """Maps values from low to high to coordinates from start to end, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low)
        if self.log:
            fraction = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + (self.end - self.start) * fraction, 1)

    def ticks(self, most: int = 6) -> Ticks:
        """Returns the coordinates and texts of round numbers along the axis."""
        values = _powers(self.low, self.high) if self.log else round_ticks(self.low, self.high, most)
        return [(self(value), tick(value)) for value in values]


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns at most `most` round numbers from low to high."""
    rough = max(high - low, 1e-12) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10, 20) if (high - low) / (unit * power) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    units = (1, 2, 5) if decades < 2 else (1,)
    every = max(1, math.ceil(decades / 6))
    values = [unit * 10.0**e for e in exponents if e % every == 0 for unit in units]
    return [value for value in values if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]


def chart(
    title: str,
    lines: Sequence[Line],
    stages: Sequence[Span] = (),
    epochs: int = 0,
    fraction: bool = False,
    log: bool = False,
    zero: bool = False,
    note: str = "",
) -> Chart | None:
    """Computes the coordinates of all parts of a line chart over epochs.

    Args:
        title: title of the chart.
        lines: curves; curves without points are skipped.
        stages: the stages so far.
        epochs: planned number of epochs.
        fraction: whether values are fractions, for which the axis goes from 0 to 1.
        log: whether the axis can be logarithmic; it is if all values are above 0 and differ by a factor above 30.
        zero: whether the axis includes 0.
        note: explanation next to the title.

    Returns:
        The chart, or None if no curve has a point.
    """
    lines = [line._replace(points=_thinned(line.points)) for line in lines if line.points]
    if not lines:
        return None
    y = _y_scale([value for line in lines for _, value in line.points], fraction, log, zero)
    x = Scale(0, max(epochs, 1, *(epoch for line in lines for epoch, _ in line.points)), LEFT, RIGHT)
    placed = [_placed(line, x, y, fraction) for line in lines]
    bands = [Band(x(start), round(x(min(end, x.high)) - x(start), 1), name) for name, start, end in stages]
    return Chart(
        title=title,
        note="; ".join(part for part in (note, "logarithmic" if y.log else "") if part),
        x_ticks=[(x(epoch), tick(epoch)) for epoch in round_ticks(0, x.high) if epoch == int(epoch)],
        y_ticks=y.ticks(),
        bands=bands,
        named=all(band.width >= 6.5 * len(band.name) + 4 for band in bands),
        lines=placed,
        zero=y(0) if not y.log and y.low < 0 < y.high else None,
        values=_values(lines, stages, x.high) | {"fraction": fraction},
    )


def _y_scale(values: Sequence[float], fraction: bool, log: bool, zero: bool) -> Scale:
    low, high = min(values), max(values)
    if fraction:
        return Scale(0.0, 1.0, BOTTOM, TOP)
    if log and low > 0 and high / low > 30:
        return Scale(low / 1.15, high * 1.15, BOTTOM, TOP, log=True)
    low, high = (min(0.0, low), max(0.0, high)) if zero or low >= 0 else (low, high)
    pad = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - (pad if low < 0 else 0), high + (pad if high > 0 else 0)
    return Scale(low, high if high > low else low + 1, BOTTOM, TOP)  # low equals high if all values are 0


def _placed(line: Line, x: Scale, y: Scale, fraction: bool) -> PlacedLine:
    coordinates = [(x(epoch), y(value)) for epoch, value in line.points]
    path = "M" + "L".join(f"{left:g} {top:g}" for left, top in coordinates)
    dots = coordinates if len(coordinates) <= 12 else []
    return PlacedLine(line.name, line.color, DASHES[line.style], path, dots, measured(line.points[-1][1], fraction))


def _thinned(points: Points) -> Points:
    every = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:every], points[-1]] if every > 1 else points


def _values(lines: Sequence[Line], stages: Sequence[Span], right: float) -> dict[str, Any]:
    """Returns the data for the page's script; `right` is the epoch at the right edge."""
    epochs = sorted({epoch for line in lines for epoch, _ in line.points})
    by_epoch = [dict(line.points) for line in lines]
    return {
        "box": [LEFT, RIGHT, TOP, BOTTOM, WIDTH],
        "right": right,
        "epochs": epochs,
        "lines": [[float(f"{values[e]:.4g}") if e in values else None for e in epochs] for values in by_epoch],
        "stages": [[start, end, name] for name, start, end in stages],
    }
