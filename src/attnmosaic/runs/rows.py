"""Values of files that may be torn or odd: numbers, curves, stages and confusion matrices of a run's tables."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Rows = list[dict[str, str]]


class Span(NamedTuple):
    """Epochs of one stage: those after `start` epochs, up to and including the one numbered `end`, from 1."""

    stage: str
    start: int
    end: int


@dataclass(frozen=True)
class Confusion:
    """How often each true value of an output was predicted as each value.

    Attributes:
        output: name of the output.
        split: name of the split.
        values: the V values.
        counts: ``[V, V]``, a row for each true value.
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
        """Each row as fractions of its true value; zeros for a value that does not occur."""
        return [[count / max(1, sum(row)) for count in row] for row in self.counts]


def dig(node: Any, *keys: str) -> Any:
    """Returns what lies below keys, None if it is not there."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def number(value: Any) -> float | None:
    """Returns a value as a finite number, None if it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def parse_rows(text: str) -> tuple[Rows, int]:
    """Returns the rows of a CSV text with a value for each column, and the number of all rows."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return [row for row in rows if None not in row and None not in row.values()], len(rows)


def parse_confusion(text: str, output: str, split: str) -> Confusion:
    """Returns the confusion matrix in a CSV text.

    Raises:
        ValueError: it is not square, or holds other things than counts.
    """
    heading, *rows = csv.reader(io.StringIO(text))
    values = [value for value in heading[1:] if value != "scale"]
    counts = [[int(count) for count in row[1 : 1 + len(values)]] for row in rows]
    if [len(row) for row in counts] != [len(values)] * len(values):
        raise ValueError("not a square matrix")
    return Confusion(output, split, values, counts)


def curve(rows: Rows, column: str, epoch: str = "epoch") -> tuple[list[int], list[float]]:
    """Returns the epochs in which a column was measured, and its values then; what is no number is left out."""
    pairs = ((number(row.get(epoch)), number(row.get(column))) for row in rows)
    found = [(int(x), y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in found], [y for _, y in found]


def spans(stages: Sequence[tuple[int, str]]) -> list[Span]:
    """Joins the (epoch, stage) of consecutive epochs to stretches of one stage."""
    found: list[Span] = []
    for epoch, stage in stages:
        if found and found[-1].stage == stage and found[-1].end == epoch - 1:
            found[-1] = Span(stage, found[-1].start, epoch)
        else:
            found.append(Span(stage, epoch - 1, epoch))
    return found
