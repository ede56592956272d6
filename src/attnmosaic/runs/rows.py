"""Parses a run's tables, which can be incomplete or edited: numbers, curves, stages and confusion matrices."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Rows = list[dict[str, str]]


class Span(NamedTuple):
    """One stage's epochs: from number `start` + 1 to number `end`, both included, counted from 1."""

    stage: str
    start: int
    end: int


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: how often each true value of an output was predicted as each value.

    Attributes:
        output: name of the output.
        split: name of the split.
        values: names of the V values.
        counts: numbers of examples ``[V, V]``; rows are true values, columns predicted values.
    """

    output: str
    split: str
    values: list[str]
    counts: list[list[int]]

    @property
    def examples(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def accuracy(self) -> float:
        return sum(row[i] for i, row in enumerate(self.counts)) / max(1, self.examples)

    @property
    def fractions(self) -> list[list[float]]:
        """The counts divided by the sum of their row; a row without examples has zeros."""
        return [[count / max(1, sum(row)) for count in row] for row in self.counts]


def nested_value(node: Any, *keys: str) -> Any:
    """Returns the value below nested keys of a mapping; None if a key is missing."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def number(value: Any) -> float | None:
    """Returns a value as a finite float; None if it is not a finite number."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def parse_rows(text: str) -> tuple[Rows, int]:
    """Returns the complete rows of a CSV text, and the number of all its rows.

    A complete row has exactly one value for each column.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    return [row for row in rows if None not in row and None not in row.values()], len(rows)


def parse_confusion(text: str, output: str, split: str) -> Confusion:
    """Returns the confusion matrix in a CSV text.

    Raises:
        ValueError: the matrix is not square, or a value is not an integer.
    """
    heading, *rows = csv.reader(io.StringIO(text))
    values = [value for value in heading[1:] if value != "scale"]
    counts = [[int(count) for count in row[1 : 1 + len(values)]] for row in rows]
    if [len(row) for row in counts] != [len(values)] * len(values):
        raise ValueError("not a square matrix")
    return Confusion(output, split, values, counts)


def curve(rows: Rows, column: str, epoch: str = "epoch") -> tuple[list[int], list[float]]:
    """Returns the epochs and values of a column's curve; rows without a finite number are skipped."""
    pairs = ((number(row.get(epoch)), number(row.get(column))) for row in rows)
    points = [(int(x), y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in points], [y for _, y in points]


def spans(stages: Sequence[tuple[int, str]]) -> list[Span]:
    """Merges the (epoch, stage) pairs of consecutive epochs with the same stage into spans."""
    merged: list[Span] = []
    for epoch, stage in stages:
        if merged and merged[-1].stage == stage and merged[-1].end == epoch - 1:
            merged[-1] = Span(stage, merged[-1].start, epoch)
        else:
            merged.append(Span(stage, epoch - 1, epoch))
    return merged
