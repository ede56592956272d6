"""The global state of a run: seeds, number of threads, precision of matrix products."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import joblib
import numpy as np
import torch

from attnmosaic.training.checkpointing import THREADS

log = logging.getLogger(__name__)


@contextlib.contextmanager
def job_globals(seed: int, threads: int | None, matmul_precision: str, processes: int = 1) -> Iterator[None]:
    """Sets every global that a run relies on; the next job of a sweep finds them as this one did.

    Args:
        seed: for whatever draws from the global generators (dropout, say); mosaics, order and first weights
            have generators of their own.
        threads: torch's threads on the CPU; None for as many as OMP_NUM_THREADS says, or else torch's own choice,
            but no more than there are cores for this process, shared out among the processes of its run.
        matmul_precision: "highest", "high" or "medium", see `torch.set_float32_matmul_precision`; below
            "highest" convolutions on a GPU may use TF32, too.
        processes: how many train the run.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads_before = torch.get_num_threads()
    matmul_before = torch.get_float32_matmul_precision()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    warn_only_before = torch.is_deterministic_algorithms_warn_only_enabled()
    dtype_before = torch.get_default_dtype()
    cudnn = torch.backends.cudnn
    cudnn_before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    lightning_log = logging.getLogger("pytorch_lightning")
    level = lightning_log.level
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            # Torch counts the cores of the machine, also where a container's quota grants a few of them.
            threads = max(1, min(threads_before, joblib.cpu_count()) // processes)
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul_precision)
        cudnn.allow_tf32 = matmul_precision != "highest"
        # What a trainer of this job asks for is set by Lightning, over these.
        torch.use_deterministic_algorithms(False)
        cudnn.benchmark, cudnn.deterministic = False, False
        # Device tables and tips; what matters of them is in result.json.
        lightning_log.setLevel(logging.WARNING)
        for asked_for in ("callbacks.model_summary", "profilers"):
            logging.getLogger(f"pytorch_lightning.{asked_for}").setLevel(logging.INFO)
        with warnings.catch_warnings():
            # The loaders hand out row numbers: workers would only slow them down.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # An epoch of few blocks has few training steps; we log once an epoch anyway.
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
            # A resumed run writes into a folder of its own.
            warnings.filterwarnings("ignore", message=".*dirpath has changed.*")
            # A run needs no srun, also where there is one.
            warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
            # Lightning and the newest torch, about each other.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        lightning_log.setLevel(level)
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(matmul_before)
        torch.use_deterministic_algorithms(deterministic_before, warn_only=warn_only_before)
        torch.set_default_dtype(dtype_before)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = cudnn_before
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def threads_for(asked: int | None, checkpoint: Mapping[str, Any] | None) -> int | None:
    """Returns how many threads to compute on, None for as many as a new run takes.

    Args:
        asked: ``compute.threads``, which nothing overrules.
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
