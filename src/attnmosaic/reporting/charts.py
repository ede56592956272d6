"""Lays out line charts over epochs as plain geometry; the template writes them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attnmosaic.reporting.formatting import measured, tick
from attnmosaic.runs.rows import Span

WIDTH = 400
LEFT, RIGHT, TOP, BOTTOM = 46, 390, 24, 200
"""The chart's box, in its own units."""

DASHES = {"-": "", "--": "7 4", "-.": "9 3 2 3", ":": "2 3"}
MOST_POINTS = 800

Ticks = list[tuple[float, str]]
Points = list[tuple[int, float]]


class Line(NamedTuple):
    """A curve: its name, the name of its colour, how it is dashed (as matplotlib writes it), its points."""

    name: str
    color: str
    style: str
    points: Points


class PlacedLine(NamedTuple):
    """A curve laid out: an SVG path, single points where they are few, and its last value in words."""

    name: str
    color: str
    dash: str
    path: str
    dots: list[tuple[float, float]]
    text: str


class Band(NamedTuple):
    """The epochs of a stage: where they begin, how wide they are, and the stage's name."""

    x: float
    width: float
    name: str


@dataclass(frozen=True)
class Chart:
    """A chart laid out.

    Attributes:
        title: its subject.
        note: what else a reader needs to know.
        x_ticks, y_ticks: places and texts.
        bands: stages.
        named: whether each band is wide enough for its name.
        lines: curves.
        zero: the place of 0, if a line is drawn there.
        values: what the page's script needs to show values at any epoch.
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
        """The names of the stages, in order of their first epochs."""
        return list(dict.fromkeys(band.name for band in self.bands))


class Scale(NamedTuple):
    """Takes values from low to high to places from start to end, linearly or by their logarithms."""

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
        """Returns the places and texts of round numbers along the axis."""
        values = _powers(self.low, self.high) if self.log else round_ticks(self.low, self.high, most)
        return [(self(value), tick(value)) for value in values]


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round numbers from low to high, at most so many."""
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
    found = [unit * 10.0**e for e in exponents if e % every == 0 for unit in units]
    return [value for value in found if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]


def chart(
    title: str,
    lines: Sequence[Line],
    stages: Sequence[Span] = (),
    epochs: int = 0,
    share: bool = False,
    log: bool = False,
    zero: bool = False,
    note: str = "",
) -> Chart | None:
    """Lays a chart out.

    Args:
        title: its subject.
        lines: its curves; those without points are left out.
        stages: the stages so far.
        epochs: how many there are to be.
        share: whether values are fractions, from 0 to 1.
        log: whether the axis may be logarithmic; it is if all values are above 0 and far apart.
        zero: whether the axis has 0.
        note: what else a reader needs to know.

    Returns:
        The chart, or None if no curve has a point.
    """
    lines = [line._replace(points=_thinned(line.points)) for line in lines if line.points]
    if not lines:
        return None
    y = _y_scale([value for line in lines for _, value in line.points], share, log, zero)
    x = Scale(0, max(epochs, 1, *(epoch for line in lines for epoch, _ in line.points)), LEFT, RIGHT)
    placed = [_placed(line, x, y, share) for line in lines]
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
        values=_values(lines, stages, x.high) | {"share": share},
    )


def _y_scale(values: Sequence[float], share: bool, log: bool, zero: bool) -> Scale:
    low, high = min(values), max(values)
    if share:
        return Scale(0.0, 1.0, BOTTOM, TOP)
    if log and low > 0 and high / low > 30:
        return Scale(low / 1.15, high * 1.15, BOTTOM, TOP, log=True)
    low, high = (min(0.0, low), max(0.0, high)) if zero or low >= 0 else (low, high)
    pad = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - (pad if low < 0 else 0), high + (pad if high > 0 else 0)
    return Scale(low, high if high > low else low + 1, BOTTOM, TOP)  # nothing but zeros


def _placed(line: Line, x: Scale, y: Scale, share: bool) -> PlacedLine:
    places = [(x(epoch), y(value)) for epoch, value in line.points]
    path = "M" + "L".join(f"{across:g} {up:g}" for across, up in places)
    dots = places if len(places) <= 12 else []
    return PlacedLine(line.name, line.color, DASHES[line.style], path, dots, measured(line.points[-1][1], share))


def _thinned(points: Points) -> Points:
    every = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:every], points[-1]] if every > 1 else points


def _values(lines: Sequence[Line], stages: Sequence[Span], right: float) -> dict[str, Any]:
    epochs = sorted({epoch for line in lines for epoch, _ in line.points})
    by_epoch = [dict(line.points) for line in lines]
    return {
        "box": [LEFT, RIGHT, TOP, BOTTOM, WIDTH],
        "right": right,
        "epochs": epochs,
        "lines": [[float(f"{of[e]:.4g}") if e in of else None for e in epochs] for of in by_epoch],
        "stages": [[start, end, name] for name, start, end in stages],
    }
