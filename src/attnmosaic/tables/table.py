"""A table of metrics: its rows and cells, and the comparison of each cell with the published number."""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from attnmosaic.runs.run import Run, seed_name
from attnmosaic.tables.published import Published
from attnmosaic.tables.varied import label

SMOKE = "smoke, no result"
"""The note of a row of smoke runs."""

NEAR = 0.05
"""The largest difference from a published value that still counts as near it."""

VERDICTS = ("within the seeds' range", f"within {NEAR}", "outside")


@dataclass(frozen=True)
class Cell:
    """One number of a reproduced table: a metric's values by seed, and the published value.

    Attributes:
        metric: the metric, ``<split>/<metric>``.
        values: the metric's value in each finished run, one per seed.
        published: the published value, if there is one.
    """

    metric: str
    values: tuple[float, ...] = ()
    published: float | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1 in the denominator; None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean minus published."""
        return None if self.mean is None or self.published is None else self.mean - self.published

    @property
    def verdict(self) -> str:
        """How near the mean is to the published value: one of `VERDICTS`, or empty if one of the two is missing."""
        if self.difference is None or self.published is None:
            return ""
        if len(self.values) > 1 and min(self.values) <= self.published <= max(self.values):
            return VERDICTS[0]
        return VERDICTS[1 if round(abs(self.difference), 9) <= NEAR else 2]


@dataclass(frozen=True)
class Row:
    """One row of a table: the runs of one experiment that differ only in their seeds.

    Attributes:
        name: name of the experiment.
        cells: one cell for each metric.
        state: number of runs in each state, in words: finished, stopped, failed, ...
        data: class or folder of the images or points.
        notes: the reasons why the row has no published value to compare with: other settings, or a smoke run.
        runs: the row's runs, in any state.
        varied: the row's value for each key that varies in the table.
    """

    name: str
    cells: tuple[Cell, ...]
    state: str
    data: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    varied: Mapping[str, str] = field(default_factory=dict)

    def cell(self, metric: str) -> Cell:
        """Returns the cell of a metric, an empty cell if the row has none."""
        return next((cell for cell in self.cells if cell.metric == metric), Cell(metric))

    def difference(self, cell: Cell) -> float | None:
        """Returns a cell's difference from the published value; None if the row cannot be compared with it."""
        return None if self.notes else cell.difference

    @property
    def smoke(self) -> bool:
        return SMOKE in self.notes

    @property
    def other_settings(self) -> tuple[str, ...]:
        """The settings in which the runs differ from the published row."""
        return tuple(note for note in self.notes if note != SMOKE)

    @property
    def kind(self) -> str:
        """The reason why the row cannot be compared, ``smoke`` or ``other settings``; empty if it can be."""
        return "smoke" if self.smoke else "other settings" if self.notes else ""

    def verdict(self, cell: Cell) -> str:
        """Returns a cell's verdict, or the reason why it has none."""
        return (self.kind or cell.verdict) if cell.values else ""


def by_seed(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Returns the final metrics of finished runs by seed; of two runs with the same seed only one counts."""
    return {seed_name(run.config["seed"]): run.result["metrics"] for run in runs if run.config and run.result}


class Matrix(NamedTuple):
    """One view of a matrix table: for each row its label and one value per column; `form` formats the values."""

    title: str
    form: str
    rows: list[tuple[str, list[float | None]]]


@dataclass(frozen=True)
class Table:
    """A table of runs: rows of a published table with their metrics, or rows of other runs.

    Attributes:
        published: the published table; for other runs a table without rows.
        rows: the rows, sorted by experiment, then by the values of the varied keys.
        varied: the keys, as typed, that distinguish the rows of an experiment.
        shared: the other typed keys with the value that all runs share. For a published table, only keys whose value
            is not the published one.
    """

    published: Published
    rows: tuple[Row, ...]
    varied: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The title of the published table, after a warning if all measured rows are of smoke runs."""
        measured = [row for row in self.rows if any(cell.values for cell in row.cells)]
        smoke = bool(measured) and all(row.smoke for row in measured)
        return f"{'SMOKE RUNS, NO RESULT. ' if smoke else ''}{self.published.title}"

    @property
    def has_published(self) -> bool:
        """Whether the table has any published number."""
        return any(self.published.rows.values())

    @property
    def is_named(self) -> bool:
        """Whether rows show the names of their experiments, as different experiments can be in the table."""
        return bool(self.published.rows) or not self.varied or len({row.name for row in self.rows}) > 1

    @property
    def measured(self) -> list[str]:
        """The metrics that at least one row has a value of."""
        metrics = {cell.metric for row in self.rows for cell in row.cells if cell.values}
        return [metric for metric in self.published.shown if metric in metrics]

    @property
    def has_deviations(self) -> bool:
        return any(cell.std is not None for row in self.rows for cell in row.cells)

    @property
    def lines(self) -> list[tuple[Row, Cell]]:
        """The cells with a measured or published value, each with its row; one empty cell for a row without any."""
        return [
            (row, cell)
            for row in self.rows
            for cell in [c for c in row.cells if c.values or c.published is not None] or [Cell("")]
        ]

    @property
    def matrices(self) -> list[Matrix]:
        """The views of a matrix table; empty for other tables."""
        views: list[tuple[str, str, Callable[[Row, Cell], float | None]]] = [
            ("reproduced", ".2f", lambda _, cell: cell.mean),
            ("published", ".2f", lambda _, cell: cell.published),
            ("difference", "+.2f", Row.difference),
        ]
        if self.has_deviations:
            views.append(("standard deviation over seeds", ".3f", lambda _, cell: cell.std))
        shown = self.published.shown if self.published.matrix else ()
        return [
            Matrix(title, form, [(self.label(row), [value(row, row.cell(m)) for m in shown]) for row in self.rows])
            for title, form, value in views
            if shown
        ]

    def short_label(self, row: Row) -> str:
        """Returns the short name of a row's experiment, without the values of varied keys."""
        return self.published.label(row.name)

    def label(self, row: Row) -> str:
        """Returns a row's name: its experiment and the values that distinguish it from other rows of the experiment."""
        parts = [self.short_label(row)] if self.is_named else []
        values = label(self._distinguishing_values(row))
        name = ", ".join([*parts, *([values] if values else [])]) or row.name
        kind = row.kind if row.smoke or not values else ""
        return f"{name} ({kind.replace('smoke', 'SMOKE')})" if kind else name

    def _distinguishing_values(self, row: Row) -> Mapping[str, str]:
        same_name = [other for other in self.rows if other.name == row.name]
        differing = {
            key for key in row.varied if key != "scale" and len({other.varied[key] for other in same_name}) > 1
        }
        if differing or not (self.published.rows and row.other_settings):
            return {key: value for key, value in row.varied.items() if key in differing}
        return {**row.varied, **self.shared}

    @property
    def states(self) -> dict[str, list[str]]:
        """The labels of the rows, by the state of their runs."""
        states: dict[str, list[str]] = {}
        for row in self.rows:
            states.setdefault(row.state, []).append(self.label(row))
        return states

    @property
    def warnings(self) -> list[str]:
        """The findings of finished runs: one line for each kind of finding, with the first run that has it."""
        by_kind: dict[str, dict[str, str]] = {}
        for row in self.rows:
            for run in row.runs:
                seed = seed_name(run.config["seed"]) if run.config is not None else "?"
                for line in run.warnings:  # The same finding differs between runs only in its numbers.
                    runs = by_kind.setdefault(re.sub(r"[\d.]+", "#", line), {})
                    runs.setdefault(f"{self.label(row)}, seed {seed}", line)
        first = [(len(runs), *next(iter(runs.items()))) for runs in by_kind.values()]
        return [f"{n} runs, for example {run}: {line}" if n > 1 else f"{run}: {line}" for n, run, line in first]

    @property
    def verdicts(self) -> dict[str, int]:
        """The number of published cells by verdict; of a row with several copies of the data only the first counts."""
        verdicts: dict[tuple[str, str], str] = {}
        for row, cell in self.lines:
            if not row.notes and cell.verdict:
                verdicts.setdefault((row.name, cell.metric), cell.verdict)
        counts = {verdict: [*verdicts.values()].count(verdict) for verdict in VERDICTS}
        total = sum(map(len, self.published.rows.values()))
        return counts | {"without a finished run": total - len(verdicts)}

    @property
    def summary(self) -> str:
        """The number of published cells by verdict, in words."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.verdicts.items() if n)
        return f"{sum(self.verdicts.values())} published cells: {counts}" if counts else "no published cells"
