"""Computes pieces of a minibatch on several threads.

Torch's own threads split every operation and wait for each other, spinning, at the end of each. If another process
keeps a core busy, each wait lasts a time slice of the operating system, and training becomes ten to thirty times
slower. The threads here each compute a piece of a minibatch instead. They wait for each other only a few times a step,
and sleep while they wait.
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
"""Smallest number of operations (multiplications and additions, forward and backward) for which a piece is worthwhile.

Each piece costs about a millisecond in addition to its arithmetic.
"""


class Workers:
    """Maps a function over pieces of work on several threads; within each, torch uses one thread.

    The calling thread computes pieces, too. With an executor of the standard library it would only wait, and waking an
    additional thread for each call costs a tenth of a step on small images.

    Args:
        count: number of threads, including the caller's.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy = False
        for _ in range(count - 1):
            threading.Thread(target=self._serve, daemon=True).start()

    def __deepcopy__(self, memo: object) -> "Workers":
        """Returns the same workers, as threads cannot be copied; callbacks that average weights copy the module."""
        return self

    @classmethod
    def instead_of_torch(cls) -> "Workers":
        """Returns as many workers as torch has threads and sets torch's threads to one; `close` restores the number."""
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        return cls(count)

    def close(self) -> None:
        """Ends the threads and lets torch use as many threads again."""
        if self.count > 1:
            torch.set_num_threads(self.count)
        for _ in range(self.count - 1):
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def map(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
        """Returns the function's results in the order of the pieces; a call within another call uses no threads."""
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
        """Returns the number of pieces of some work: one for each thread, fewer if the work is small.

        Args:
            flop: number of operations of the work, forward and backward.
            at_least: smallest number of pieces. It is rounded up, so that all threads get the same number of pieces.
        """
        threads = max(1, min(self.count, int(flop / WORTH_A_PIECE)))
        return math.ceil(at_least / threads) * threads


def _modes() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a context that gives another thread this thread's gradient and autocast modes, which are per thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        # Autocast's cache is shared by all threads, and the first thread to leave the context would empty it.
        casts = torch.autocast("cpu", dtype, enabled=autocast, cache_enabled=False)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), casts:
            yield

    return entered
