"""The global state of a run: seeds, number of threads, precision of matrix products."""

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
"""What reads and what sets each global that a run, or Lightning for it, may change; cuDNN has attributes."""

_CUDNN = ("benchmark", "deterministic", "allow_tf32")

_IGNORED = (
    # The loaders hand out row numbers: workers would only slow them down.
    ".*does not have many workers.*",
    # An epoch of few blocks has few training steps; metrics are logged once an epoch anyway.
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    # A resumed run writes into a folder of its own.
    ".*dirpath has changed.*",
    # A run needs no srun, also where there is one.
    ".*`srun` command is available.*",
    # Lightning and the newest torch, about each other.
    ".*LeafSpec.*",
)
"""Warnings of Lightning that do not apply to runs."""


@contextlib.contextmanager
def job_globals(seed: int, threads: int | None, matmul_precision: str, processes: int = 1) -> Iterator[None]:
    """Sets every global that a run relies on, and restores them: jobs of a sweep do not affect each other.

    Args:
        seed: for what draws from the global generators (dropout, say); mosaics, order and first weights have
            generators of their own.
        threads: torch's threads on the CPU; None for as many as OMP_NUM_THREADS says, or else torch's own choice,
            but no more than this process has cores, divided by the number of processes.
        matmul_precision: "highest", "high" or "medium", see `torch.set_float32_matmul_precision`; below
            "highest" convolutions on a GPU may use TF32, too.
        processes: how many processes of the run are on this machine.
    """
    with contextlib.ExitStack() as restored, warnings.catch_warnings():
        _restore_globals(restored)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            # Torch counts the cores of the machine, also where a container's quota grants a few of them.
            threads = max(1, min(torch.get_num_threads(), joblib.cpu_count()) // processes)
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul_precision)
        # What the trainer of this run asks for is set by Lightning, over these.
        torch.use_deterministic_algorithms(False)
        for name, value in zip(_CUDNN, (False, False, matmul_precision != "highest"), strict=True):
            setattr(torch.backends.cudnn, name, value)
        # Device tables and tips; what matters of them is in result.json.
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        for requested in ("callbacks.model_summary", "profilers"):
            logging.getLogger(f"pytorch_lightning.{requested}").setLevel(logging.INFO)
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        yield


def _restore_globals(at_exit: contextlib.ExitStack) -> None:
    for read, write in _GLOBALS:
        at_exit.callback(write, read())
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    at_exit.callback(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warn_only
    )
    for name in _CUDNN:
        at_exit.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    lightning = logging.getLogger("pytorch_lightning")
    at_exit.callback(lightning.setLevel, lightning.level)


def threads_for(asked: int | None, checkpoint: Mapping[str, Any] | None) -> int | None:
    """Returns on how many threads to compute; None for as many as a new run takes.

    Args:
        asked: ``compute.threads``, which takes precedence.
        checkpoint: that a run resumes from, or that is evaluated: then as many as its run computed on, also where this
            machine has fewer cores or ``OMP_NUM_THREADS`` says otherwise.
    """
    if asked is not None or checkpoint is None:
        return asked
    before: int = checkpoint[THREADS]
    if before > (cores := joblib.cpu_count()):
        log.warning(
            "on %d threads, as before, so that numbers stay the same to the last digit, though there are %d cores for "
            "this process; compute.threads=%d is faster",
            before, cores, cores,
        )  # fmt: skip
    return before
