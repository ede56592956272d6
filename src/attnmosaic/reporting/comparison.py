"""Published numbers against reproduced ones, laid out: lines of a table, matrices, and strips of seeds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnmosaic.core.text import cut
from attnmosaic.reporting.charts import Ticks, round_ticks
from attnmosaic.reporting.formatting import tick
from attnmosaic.runs.rows import dig, number
from attnmosaic.runs.run import seed_name
from attnmosaic.tables.reproduced import Cell, Reproduced, Row

FAR = 0.2
"""The difference that fills its bar."""

BESIDE, LONGEST = 22, 62
"""Characters of a label that fit beside a strip, and above it."""

MARKS = {"within the seeds' range": "in", "within 0.05": "near", "outside": "out"}
"""Short names of the verdicts."""

MatrixRows = list[tuple[str, list[tuple[float | None, str]]]]


@dataclass(frozen=True)
class ComparedLine:
    """A number of a table; ``mark`` is its verdict's short name, empty without one."""

    row: str
    varied: Mapping[str, str]
    metric: str
    cell: Cell
    difference: float | None
    verdict: str
    mark: str
    state: str
    notes: tuple[str, ...]

    @property
    def bar(self) -> tuple[float, float] | None:
        """Where the difference's bar begins and how long it is, in per cent of its place; 0 lies in the middle."""
        if self.difference is None:
            return None
        length = 50 * min(1, abs(self.difference) / FAR)
        return (50 - length if self.difference < 0 else 50, length)


@dataclass(frozen=True)
class Matrix:
    """One view of a table whose rows and columns are of one kind; ``signed`` if its values are differences.

    Each row has its label, and of each cell the value and its verdict's short name.
    """

    title: str
    rows: MatrixRows
    signed: bool = False
    digits: int = 2


@dataclass(frozen=True)
class Strip:
    """A row's seeds for one metric: (place, seed, value) of each; (place, value) of their mean and of the published.

    The label's baseline is at ``label_y``: beside the dots or, where labels are long, above them.
    """

    label: str
    y: float
    label_y: float
    dots: list[tuple[float, str, float]]
    mean: tuple[float, float]
    published: tuple[float, float] | None
    told: str


@dataclass(frozen=True)
class Strips:
    """A metric's strips, one below the other; ``above`` if their labels stand above them."""

    metric: str
    width: int
    height: int
    left: int
    above: bool
    ticks: Ticks
    strips: list[Strip]


@dataclass(frozen=True)
class Comparison:
    """A table laid out."""

    table: Reproduced
    lines: list[ComparedLine]
    matrices: list[Matrix]
    strips: list[Strips]

    @property
    def key(self) -> str:
        return self.table.published.key

    @property
    def alike(self) -> bool:
        """Whether the same is to be told of the runs of every row."""
        return len({(row.state, row.smoke or row.notes) for row in self.table.rows}) == 1 and (
            self.table.rows[0].smoke or not self.table.rows[0].notes
        )

    def cells(self, row: Row) -> list[Cell]:
        """Returns a row's cell for each metric that was measured, empty ones where it has none."""
        own = {cell.metric: cell for cell in row.cells}
        return [own.get(metric, Cell(metric, ())) for metric in self.table.measured]

    @property
    def is_spread(self) -> bool:
        """Whether there is anything to see in strips: several seeds, or one beside what was published."""
        return any(strip.published or len(strip.dots) > 1 for panel in self.strips for strip in panel.strips)


def compare(table: Reproduced) -> Comparison:
    """Lays a table out."""
    lines = [
        ComparedLine(
            row=table.published.label(row.name) if table.varied else table.label(row),
            varied=row.varied,
            metric=cell.metric,
            cell=cell,
            difference=row.difference(cell),
            verdict=row.verdict(cell),
            mark=MARKS.get(row.verdict(cell), ""),
            state=row.state,
            notes=row.notes,
        )
        for row in table.rows
        for cell in [c for c in row.cells if c.values or c.published is not None] or [Cell("", ())]
    ]
    return Comparison(table, lines, _matrices(table) if table.published.matrix else [], _strips(table))


def _matrices(table: Reproduced) -> list[Matrix]:
    published = table.published

    def rows(value: Callable[[Row, Cell], float | None]) -> MatrixRows:
        found = []
        for row in table.rows:
            own = {cell.metric: (value(row, cell), MARKS.get(row.verdict(cell), "")) for cell in row.cells}
            found.append((table.label(row), [own.get(metric, (None, "")) for metric in published.shown]))
        return found

    known = [
        (published.label(row), [(values.get(metric), "") for metric in published.shown])
        for row, values in published.rows.items()
    ]
    matrices = [
        Matrix("reproduced", rows(lambda _, cell: cell.mean)),
        Matrix("published", known),
        Matrix("difference", rows(Row.difference), signed=True),
    ]
    if any(cell.std is not None for row in table.rows for cell in row.cells):
        matrices.append(Matrix("standard deviation over seeds", rows(lambda _, cell: cell.std), digits=3))
    return matrices


def seeds_of(row: Row, metric: str) -> list[tuple[str, float]]:
    """Returns each seed of a row with its value; a seed that was run twice is there once, as in the table."""
    found: dict[str, tuple[str, float]] = {}
    for run in row.runs:
        value = number(dig(run.result, "metrics", metric))
        if run.config and value is not None:
            found[str(run.config["seed"])] = (seed_name(run.config["seed"]), value)
    return list(found.values())


def _strips(table: Reproduced) -> list[Strips]:
    return [strips for metric in table.published.shown if (strips := _strips_of(table, metric))]


def _strips_of(table: Reproduced, metric: str) -> Strips | None:
    seeds = [(row, cell, seeds_of(row, metric)) for row in table.rows for cell in row.cells if cell.metric == metric]
    seeds = [found for found in seeds if found[2]]
    if not seeds:
        return None
    values = [value for _, _, dots in seeds for _, value in dots]
    values += [cell.published for _, cell, _ in seeds if cell.published is not None]
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.02)
    shares = low >= 0 and high <= 1
    low, high = (max(0.0, low - pad), min(1.0, high + pad)) if shares else (low - pad, high + pad)
    longest = max(len(table.label(row)) for row, _, _ in seeds)
    above = longest > BESIDE
    left, right, step = (12, 388, 36) if above else (round(14 + 6.3 * longest), 388, 22)

    def across(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    strips = []
    for place, (row, cell, dots) in enumerate(seeds):
        mean = cell.mean if cell.mean is not None else dots[0][1]
        told = f"{table.label(row)}: " + ", ".join(f"seed {seed} {value:.4f}" for seed, value in dots)
        told += f"; mean {mean:.4f}"
        published = None
        if cell.published is not None and not row.notes:
            published = (across(cell.published), cell.published)
            told += f"; published {cell.published:g}"
        strips.append(
            Strip(
                label=cut(table.label(row), LONGEST),
                y=step * place + (26 if above else 12),
                label_y=step * place + (12 if above else 15.5),
                dots=[(across(value), seed, value) for seed, value in dots],
                mean=(across(mean), mean),
                published=published,
                told=told,
            )
        )
    ticks = [(across(value), tick(value)) for value in round_ticks(low, high, 5)]
    return Strips(metric, 400, 12 + step * len(seeds) + 16, left, above, ticks, strips)
