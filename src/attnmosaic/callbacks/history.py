"""Arrays that grow by an entry every epoch and travel in every checkpoint.

A checkpoint is written after each epoch and holds the complete history. As lists of Python's numbers that took longer
than the epoch itself after a thousand of them; as a tensor it is a copy.
"""

import numpy as np
import torch
from torch import Tensor


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
