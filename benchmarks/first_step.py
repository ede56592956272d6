"""A callback that says when a run takes its first step, and ends the run there."""

import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class FirstStep(pl.Callback):
    """Prints the seconds since the process was started, and leaves."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        print(f"first step {time.time() - float(os.environ['BENCHMARK_START']):.3f}", flush=True)
        os._exit(0)


class PeakMemory(pl.Callback):
    """Prints the peak resident memory, in bytes, when training ends and when its evaluation does."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        print(f"peak memory {peak_memory()}", flush=True)


def peak_memory() -> int:
    """Returns the largest resident memory this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it started this process
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
