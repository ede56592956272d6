"""A table: what its rows and numbers are, what they came to, and how far that is from what was published."""

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
"""How far a mean may be from a published value to be called near it."""

VERDICTS = ("within the seeds' range", f"within {NEAR}", "outside")


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        metric: ``<split>/<metric>``.
        values: of each finished run, one a seed.
        published: the value to compare with, if there is one.
    """

    metric: str
    values: tuple[float, ...] = ()
    published: float | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean minus published."""
        return None if self.mean is None or self.published is None else self.mean - self.published

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`; empty where there is nothing to compare."""
        if self.difference is None or self.published is None:
            return ""
        if len(self.values) > 1 and min(self.values) <= self.published <= max(self.values):
            return VERDICTS[0]
        return VERDICTS[1 if round(abs(self.difference), 9) <= NEAR else 2]


@dataclass(frozen=True)
class Row:
    """One row of a table: the runs of one experiment that differ in nothing but their seeds.

    Attributes:
        name: the experiment.
        cells: a number for each metric.
        state: how many of the runs have finished, stopped, failed, ...
        data: the class or folder of the images or points.
        notes: why the row is not the published one: other settings, or a smoke run.
        runs: its runs, in whatever state.
        varied: its value of each key that the table's runs vary.
    """

    name: str
    cells: tuple[Cell, ...]
    state: str
    data: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    varied: Mapping[str, str] = field(default_factory=dict)

    def cell(self, metric: str) -> Cell:
        """Returns the number for a metric, an empty one if the row has none."""
        return next((cell for cell in self.cells if cell.metric == metric), Cell(metric))

    def difference(self, cell: Cell) -> float | None:
        """Returns a cell's difference from the published value, None where the two are not to be compared."""
        return None if self.notes else cell.difference

    @property
    def smoke(self) -> bool:
        return SMOKE in self.notes

    @property
    def other_settings(self) -> tuple[str, ...]:
        """The settings in which the runs are not the published ones."""
        return tuple(note for note in self.notes if note != SMOKE)

    @property
    def kind(self) -> str:
        """What its numbers are if they are not the published row's: ``smoke`` or ``other settings``, else empty."""
        return "smoke" if self.smoke else "other settings" if self.notes else ""

    def verdict(self, cell: Cell) -> str:
        """Returns a cell's verdict, or why it has none."""
        return (self.kind or cell.verdict) if cell.values else ""


def by_seed(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Returns the final metrics of finished runs by seed; a seed that was run in two folders counts once."""
    return {seed_name(run.config["seed"]): run.result["metrics"] for run in runs if run.config and run.result}


class Matrix(NamedTuple):
    """One view of a table whose rows and columns are of one kind: of each row its label, and a value for each column.

    `form` is how to write the values.
    """

    title: str
    form: str
    rows: list[tuple[str, list[float | None]]]


@dataclass(frozen=True)
class Table:
    """A table as far as it was reproduced, or one of a user's own runs.

    Attributes:
        published: the published table; of a user's own runs one without rows.
        rows: sorted by experiment, then by the values of the varied keys.
        varied: the keys that tell rows of one experiment apart, as they were typed.
        shared: other keys, with their values, that were typed for all of its runs; of a published table's, those whose
            values are not the published ones.
    """

    published: Published
    rows: tuple[Row, ...]
    varied: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The published title, with a warning if all runs are smoke runs."""
        measured = [row for row in self.rows if any(cell.values for cell in row.cells)]
        smoke = bool(measured) and all(row.smoke for row in measured)
        return f"{'SMOKE RUNS, NO RESULT. ' if smoke else ''}{self.published.title}"

    @property
    def has_published(self) -> bool:
        """Whether any number of the table was published."""
        return any(self.published.rows.values())

    @property
    def is_named(self) -> bool:
        """Whether rows are called by their experiments: not where all are of one, and their values differ."""
        return bool(self.published.rows) or not self.varied or len({row.name for row in self.rows}) > 1

    @property
    def measured(self) -> list[str]:
        """The metrics that any row has a value of."""
        found = {cell.metric for row in self.rows for cell in row.cells if cell.values}
        return [metric for metric in self.published.shown if metric in found]

    @property
    def has_deviations(self) -> bool:
        return any(cell.std is not None for row in self.rows for cell in row.cells)

    @property
    def lines(self) -> list[tuple[Row, Cell]]:
        """Each number that was measured or published, with its row; of a row without any an empty one."""
        return [
            (row, cell)
            for row in self.rows
            for cell in [c for c in row.cells if c.values or c.published is not None] or [Cell("")]
        ]

    @property
    def matrices(self) -> list[Matrix]:
        """The views of a table whose rows and columns are of one kind; none of another table."""
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
        """Returns a row's name without the values that tell it apart: its experiment, in the table's words."""
        return self.published.label(row.name)

    def label(self, row: Row) -> str:
        """Returns a row's name: its experiment, and the values that tell it from others of the experiment."""
        parts = [self.short_label(row)] if self.is_named else []
        values = label(self._own_values(row))
        name = ", ".join([*parts, *([values] if values else [])]) or row.name
        kind = row.kind if row.smoke or not values else ""
        return f"{name} ({kind.replace('smoke', 'SMOKE')})" if kind else name

    def _own_values(self, row: Row) -> Mapping[str, str]:
        alike = [other for other in self.rows if other.name == row.name]
        differing = {key for key in row.varied if key != "scale" and len({other.varied[key] for other in alike}) > 1}
        if differing or not (self.published.rows and row.other_settings):
            return {key: value for key, value in row.varied.items() if key in differing}
        return {**row.varied, **self.shared}

    @property
    def states(self) -> dict[str, list[str]]:
        """The labels of the rows by what became of their runs."""
        states: dict[str, list[str]] = {}
        for row in self.rows:
            states.setdefault(row.state, []).append(self.label(row))
        return states

    @property
    def warnings(self) -> list[str]:
        """What finished runs did not learn: a line for each finding, with the first run that has it."""
        found: dict[str, dict[str, str]] = {}
        for row in self.rows:
            for run in row.runs:
                seed = seed_name(run.config["seed"]) if run.config is not None else "?"
                for line in run.warnings:  # the same finding in another run differs in its numbers alone
                    runs = found.setdefault(re.sub(r"[\d.]+", "#", line), {})
                    runs.setdefault(f"{self.label(row)}, seed {seed}", line)
        first = [(len(runs), *next(iter(runs.items()))) for runs in found.values()]
        return [f"{n} runs, {run} for example: {line}" if n > 1 else f"{run}: {line}" for n, run, line in first]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many published cells have which verdict; of a row in several copies of the data, the first counts."""
        verdicts: dict[tuple[str, str], str] = {}
        for row, cell in self.lines:
            if not row.notes and cell.verdict:
                verdicts.setdefault((row.name, cell.metric), cell.verdict)
        counts = {verdict: [*verdicts.values()].count(verdict) for verdict in VERDICTS}
        total = sum(map(len, self.published.rows.values()))
        return counts | {"without a finished run": total - len(verdicts)}

    @property
    def summary(self) -> str:
        """The verdicts in words."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.verdicts.items() if n)
        return f"{sum(self.verdicts.values())} published cells: {counts}" if counts else "no published cells"
