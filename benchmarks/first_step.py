"""Callbacks that print the time of a run's first step and the run's peak memory."""

import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class FirstStep(pl.Callback):
    """Prints the seconds from the start of the process to the first step, and ends the process."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        print(f"first step {time.time() - float(os.environ['BENCHMARK_START']):.3f}", flush=True)
        os._exit(0)


class PeakMemory(pl.Callback):
    """Prints the peak resident memory in bytes after each evaluation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        print(f"peak memory {peak_memory()}", flush=True)


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # preferred, because getrusage includes the peak memory of the parent process
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
