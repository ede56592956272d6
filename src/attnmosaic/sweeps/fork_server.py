"""Starts and stops the fork server: a process that imports once the modules that every job of a sweep needs.

Each job is a fork of this server. It starts within milliseconds instead of the seconds that the imports take, it shares
no state with other jobs, and its memory is freed when it ends.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import env_override

from attnmosaic.core.library_internals import forkserver_pid

# Windows cannot fork, and on macOS the system libraries can crash after a fork: there each job does its own imports.
FORKS = sys.platform == "linux"
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")

PRELOAD = (
    "attnmosaic.training.lightning", "attnmosaic.callbacks.attention_gradients", "attnmosaic.callbacks.checkpoints",
    "attnmosaic.callbacks.csv_tables", "attnmosaic.callbacks.diagnosis", "attnmosaic.callbacks.eta",
    "attnmosaic.callbacks.figures", "attnmosaic.callbacks.progress", "attnmosaic.callbacks.snapshots",
    "attnmosaic.callbacks.tensorboard", "attnmosaic.data.gaussian", "attnmosaic.data.images", "attnmosaic.nn.networks",
    "attnmosaic.sweeps.figures", "attnmosaic.sweeps.local", "attnmosaic.training.fit",
    "attnmosaic.training.results", "attnmosaic.training.tensorboard",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.style",
)  # fmt: skip
"""Modules that most jobs import, and those that plot the figures of the jobs after the last one.

The import of these modules must not start a thread, run a torch operation or use a GPU, because neither threads nor
GPUs work in a process that is forked afterwards.
"""


def start_server(preload: Sequence[str] | None = None) -> None:
    """Starts the server and returns before the server has finished its imports.

    A server that is already running is kept, whatever it has imported.

    Args:
        preload: modules that the server imports; None for `PRELOAD`.
    """
    if not FORKS or forkserver_pid() is not None:
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([*(PRELOAD if preload is None else preload)])
    # The server must ignore Ctrl-C: this process handles it and ends the others.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # With more threads than one, numpy would start them when it is imported.
        with env_override({"OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1")}):
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    atexit.register(stop_server)


def stop_server() -> None:
    """Kills the server; a server that is only asked to end would finish its imports first."""
    if FORKS and (pid := forkserver_pid()) is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # leaves the ended process for multiprocessing to reap
