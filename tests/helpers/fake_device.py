"""Stands in for a GPU that a pool does not fit."""

import threading
import weakref
from collections.abc import Callable

from torch import Tensor


class Device:
    """Writes down what it is sent, and when, and the most that it held at once."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.sent = self.received = 0
        self.holds = self.most = 0
        self._lock = threading.Lock()

    def mark(self) -> int:
        return self.received

    def send(self, table: Tensor, index: Callable[[], Tensor], made: int, used: int | None) -> tuple[int, Tensor]:
        number, self.sent = self.sent, self.sent + 1
        self.events.append(("sent", number))
        there = table.index_select(0, index())
        self._hold(there.nbytes)
        weakref.finalize(there.untyped_storage(), self._hold, -there.nbytes)
        return number, there

    def receive(self, sent: tuple[int, Tensor]) -> Tensor:
        self.received += 1
        self.events.append(("received", sent[0]))
        return sent[1]

    def _hold(self, size: int) -> None:
        with self._lock:
            self.holds += size
            self.most = max(self.most, self.holds)
