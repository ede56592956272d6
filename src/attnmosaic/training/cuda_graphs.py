"""Captures optimizer steps as CUDA graphs and replays them."""

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
"""Number of ordinary steps before a step is captured: they choose algorithms and create the optimizers' state."""

Capture = Callable[[Callable[[], StepOutputs], torch.cuda.Stream | None], tuple[StepOutputs, Callable[[], None]]]


def cuda_graph(
    work: Callable[[], StepOutputs], stream: torch.cuda.Stream | None
) -> tuple[StepOutputs, Callable[[], None]]:
    """Captures work as a CUDA graph on a stream; the work is not executed.

    Returns:
        The tensors that will hold the results after a replay, and the function that replays the graph.

    Raises:
        RunError: CUDA raised an error during the capture.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # After an error the inner context does not restore the current stream (torch <= 2.12); the outer context does.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            outputs = work()
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        # In these versions the allocator also stays in the state of a running capture, so no other step can be taken.
        raise RunError(
            f"compute.engine: got auto, but CUDA cannot capture this run's steps as a graph ({first_line(error)}); "
            "type compute.engine=eager"
        ) from error
    return outputs, graph.replay


class GraphedSteps:
    """Takes optimizer steps by replaying a captured step: one kernel launch instead of several hundred.

    A captured step reads and writes fixed memory addresses, and its Python numbers are constants. A step is therefore
    captured again when the stage (and with it the kept aggregates), the size of the minibatch or the settings of the
    optimizers change, for example by a learning-rate scheduler.

    Steps that wait for the device, or whose optimizers count steps outside the device, cannot be captured. All later
    steps are then ordinary steps, and the log reports this.

    Args:
        steps: takes the ordinary steps, which are also captured.
        capture: captures a step; see `cuda_graph`.
    """

    def __init__(self, steps: Steps, capture: Capture = cuda_graph) -> None:
        self.steps = steps
        self.capture = capture
        self.failed = False
        device = steps.mosaics.index.device
        # One stream for all warm-ups and captures, as cuBLAS keeps a workspace for each stream that it has used.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._key: tuple[Any, ...] = ()
        self._warm_up_steps = 0
        self._replay: Callable[[], None] | None = None

    def __call__(
        self, rows: Tensor, stage: Stage, optimizers: Sequence[Optimizer], trained: Sequence[Iterable[nn.Parameter]]
    ) -> StepOutputs:
        """Takes an optimizer step; see `Steps`.

        Raises:
            RunError: see `cuda_graph`.
        """
        if self.failed:
            return self.steps(rows, stage, optimizers, trained)
        key = (stage, len(rows), *map(_settings, optimizers))
        if key != self._key:
            self._key, self._warm_up_steps, self._replay = key, 0, None
        if self._warm_up_steps < WARM_UP:
            self._warm_up_steps += 1
            last = self._warm_up_steps == WARM_UP
            with self._on_side_stream(), gpu_waits(self.stream if last else None) as waits:
                outputs = self.steps(rows, stage, optimizers, trained)
            if waits:
                self._give_up(f"waiting for the GPU at {waits[0]}")
            elif last and (uncapturable := [o for o in optimizers if _counts_outside(o, rows.device)]):
                self._give_up(f"{type(uncapturable[0]).__name__} counts its steps outside the GPU")
            return outputs
        if self._replay is None:
            self._rows = rows.clone()
            try:
                self._outputs, self._replay = self.capture(
                    lambda: self.steps(self._rows, stage, optimizers, trained), self.stream
                )
            except RunError:
                raise
            except Exception as error:
                self._give_up(str(error))
                return self.steps(rows, stage, optimizers, trained)
        self._rows.copy_(rows)
        self._replay()
        return StepOutputs(*(part.clone() for part in self._outputs))

    def _give_up(self, reason: str) -> None:
        self.failed = True
        log.warning(
            "optimizer steps run without CUDA graphs, which is slower, because the steps cannot be captured: %s", reason
        )

    @contextlib.contextmanager
    def _on_side_stream(self) -> Iterator[None]:
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
    """Yields a list that, after the block, holds ``file:line`` of each line of code that waited for the GPU.

    Args:
        stream: the stream of the block; with None the list stays empty.
    """
    lines: list[str] = []
    if stream is None:
        yield lines
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Not "error": an interrupted step could already have changed one of two networks and the random state.
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = (warning for warning in caught if "called a synchronizing CUDA operation" in str(warning.message))
    lines += [f"{warning.filename}:{warning.lineno}" for warning in waits]


def can_capture(device: torch.device, pool: Pool) -> bool:
    """Returns whether optimizer steps can be captured: only on a GPU that holds the pool, at a fixed address."""
    return device.type == "cuda" and not isinstance(pool, HostPool)


def set_capturable(optimizer: Optimizer, graphs: bool) -> None:
    """Makes an optimizer count its steps on the device if they are captured, otherwise as its config sets.

    Called after a checkpoint is restored, as the checkpoint holds the setting of its run, possibly on another device.
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
    """Returns whether an optimizer keeps numbers, such as step counts, outside the device; graphs cannot use them."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    numbers = any(isinstance(value, int | float) for value in values)
    return numbers or any(isinstance(value, Tensor) and value.device != device for value in values)


def _settings(optimizer: Optimizer) -> tuple[Any, ...]:
    """Returns the settings of an optimizer that are constants in a captured step."""
    settings = (item for group in optimizer.param_groups for item in sorted(group.items()) if item[0] != "params")
    return tuple((key, _captured_value(value)) for key, value in settings)


def _captured_value(value: Any) -> Any:
    """Returns the constant that a graph stores for a setting: the address of a device tensor, otherwise the value."""
    if isinstance(value, tuple | list):
        return tuple(map(_captured_value, value))
    if isinstance(value, Tensor):
        return value.data_ptr() if value.device.type == "cuda" else value.tolist()
    return value
