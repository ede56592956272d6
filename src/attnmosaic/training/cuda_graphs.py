"""Takes optimizer steps as CUDA graphs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnmosaic.config.schedule import Stage
from attnmosaic.core.errors import RunError
from attnmosaic.data.pool import HostPool, Pool
from attnmosaic.training.instantiation import first_line
from attnmosaic.training.steps import StepOutputs, Steps

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps before one is captured: they choose algorithms, and create the optimizers' state."""

Capture = Callable[[Callable[[], StepOutputs], torch.cuda.Stream | None], tuple[StepOutputs, Callable[[], None]]]


def cuda_graph(
    work: Callable[[], StepOutputs], stream: torch.cuda.Stream | None
) -> tuple[StepOutputs, Callable[[], None]]:
    """Captures work on a stream without doing it.

    Returns:
        The tensors that its results will be in, and what replays it.

    Raises:
        RunError: CUDA refused something during the capture.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer context leaves the stream again where the inner one fails to (torch <= 2.12).
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            seen = work()
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        # In these versions the allocator also believes that the capture is still under way, so no step may follow.
        raise RunError(
            f"compute.engine: got auto, but CUDA cannot capture this run's steps as a graph ({first_line(error)}); "
            "type compute.engine=eager"
        ) from error
    return seen, graph.replay


class GraphedSteps:
    """Takes steps by replaying one that was captured: one launch instead of some hundred.

    A captured step reads and writes fixed places in memory, and its numbers that are no tensors are constant. So a step
    is captured anew when the stage (and with it the kept aggregates), the size of the minibatch or the settings of the
    optimizers (by a learning-rate scheduler) change. Steps that wait for the device, or whose optimizers count steps
    outside it, cannot be captured: all are taken one by one from then on, and the log reports it.

    Args:
        steps: takes the steps that are captured.
        capture: see `cuda_graph`.
    """

    def __init__(self, steps: Steps, capture: Capture = cuda_graph) -> None:
        self.steps = steps
        self.capture = capture
        self.failed = False
        device = steps.mosaics.index.device
        # One for all warm-ups and captures: cuBLAS keeps a workspace for each stream that it has worked on.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._key: tuple[Any, ...] = ()
        self._taken = 0
        self._replay: Callable[[], None] | None = None

    def __call__(
        self, rows: Tensor, stage: Stage, optimizers: Sequence[Optimizer], learning: Sequence[Iterable[nn.Parameter]]
    ) -> StepOutputs:
        """Takes a step; see `Steps`.

        Raises:
            RunError: see `cuda_graph`.
        """
        if self.failed:
            return self.steps(rows, stage, optimizers, learning)
        key = (stage, len(rows), *map(_settings, optimizers))
        if key != self._key:
            self._key, self._taken, self._replay = key, 0, None
        if self._taken < WARM_UP:
            self._taken += 1
            last = self._taken == WARM_UP
            with self._aside(), gpu_waits(self.stream if last else None) as waits:
                seen = self.steps(rows, stage, optimizers, learning)
            if waits:
                self._give_up(f"waiting for the GPU at {waits[0]}")
            elif last and (outside := [o for o in optimizers if _counts_outside(o, rows.device)]):
                self._give_up(f"{type(outside[0]).__name__} counts its steps outside the GPU")
            return seen
        if self._replay is None:
            self._rows = rows.clone()
            try:
                self._seen, self._replay = self.capture(
                    lambda: self.steps(self._rows, stage, optimizers, learning), self.stream
                )
            except RunError:
                raise
            except Exception as error:
                self._give_up(str(error))
                return self.steps(rows, stage, optimizers, learning)
        self._rows.copy_(rows)
        self._replay()
        return StepOutputs(*(part.clone() for part in self._seen))

    def _give_up(self, reason: str) -> None:
        self.failed = True
        log.warning("steps cannot be captured as a CUDA graph and are taken one by one: %s", reason)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Runs a block on the side stream, as torch requires before a capture."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


@contextlib.contextmanager
def gpu_waits(stream: torch.cuda.Stream | None) -> Iterator[list[str]]:
    """Yields a list that holds, once a block is done, the lines of code that waited for the GPU.

    Args:
        stream: that the block runs on; None notes nothing.
    """
    lines: list[str] = []
    if stream is None:
        yield lines
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Not "error": a step that ends halfway may have moved one of two networks and drawn random numbers already.
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waited = (warning for warning in caught if "called a synchronizing CUDA operation" in str(warning.message))
    lines += [f"{warning.filename}:{warning.lineno}" for warning in waited]


def can_capture(device: torch.device, pool: Pool) -> bool:
    """Returns whether steps on a pool can be captured: patches sent from main memory have no fixed address."""
    return device.type == "cuda" and not isinstance(pool, HostPool)


def set_capturable(optimizer: Optimizer, graphs: bool) -> None:
    """Has an optimizer count its steps on the device if they are captured, and as its config says if they are not.

    Called after a checkpoint is restored, which also restores its run's setting, perhaps of another device.
    """
    if "capturable" not in optimizer.defaults:
        return
    for group in optimizer.param_groups:
        group["capturable"] = graphs or optimizer.defaults["capturable"]
        on_device = group["capturable"] or group.get("fused")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = state["step"].to(parameter.device if on_device else "cpu")


def _counts_outside(optimizer: Optimizer, device: torch.device) -> bool:
    """Returns whether an optimizer keeps numbers, of steps say, where a graph would not see them change."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    numbers = any(isinstance(value, int | float) for value in values)
    return numbers or any(isinstance(value, Tensor) and value.device != device for value in values)


def _settings(optimizer: Optimizer) -> tuple[Any, ...]:
    return tuple((k, _held(v)) for group in optimizer.param_groups for k, v in sorted(group.items()) if k != "params")


def _held(value: Any) -> Any:
    """Returns what a graph holds of a setting: of a tensor on the device its address, of anything else its value."""
    if isinstance(value, tuple | list):
        return tuple(map(_held, value))
    if isinstance(value, Tensor):
        return value.data_ptr() if value.device.type == "cuda" else value.tolist()
    return value
