"""The published tables, read from the data files beside this one."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """A table to be reproduced.

    Attributes:
        key: its name, that of its file and of ``conf/reproduce``.
        title: what it shows.
        source: where its numbers come from, or why there are none.
        shown: the metrics it has a column for.
        rows: for each row, an experiment by name, its published values by metric.
        matrix: whether rows and columns are of one kind, so that it reads as a matrix.
        headings: short names of what is shown; the metrics' own where there are none.
    """

    key: str
    title: str
    source: str
    shown: tuple[str, ...]
    rows: dict[str, dict[str, float]]
    matrix: bool = False
    headings: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.headings or self.shown

    def label(self, row: str) -> str:
        """Returns a row's short name."""
        return row.removeprefix(f"{self.key}/").removeprefix("dataset").removeprefix("row")


@cache
def published_tables() -> tuple[Published, ...]:
    """Returns every table there is a data file for, by name."""
    found = [file for file in files("attnmosaic.tables").iterdir() if file.name.endswith(".yaml")]
    tables = []
    for file in sorted(found, key=lambda file: file.name):
        held: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        held |= {name: tuple(held.get(name, ())) for name in ("shown", "headings")}
        tables.append(Published(key=file.name.removesuffix(".yaml"), **held))
    return tuple(tables)
