"""Whole optimizer steps as CUDA graphs."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnmosaic.data.ahead import HostPool
from attnmosaic.data.pool import Pool
from attnmosaic.training.schedule import Stage
from attnmosaic.training.steps import Seen, Steps

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps taken one by one before one is captured: they choose algorithms, and make the momentum."""

Capture = Callable[[Callable[[], Seen]], tuple[Seen, Callable[[], None]]]


def cuda_graph(work: Callable[[], Seen]) -> tuple[Seen, Callable[[], None]]:
    """Captures work without doing it.

    Returns:
        where its results will be, and what does it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = work()
    return seen, graph.replay


class GraphedSteps:
    """Takes steps by replaying one that was captured: one launch instead of some hundred.

    A captured step reads and writes fixed places in memory, and every number in it that is no tensor stays as it
    was. So a step is captured anew when the stage (and with it the kept aggregates), the size of the minibatch or
    what the optimizers are set to (by a learning-rate scheduler) changes. Where capturing fails, as it does with a
    network that waits for the device, steps are taken one by one from then on, and the log says so.

    Args:
        steps: takes the steps that are captured.
        capture: see `cuda_graph`.
    """

    def __init__(self, steps: Steps, capture: Capture = cuda_graph) -> None:
        self.steps = steps
        self.capture = capture
        self.failed = False
        self._key: tuple[Any, ...] = ()
        self._taken = 0
        self._replay: Callable[[], None] | None = None

    def __call__(
        self, rows: Tensor, stage: Stage, optimizers: Sequence[Optimizer], learning: Sequence[Iterable[nn.Parameter]]
    ) -> Seen:
        """Takes a step; see `Steps`."""
        if self.failed:
            return self.steps(rows, stage, optimizers, learning)
        key = (stage, len(rows), *map(_settings, optimizers))
        if key != self._key:
            self._key, self._taken, self._replay = key, 0, None
        if self._taken < WARM_UP:
            self._taken += 1
            return _aside(rows.device, lambda: self.steps(rows, stage, optimizers, learning))
        if self._replay is None:
            self._rows = rows.clone()
            try:
                self._seen, self._replay = self.capture(lambda: self.steps(self._rows, stage, optimizers, learning))
            except Exception as error:
                self.failed = True
                log.warning("steps cannot be captured as a CUDA graph and are taken one by one: %s", error)
                return self.steps(rows, stage, optimizers, learning)
        self._rows.copy_(rows)
        self._replay()
        return Seen(*(part.clone() for part in self._seen))


def can_capture(device: torch.device, pool: Pool) -> bool:
    """Tells whether steps on patches of a pool can be captured; patches from main memory lie elsewhere each time."""
    return device.type == "cuda" and not isinstance(pool, HostPool)


def _settings(optimizer: Optimizer) -> tuple[Any, ...]:
    return tuple((k, v) for group in optimizer.param_groups for k, v in sorted(group.items()) if k != "params")


def _aside(device: torch.device, work: Callable[[], Seen]) -> Seen:
    """Works on a side stream, as torch asks of what precedes a capture."""
    if device.type != "cuda":
        return work()
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        seen = work()
    current.wait_stream(side)
    return seen
