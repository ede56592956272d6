"""Sets and restores the global state of a run: seeds, number of threads, precision of matrix products."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import joblib
import numpy as np
import torch

from attnmosaic.training.checkpointing import THREADS

log = logging.getLogger(__name__)


_GLOBALS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)
"""Getter and setter of each global state that a run, or Lightning, can change; for cuDNN's attributes see `_CUDNN`."""

_CUDNN = ("benchmark", "deterministic", "allow_tf32")
"""Attributes of ``torch.backends.cudnn`` that a run sets."""

_IGNORED = (
    # The data loaders return row numbers only, so that worker processes would make them slower.
    ".*does not have many workers.*",
    # An epoch with few blocks has few training steps for Lightning; metrics are logged once an epoch in any case.
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    # A run that resumes from another run's checkpoint writes to its own folder.
    ".*dirpath has changed.*",
    # A run does not need srun, even if srun is installed.
    ".*`srun` command is available.*",
    # Lightning uses a deprecated function of the newest torch.
    ".*LeafSpec.*",
)
"""Warnings of Lightning that do not apply to runs."""


@contextlib.contextmanager
def job_globals(seed: int, threads: int | None, matmul_precision: str, processes: int = 1) -> Iterator[None]:
    """Sets all global state that a run depends on, and restores it at exit, so that jobs do not affect each other.

    Args:
        seed: seed of the global random generators, from which for example dropout samples. Mosaics, order and initial
            weights have separate generators.
        threads: number of torch's threads on the CPU. None for the value of OMP_NUM_THREADS if it is set; otherwise for
            torch's default, at most the number of cores of this process, divided by ``processes``.
        matmul_precision: "highest", "high" or "medium", see `torch.set_float32_matmul_precision`. Below "highest",
            convolutions on a GPU can also use TF32.
        processes: number of the run's processes on this machine.
    """
    with contextlib.ExitStack() as at_exit, warnings.catch_warnings():
        _restore_globals(at_exit)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            # Torch counts all cores of the machine, even if a container's quota allows fewer.
            threads = max(1, min(torch.get_num_threads(), joblib.cpu_count()) // processes)
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul_precision)
        # Defaults; Lightning overrides them with the settings of this run's trainer.
        torch.use_deterministic_algorithms(False)
        for name, value in zip(_CUDNN, (False, False, matmul_precision != "highest"), strict=True):
            setattr(torch.backends.cudnn, name, value)
        # Hides Lightning's tables of devices and its tips; result.json has the device.
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        for requested in ("callbacks.model_summary", "profilers"):
            logging.getLogger(f"pytorch_lightning.{requested}").setLevel(logging.INFO)
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        yield


def _restore_globals(at_exit: contextlib.ExitStack) -> None:
    """Registers callbacks that set all global state back to its present values."""
    for get_state, set_state in _GLOBALS:
        at_exit.callback(set_state, get_state())
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    at_exit.callback(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warn_only
    )
    for name in _CUDNN:
        at_exit.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    lightning = logging.getLogger("pytorch_lightning")
    at_exit.callback(lightning.setLevel, lightning.level)


def threads_for(requested: int | None, checkpoint: Mapping[str, Any] | None) -> int | None:
    """Returns the number of threads to compute on; None for the number of a new run (see `job_globals`).

    Args:
        requested: ``compute.threads``, which takes precedence.
        checkpoint: the checkpoint that a run resumes from or that is evaluated. The number of threads of its run is
            used, even if this machine has fewer cores or ``OMP_NUM_THREADS`` is different.
    """
    if requested is not None or checkpoint is None:
        return requested
    before: int = checkpoint[THREADS]
    if before > (cores := joblib.cpu_count()):
        log.warning(
            "computing on %d threads like the checkpoint's run, so that results stay the same to the last digit, but "
            "this process has %d cores; type compute.threads=%d to be faster",
            before, cores, cores,
        )  # fmt: skip
    return before
