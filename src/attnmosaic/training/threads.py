"""How many threads a run computes on: the last digits of what it computes depend on them."""

import logging
from pathlib import Path
from typing import Any

import joblib

from attnmosaic.training.checkpoint import read_checkpoint

log = logging.getLogger(__name__)

_KEY = "threads"


def save_threads(checkpoint: dict[str, Any], threads: int) -> None:
    """Writes into a checkpoint how many threads its run computes on."""
    checkpoint[_KEY] = threads


def threads_for(asked: int | None, ckpt_path: str | Path | None) -> int | None:
    """Returns how many threads to compute on, None for as many as a new run takes.

    Args:
        asked: ``compute.threads``, which nothing overrules.
        ckpt_path: the checkpoint that is gone on from, or measured: then as many as its run computed on, also where
            this machine has fewer cores or ``OMP_NUM_THREADS`` says otherwise.
    """
    if asked is not None or ckpt_path is None:
        return asked
    before: int | None = read_checkpoint(ckpt_path).get(_KEY)
    if before is not None and before > (cores := joblib.cpu_count()):
        log.warning(
            "on %d threads, as before, so that numbers stay the same to the last digit, though there are %d cores for "
            "this process; compute.threads=%d is faster",
            before, cores, cores,
        )  # fmt: skip
    return before
