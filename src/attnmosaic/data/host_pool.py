"""A pool that stays in main memory: patches are gathered and copied to the device while it computes on others."""

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.data.pool import Pool


@runtime_checkable
class Carrier(Protocol):
    """Brings rows of a table in main memory to a device. `mark` and `receive` are called where is computed."""

    def mark(self) -> Any:
        """Returns a mark of all that the device was given to do so far."""

    def send(self, table: Tensor, index: Callable[[], Tensor], made: Any, used: Any) -> Any:
        """Gathers rows and sets them on their way; may be called in another thread.

        Args:
            table: in main memory.
            index: says which rows, ``[n]``, on the device.
            made: mark of what `index` reads.
            used: mark that the device must have passed before more of its memory is taken; None to take it at once.
        """

    def receive(self, sent: Any) -> Tensor:
        """Returns what was sent, there for all that the device is given to do from now on."""


class HostCarrier:
    """Where the device is the CPU, nothing has to be copied twice."""

    def mark(self) -> None:
        return None

    def send(self, table: Tensor, index: Callable[[], Tensor], made: None, used: None) -> Tensor:
        return table.index_select(0, index())

    def receive(self, sent: Tensor) -> Tensor:
        return sent


class CudaCarrier:
    """Gathers into pinned memory and copies from there, on a stream beside the one that computes.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def send(
        self, table: Tensor, index: Callable[[], Tensor], made: torch.cuda.Event, used: torch.cuda.Event | None
    ) -> tuple[Tensor, torch.cuda.Event]:
        if used is not None:
            used.synchronize()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(made)
            rows = index().cpu()  # waits for the side stream alone
            # Torch keeps pinned memory that is given back, and hands it out again only once it has been copied from.
            staged = torch.empty((len(rows), *table.shape[1:]), dtype=table.dtype, pin_memory=True)
            torch.index_select(table, 0, rows, out=staged)
            there = staged.to(self.device, non_blocking=True)
            return there, self.stream.record_event()

    def receive(self, sent: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        there, copied = sent
        computes = torch.cuda.current_stream(self.device)
        computes.wait_event(copied)
        # It was taken by the side stream; its memory must not be used again before what computes has passed it.
        there.record_stream(computes)
        return there


def carrier(device: torch.device) -> Carrier:
    """Returns what brings patches to a device."""
    return CudaCarrier(device) if device.type == "cuda" else HostCarrier()


class Ahead:
    """Parts that will be asked for one after the other: while one is used, the next one is on its way.

    Besides the part in use and the next one, the device may still be at work on the part before.

    Args:
        table: patches, in main memory.
        parts: what will be asked for, in this order, whole or in slices; each contiguous, on the device.
        index: gives the rows of the table that a part stands for, ``[n * each]``, on the device.
        each: how many patches each number of a part stands for.
        carrier: brings them.
    """

    def __init__(
        self,
        table: Tensor,
        parts: Iterable[Tensor],
        index: Callable[[Tensor], Tensor],
        each: int,
        carrier: Carrier,
    ) -> None:
        self.table, self.index, self.each, self.carrier = table, index, each, carrier
        self._coming = deque(parts)
        self._here: tuple[Tensor, Tensor] | None = None
        self._sent: Future[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._made = carrier.mark()
        self._send(self._made)

    def take(self, asked: Tensor) -> Tensor | None:
        """Returns the patches of a part or of a slice of one, ``[len(asked) * each, ...]``; None if it is of none."""
        if not self.knows(asked):
            return None
        while (found := self._found(asked)) is None:
            self._advance()
        return found

    def knows(self, asked: Tensor) -> bool:
        """Whether something is a slice of the part in use or of one that is to come."""
        here = [] if self._here is None else [self._here[0]]
        return any(_start(asked, part) is not None for part in (*here, *self._coming))

    def _found(self, asked: Tensor) -> Tensor | None:
        if self._here is None or (start := _start(asked, self._here[0])) is None:
            return None
        return self._here[1][start * self.each : (start + len(asked)) * self.each]

    def _advance(self) -> None:
        """Puts the next part in the place of the one that was used, and sets the one after it on its way."""
        assert self._sent is not None
        part, sent = self._coming.popleft(), self._sent.result()
        self._here = None
        used = self.carrier.mark()
        self._here = part, self.carrier.receive(sent)
        self._send(used)

    def _send(self, used: Any) -> None:
        self._sent = None
        if self._coming:
            index = functools.partial(self.index, self._coming[0])
            self._sent = self._thread.submit(self.carrier.send, self.table, index, self._made, used)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)
        self._here = self._sent = None


def _start(asked: Tensor, part: Tensor) -> int | None:
    """Returns where in a part a slice of it begins: by where both lie in memory, without looking at a number."""
    if asked.untyped_storage().data_ptr() != part.untyped_storage().data_ptr() or not asked.is_contiguous():
        return None
    start = int(asked.storage_offset()) - int(part.storage_offset())
    return start if start >= 0 and start + len(asked) <= len(part) else None


@dataclass(frozen=True, eq=False)
class HostPool(Pool):
    """A pool whose patches stay in main memory, its labels on the device; what is asked for comes to the device.

    What was announced (`ahead`) is there when it is asked for; anything else is fetched, and the device waited for.

    Attributes:
        carrier: brings patches.
    """

    carrier: Carrier = field(default_factory=HostCarrier)
    _announced: list[Ahead] = field(default_factory=list)

    def gather(self, index: Int[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n_and_patch"]:
        if (there := self._take(index)) is None:
            there = self.carrier.receive(self.carrier.send(self.patches, index.flatten, self.carrier.mark(), None))
        return self.scaled(there.view(*index.shape, *self.patches.shape[1:]), dtype)

    def gather_rows(
        self, table: Int[Tensor, "N P"], rows: Int[Tensor, " B"], dtype: torch.dtype
    ) -> Float[Tensor, "B P *patch"]:
        if (there := self._take(rows)) is None:
            return self.gather(table[rows], dtype)
        return self.scaled(there.view(len(rows), table.shape[1], *self.patches.shape[1:]), dtype)

    @contextlib.contextmanager
    def ahead(self, parts: Sequence[Tensor], table: Int[Tensor, "N P"] | None = None) -> Iterator[None]:
        if any(announced.knows(parts[0]) for announced in self._announced):  # as part of something larger
            yield
            return
        index = (lambda part: part) if table is None else (lambda part: table[part].flatten())
        announced = Ahead(self.patches, parts, index, 1 if table is None else table.shape[1], self.carrier)
        self._announced.append(announced)
        try:
            yield
        finally:
            self._announced.remove(announced)
            announced.close()

    def _take(self, asked: Tensor) -> Tensor | None:
        found = (announced.take(asked) for announced in self._announced)
        return next((patches for patches in found if patches is not None), None)


SHARE = 0.5
"""Of a GPU's free memory: what pools may take. A run's last evaluation takes them anew, so two copies must fit."""


def placed(pools: Iterable[Pool], device: torch.device, dtype: torch.dtype, where: str = "auto") -> list[Pool]:
    """Puts pools where they are computed on, or leaves them in main memory.

    Args:
        pools: in main memory.
        device: that computes.
        dtype: of points; pixels stay uint8.
        where: ``compute.pool``: "device", "host" for main memory, or "auto" for main memory if they take more than
            `SHARE` of a GPU's.
    """
    pools = list(pools)
    if where == "auto":
        needed = sum(math.prod(pool.patches.shape) * (1 if pool.is_image else dtype.itemsize) for pool in pools)
        where = "host" if device.type == "cuda" and needed > SHARE * torch.cuda.mem_get_info(device)[0] else "device"
    if where == "device":
        return [pool.to(device, dtype) for pool in pools]
    brings = carrier(device)
    stay = [pool.to(torch.device("cpu"), dtype) for pool in pools]
    return [
        HostPool(pool.patches, pool.labels.to(device), pool.classes, pool.mean, pool.std, carrier=brings)
        for pool in stay
    ]
