"""Full GPU memory is reported in one line that says what to type."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.commands import Cli
from helpers.settings import SMALL
from torch import Tensor

from attnmosaic.cli.command import line_and_code
from attnmosaic.core.errors import gpu_memory_message
from attnmosaic.nn.networks import MLP
from attnmosaic.training.attention_cache import rows_per_piece
from attnmosaic.training.runtime import job_globals

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.21 GiB is "
    "free. Including non-PyTorch memory, 14.50 GiB are in use. Of the allocated memory 13.00 GiB is "
    "allocated by PyTorch. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (torch.OutOfMemoryError(FULL), "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"),
        (torch.OutOfMemoryError("of another allocator"), "of another allocator"),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cublasCreate"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN"),
    ],
)
def test_full_gpu_memory_is_one_line(error: Exception, part: str) -> None:
    result = line_and_code(error)
    assert result is not None
    line, code = result
    assert code == 1
    assert "\n" not in line
    assert part in line
    assert "PYTORCH_ALLOC_CONF" not in line
    for key in ("hydra.launcher.jobs_per_gpu=1", "data.batch_size", "compute.cache_gb=0"):
        assert key in line


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_other_errors_keep_their_stack_trace(error: Exception) -> None:
    assert gpu_memory_message(error) is None
    assert line_and_code(error) is None


def test_pieces_leave_memory_for_other_runs() -> None:
    """But a minibatch of the published run is one piece."""
    mosaic = 9 * 3 * 32 * 32 * 4
    assert 250 <= rows_per_piece(mosaic, torch.device("cuda")) <= 2**27 // mosaic


class ExceedsMemory(MLP):
    """Network that runs out of GPU memory when it trains."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.dtype == torch.float32:
            raise torch.OutOfMemoryError(FULL)
        return super().forward(x)


EXCEEDS_MEMORY = ("model.what._target_=test_gpu_memory.ExceedsMemory", "model.what.hidden=[4]")


@pytest.mark.runs
def test_run_ends_with_the_line_about_gpu_memory(cli: Cli) -> None:
    code, _, err = cli("train", *SMALL, *EXCEEDS_MEMORY, "hydra.run.dir=run")
    assert code == 1
    assert err.startswith("error: GPU memory ")
    assert err.count("\n") <= 1


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a GPU with an old driver: torch finds the GPU, and initialising it raises."""

    def start() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", start, raising=False)
    monkeypatch.setattr(torch.cuda.memory, "reset_peak_memory_stats", lambda *_: start())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: start())


@pytest.mark.runs
@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize(
    "settings",
    [
        ("experiment=gaussian",),
        ("experiment=weighted_average", "data=digits", "data.foreground=[7,8,9]"),
        # Not Adam, which checks at every step whether CUDA is capturing a graph.
        ("experiment=mnist_sum", "optimizer.network={_target_: torch.optim.SGD}"),
    ],
)
def test_run_on_the_cpu_does_not_initialise_the_gpu(train: Callable[..., Any], settings: tuple[str, ...]) -> None:
    with job_globals(0, 1, "highest"):
        pass
    assert train(*settings, "schedule.epochs=2")
