"""Line charts over epochs as plain geometry: numbers are laid out here, the template draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from attnmosaic.reporting.formatting import measured, tick
from attnmosaic.runs.rows import Span

WIDTH, HEIGHT = 400, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 390, 24, 200
"""The chart's box, in its own units."""

DASHES = {"-": "", "--": "7 4", "-.": "9 3 2 3", ":": "2 3"}
MOST_POINTS = 800

Ticks = list[tuple[float, str]]
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """A curve: its name, the name of its colour, how it is dashed (as matplotlib writes it), its points."""

    name: str
    color: str
    style: str
    points: Points


@dataclass(frozen=True)
class Drawn:
    """A curve laid out: an SVG path, single points where they are few, and its last value in words."""

    name: str
    color: str
    dash: str
    path: str
    dots: list[tuple[float, float]]
    text: str


@dataclass(frozen=True)
class Band:
    """A stage: from where to where, and its name, which is written there if it fits."""

    x: float
    width: float
    name: str
    named: bool


@dataclass(frozen=True)
class Chart:
    """A chart laid out.

    Attributes:
        title: what it shows.
        note: what else is to be known.
        summary: the same and the curves' last values, for those who do not see it.
        x_ticks, y_ticks: places and texts.
        bands: stages.
        lines: curves.
        zero: where 0 lies, if a line is drawn there.
        values: what the page's script needs to tell values at any epoch.
    """

    title: str
    note: str
    summary: str
    x_ticks: Ticks
    y_ticks: Ticks
    bands: list[Band]
    lines: list[Drawn]
    zero: float | None
    values: dict[str, Any] = field(repr=False)

    @property
    def stages(self) -> list[str]:
        """The stages there are, in order of their first epochs."""
        return list(dict.fromkeys(band.name for band in self.bands))


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
    return [tick for tick in found if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]


def chart(
    title: str,
    lines: Sequence[Line],
    stages: Sequence[Span] = (),
    epochs: float = 0,
    share: bool = False,
    log: bool = False,
    zero: bool = False,
    note: str = "",
) -> Chart | None:
    """Lays a chart out.

    Args:
        title: what it shows.
        lines: its curves; those without points are left out.
        stages: the stages there have been.
        epochs: how many there are to be.
        share: whether values are shares, from 0 to 1.
        log: whether the axis may be logarithmic; it is if all values are above 0 and far apart.
        zero: whether 0 is to be seen.
        note: what else is to be known.

    Returns:
        The chart, or None if no curve has a point.
    """
    kept = [Line(line.name, line.color, line.style, _thinned(line.points)) for line in lines if line.points]
    if not kept:
        return None
    values = [y for line in kept for _, y in line.points]
    low, high = min(values), max(values)
    logarithmic = log and low > 0 and high / low > 30
    shares = share and low >= 0 and high <= 1
    if shares:
        low, high = 0.0, 1.0
    elif logarithmic:
        low, high = low / 1.15, high * 1.15
    else:
        low, high = (min(0.0, low), max(0.0, high)) if zero or low >= 0 else (low, high)
        pad = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = low - (pad if low < 0 else 0), high + (pad if high > 0 else 0)
        high = high if high > low else low + 1  # nothing but zeros
    right = max(epochs, *(x for line in kept for x, _ in line.points), 1)

    def across(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * x / right, 1)

    def up(y: float) -> float:
        part = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return round(BOTTOM - (BOTTOM - TOP) * part, 1)

    drawn = []
    for line in kept:
        places = [(across(x), up(y)) for x, y in line.points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        dots = places if len(places) <= 12 else []
        drawn.append(Drawn(line.name, line.color, DASHES[line.style], path, dots, measured(line.points[-1][1], shares)))
    bands = []
    for name, start, end in stages:
        width = across(min(end, right)) - across(start)
        bands.append(Band(across(start), round(width, 1), name, width >= 6.5 * len(name) + 4))
    if bands and not all(band.named for band in bands):  # a name here and there is no help; the legend has them
        bands = [Band(band.x, band.width, band.name, False) for band in bands]
    ticks = _powers(low, high) if logarithmic else round_ticks(low, high)
    told = ", ".join(f"{line.name} {line.text}" for line in drawn)
    return Chart(
        title=title,
        note="; ".join(part for part in (note, "logarithmic" if logarithmic else "") if part),
        summary=f"{title}. At the end: {told}.",
        x_ticks=[(across(x), tick(x)) for x in round_ticks(0, right) if x == int(x)],
        y_ticks=[(up(y), tick(y)) for y in ticks],
        bands=bands,
        lines=drawn,
        zero=up(0) if not logarithmic and low < 0 < high else None,
        values=_values(kept, stages, right) | {"share": shares},
    )


def _thinned(points: Points) -> Points:
    every = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:every], points[-1]] if every > 1 else points


def _values(lines: Sequence[Line], stages: Sequence[Span], right: float) -> dict[str, Any]:
    at = sorted({x for line in lines for x, _ in line.points})
    by_epoch = [dict(line.points) for line in lines]
    return {
        "box": [LEFT, RIGHT, TOP, BOTTOM, WIDTH],
        "right": right,
        "epochs": at,
        "lines": [[_rounded(values.get(x)) for x in at] for values in by_epoch],
        "stages": [[start, end, name] for name, start, end in stages],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
