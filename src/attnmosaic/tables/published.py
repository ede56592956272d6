"""Reads the published tables from the YAML files in this package."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """A table of published numbers, which runs reproduce.

    Attributes:
        key: name of the table's file and of its config in ``conf/reproduce``.
        title: title of the table.
        source: publication that reports the numbers, or the reason why there are none.
        shown: metrics that the table shows, one per column.
        rows: by experiment name, the published values of a row by metric.
        matrix: whether the table is printed as a matrix, as its rows and columns are of the same kind.
        headings: short headings of the columns; empty if the names of the metrics are the headings.
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
    """Returns all published tables, sorted by name."""
    yaml_files = [file for file in files("attnmosaic.tables").iterdir() if file.name.endswith(".yaml")]
    tables = []
    for file in sorted(yaml_files, key=lambda file: file.name):
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        content |= {name: tuple(content.get(name, ())) for name in ("shown", "headings")}
        tables.append(Published(key=file.name.removesuffix(".yaml"), **content))
    return tuple(tables)
