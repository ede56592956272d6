"""Computes pieces of a minibatch on several threads.

Torch's own threads divide every single operation and wait for each other after it, spinning. If another process keeps a
core busy, each wait lasts a time slice, and training becomes ten to thirty times slower. Threads that each compute a
piece of a minibatch meet a few times a step instead, and sleep until then.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

WORTH_A_PIECE = 7.5e7
"""Operations (multiplications and additions, forward and backward) of a piece, at least: it costs a millisecond more
than its share of the arithmetic."""


class Workers:
    """Maps a function over pieces of work on several threads, in each of which torch uses one.

    (The calling thread computes, too. With an executor of the standard library it would wait, and waking one thread
    more for each call costs a tenth of a step on small images.)

    Args:
        count: how many threads, that of the caller included.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy = False
        for _ in range(count - 1):
            threading.Thread(target=self._serve, daemon=True).start()

    def __deepcopy__(self, memo: object) -> "Workers":
        """Returns these workers: callbacks that average weights copy the whole module."""
        return self

    @classmethod
    def instead_of_torch(cls) -> "Workers":
        """Returns as many workers as torch has threads, and leaves torch one; `close` restores torch's."""
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        return cls(count)

    def close(self) -> None:
        """Ends the threads; torch may use as many again."""
        if self.count > 1:
            torch.set_num_threads(self.count)
        for _ in range(self.count - 1):
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def map(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
        """Returns what the function gives for each piece, in their order; within another call, computes one by one."""
        pieces = list(pieces)
        helpers = min(self.count, len(pieces)) - 1
        if helpers < 1 or self._busy:
            return [function(piece) for piece in pieces]
        results: list[Any] = [None] * len(pieces)
        numbers = iter(range(len(pieces)))
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        modes = _modes()

        def work() -> None:
            for number in numbers:
                results[number] = function(pieces[number])

        def help_out() -> None:
            try:
                with modes():
                    work()
                ended.put(None)
            except BaseException as error:  # raised again in the calling thread
                ended.put(error)

        self._busy = True
        try:
            for _ in range(helpers):
                self._calls.put(help_out)
            try:
                work()
            finally:
                errors = [ended.get() for _ in range(helpers)]
        finally:
            self._busy = False
        for error in errors:
            if error is not None:
                raise error
        return results

    def pieces(self, flop: float, at_least: int = 1) -> int:
        """Returns into how many pieces to split work of so many operations: as many as threads, if they are worth it.

        Args:
            flop: its operations, forward and backward.
            at_least: into how many to split it in any case; then as many for each thread.
        """
        worth = max(1, min(self.count, int(flop / WORTH_A_PIECE)))
        return math.ceil(at_least / worth) * worth


def _modes() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a context for another thread with the modes of this one, which torch keeps for each thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        # The cache of autocast is shared by threads and emptied by whichever leaves first.
        casts = torch.autocast("cpu", dtype, enabled=autocast, cache_enabled=False)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), casts:
            yield

    return entered
