"""Computes the geometry of the plots of seeds: one strip per metric and row of the table, one dot per seed."""

from dataclasses import dataclass

from attnmosaic.core.text import truncate
from attnmosaic.reporting.charts import Scale, Ticks
from attnmosaic.runs.rows import number
from attnmosaic.tables.table import Cell, Row, Table, by_seed

LONGEST_BESIDE, LONGEST_ABOVE = 22, 62
"""The most characters of a label to the left of a strip, and above a strip."""


@dataclass(frozen=True)
class Strip:
    """The values of one metric in one row: x coordinates of each seed, of their mean and of the published value.

    The label's baseline is at ``label_y``: to the left of the dots, or above them if labels are long.
    """

    label: str
    y: float
    label_y: float
    dots: list[float]
    mean: float
    published: float | None
    text: str


@dataclass(frozen=True)
class Strips:
    """A metric's strips, one below the other; ``above`` if the labels are above the strips."""

    metric: str
    height: int
    left: int
    above: bool
    ticks: Ticks
    strips: list[Strip]


def spread(table: Table) -> list[Strips]:
    """Returns the strips of each metric; empty if no row has several seeds or a published value."""
    panels = [_strips(table, metric) for metric in table.measured]
    strips = [strip for panel in panels for strip in panel.strips]
    return panels if any(strip.published or len(strip.dots) > 1 for strip in strips) else []


def _strips(table: Table, metric: str) -> Strips:
    measured = [(row, row.cell(metric), seeds) for row in table.rows if (seeds := _seeds(row, metric))]
    values = [value for _, _, seeds in measured for value in seeds.values()]
    values += [cell.published for _, cell, _ in measured if cell.published is not None]
    longest = max((len(table.label(row)) for row, _, _ in measured), default=0)
    above = longest > LONGEST_BESIDE
    left, step = (12, 36) if above else (round(14 + 6.3 * longest), 22)
    scale = _scale(values or [0.0], left)
    strips = []
    for index, (row, cell, seeds) in enumerate(measured):
        published = cell.published if not row.notes else None
        strips.append(
            Strip(
                label=truncate(table.label(row), LONGEST_ABOVE),
                y=step * index + (26 if above else 12),
                label_y=step * index + (12 if above else 15.5),
                dots=[scale(value) for value in seeds.values()],
                mean=scale(cell.mean) if cell.mean is not None else left,
                published=None if published is None else scale(published),
                text=_text(table.label(row), cell, seeds, published),
            )
        )
    return Strips(metric, 12 + step * len(measured) + 16, left, above, scale.ticks(5), strips)


def _seeds(row: Row, metric: str) -> dict[str, float]:
    """Returns a row's values by seed."""
    values = {seed: number(metrics.get(metric)) for seed, metrics in by_seed(row.runs).items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _scale(values: list[float], left: int) -> Scale:
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.02)
    if low >= 0 and high <= 1:
        return Scale(max(0.0, low - pad), min(1.0, high + pad), left, 388)
    return Scale(low - pad, high + pad, left, 388)


def _text(label: str, cell: Cell, seeds: dict[str, float], published: float | None) -> str:
    parts = [", ".join(f"seed {seed} {value:.4f}" for seed, value in seeds.items()), f"mean {cell.mean:.4f}"]
    parts += [] if published is None else [f"published {published:g}"]
    return f"{label}: {'; '.join(parts)}"
