"""What a run's folder holds to be drawn. Light: imports neither torch nor matplotlib."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from attnmosaic.config.schedule import ORDERS
from attnmosaic.config.schema import PAIR, networks_of
from attnmosaic.runs.run import Run, seed_name
from attnmosaic.runs.snapshots import RECORD, Record, read_record

Rows = list[dict[str, str]]


class Span(NamedTuple):
    """Epochs of one stage: those after `start` epochs, up to and with the one numbered `end`, from 1."""

    stage: str
    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """A run's folder, read when asked.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def rows(self, name: str) -> Rows:
        """Returns the rows of one of its tables, none if it is not there."""
        try:
            with (self.folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    @cached_property
    def metrics(self) -> Rows:
        """``metrics.csv``, a row an epoch."""
        return self.rows("metrics")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty if there is none."""
        return Run(self.folder).config or {}

    @cached_property
    def record(self) -> Record | None:
        """``mosaics.npz``; None if it is not there.

        Raises:
            UserError: it cannot be read.
        """
        path = self.folder / RECORD
        return read_record(path) if path.exists() else None

    @property
    def smoke(self) -> bool:
        """Whether it is a smoke run's; anything that says so is believed."""
        told = [self.config.get("scale"), *(row.get("scale") for row in self.metrics[:1])]
        return "smoke" in told

    @cached_property
    def spans(self) -> list[Span]:
        """The stages there have been, from ``metrics.csv``; none of a run without stages."""
        return spans([(int(row["epoch"]), row["stage"]) for row in self.metrics if row.get("stage")])

    @property
    def epochs(self) -> int:
        """The last epoch that ``metrics.csv`` has."""
        return int(self.metrics[-1]["epoch"]) if self.metrics else 0

    @property
    def heading(self) -> str:
        """The run in a line: its experiment, learning rates and schedule; empty without a config."""
        config = self.config
        if not config:
            return ""
        schedule, rates = config["schedule"], config.get("lr", {})
        networks = networks_of(config)
        if networks == PAIR:
            learners = {name for stage in ORDERS[schedule["order"]] for name in stage.learners}
            networks = tuple(name for name in PAIR if name in learners)
        told = [f"{name.capitalize()} lr {rates[name]:g}" for name in networks if name in rates]
        if len(self.spans) > 1:
            told.append(f"k = {schedule['k']}")
        return ", ".join([f"{config['name']}, seed {seed_name(config['seed'])}: {self.epochs} epochs", *told])


def curve(rows: Rows, column: str, epoch: str = "epoch") -> tuple[list[int], list[float]]:
    """Returns the epochs in which a column was measured, and its values then."""
    measured = [row for row in rows if row.get(column)]
    return [int(row[epoch]) for row in measured], [float(row[column]) for row in measured]


def spans(stages: Sequence[tuple[int, str]]) -> list[Span]:
    """Returns the stage of each (epoch, stage) as stretches of epochs with one stage."""
    found: list[Span] = []
    for epoch, stage in stages:
        if found and found[-1].stage == stage and found[-1].end == epoch - 1:
            found[-1] = Span(stage, found[-1].start, epoch)
        else:
            found.append(Span(stage, epoch - 1, epoch))
    return found
