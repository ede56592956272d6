"""What grows by a little every epoch and travels in every checkpoint, kept as plain numbers.

A checkpoint is written after each epoch and holds the whole history. As lists of Python's numbers that took longer
than the epoch itself after a thousand of them; as tensors it is a copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = dict[str, Any]


class Grown:
    """Entries of one shape and type, ``[T, *entry]``; adding one is cheap, and so is taking all of them."""

    def __init__(self) -> None:
        self._kept: np.ndarray | None = None
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def append(self, entry: np.ndarray) -> None:
        """Adds an entry; the first one sets shape and type."""
        if self._kept is None:
            self._kept = np.empty((1, *entry.shape), entry.dtype)
        if self._n == len(self._kept):
            room = np.empty((2 * self._n, *self._kept.shape[1:]), self._kept.dtype)
            room[: self._n] = self._kept
            self._kept = room
        self._kept[self._n] = entry
        self._n += 1

    @property
    def array(self) -> np.ndarray:
        """All entries, ``[T, *entry]``, there to be written to; of no entry nothing is known but that T is 0."""
        return np.empty(0) if self._kept is None else self._kept[: self._n]

    def tensor(self) -> Tensor:
        """Returns a copy of all entries."""
        return torch.from_numpy(self.array.copy())

    @classmethod
    def of(cls, entries: Tensor) -> "Grown":
        """Takes all entries at once, ``[T, *entry]``."""
        grown = cls()
        if len(entries):
            grown._kept, grown._n = entries.numpy().copy(), len(entries)
        return grown


class History:
    """Rows of a table, each a number, a word or nothing in every column; 9 bytes a value.

    Args:
        columns: their names; a column holds whole numbers, numbers or words, as its values are.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self._kinds: dict[str, str] = {}
        self._words: list[str] = []
        self._values, self._given = Grown(), Grown()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Row:
        """Returns a row, without the columns it has nothing in."""
        numbers = zip(self.columns, self._values.array[i].tolist(), self._given.array[i].tolist(), strict=True)
        return {column: self._decoded(column, number) for column, number, given in numbers if given}

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; columns that it lacks, or has None in, stay empty."""
        self._values.append(np.full(len(self.columns), np.nan))
        self._given.append(np.zeros(len(self.columns), dtype=bool))
        self.fill(row)

    def fill(self, row: Mapping[str, Any]) -> None:
        """Puts these values into the last row, beside what it has."""
        for i, column in enumerate(self.columns):
            if row.get(column) is not None:
                self._values.array[-1, i] = self._encoded(column, row[column])
                self._given.array[-1, i] = True

    def state_dict(self) -> dict[str, Any]:
        """Returns plain containers and tensors."""
        values, given = self._values.tensor(), self._given.tensor()
        kinds, words = [self._kinds.get(column, "") for column in self.columns], list(self._words)
        return {"columns": list(self.columns), "kinds": kinds, "words": words, "values": values, "given": given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.columns, self._words = list(state["columns"]), list(state["words"])
        self._kinds = {column: kind for column, kind in zip(self.columns, state["kinds"], strict=True) if kind}
        self._values, self._given = Grown.of(state["values"]), Grown.of(state["given"])

    def _encoded(self, column: str, value: Any) -> float:
        kind = "word" if isinstance(value, str) else "whole" if isinstance(value, int) else "number"
        before = self._kinds.setdefault(column, kind)
        if (before, kind) == ("whole", "number"):
            self._kinds[column] = "number"
        if kind == "word":
            if value not in self._words:
                self._words.append(value)
            return self._words.index(value)
        return value

    def _decoded(self, column: str, number: float) -> Any:
        kind = self._kinds[column]
        return self._words[int(number)] if kind == "word" else int(number) if kind == "whole" else number
