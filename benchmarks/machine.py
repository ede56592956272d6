"""Describes the machine of a measurement, measures its peak rates, and keeps one of its cores busy."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnmosaic.training.results import cpu_name, versions


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keeps one core busy with another process during the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the machine, versions, commit and settings of numerical precision."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "system": platform.platform(),
        "versions": versions(),
        "ceilings": ceilings(device),
    }


def _git(*arguments: str) -> str:
    process = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8")
    return process.stdout.strip()


def ceilings(device: torch.device) -> dict[str, float]:
    """Measures the peak rates of matrix products (operations/s) and of copies (bytes read and written per second)."""
    side = 8192 if device.type == "cuda" else 2048
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[f"matrix product, {name}, operations/s"] = 2 * side**3 / _fastest(device, lambda: a @ b)  # noqa: B023
    for name, n in (("memory", 64 << 20), ("cache", 1 << 20)):
        source = torch.randn(n, device=device)
        target = torch.empty_like(source)
        rates[f"copy in {name}, bytes/s"] = 2 * source.nbytes / _fastest(device, lambda: target.copy_(source))  # noqa: B023
    return rates


def _fastest(device: torch.device, work: Any) -> float:
    seconds = []
    for _ in range(12):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return float(np.min(seconds))
