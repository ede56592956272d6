"""The process that imports once what every job of a sweep needs.

Each job is a fork of this server: it starts within milliseconds instead of the seconds that imports take, it finds
nothing that another job left, and its memory goes when it ends.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from typing import Any

from hydra.core.utils import env_override

from attnmosaic.core.internals import forkserver_pid

# Windows cannot fork, and on macOS the system's own libraries may not survive it: there each job imports anew.
FORKS = sys.platform == "linux"
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")

PRELOAD = (
    "attnmosaic.callbacks.checkpoints",
    "attnmosaic.callbacks.figures",
    "attnmosaic.callbacks.progress",
    "attnmosaic.callbacks.csv_tables",
    "attnmosaic.data.gaussian",
    "attnmosaic.data.images",
    "attnmosaic.plotting.run",
    "attnmosaic.nn.networks",
    "attnmosaic.sweeps.local",
    "attnmosaic.training.factory",
    "attnmosaic.training.runtime",
    "attnmosaic.training.results",
    "attnmosaic.training.resume",
    "attnmosaic.training.trainer",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "matplotlib.figure",
    "torch.utils.tensorboard",
)
"""What most jobs import. None of it starts a thread, runs an operation of torch or touches a GPU: forks could not."""


def start_server() -> None:
    """Starts the server; comes back at once, while it imports."""
    if not FORKS:
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([*PRELOAD])
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the others
    try:
        # numpy would start threads when imported.
        with env_override({"OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1")}):
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    atexit.register(stop_server)


def stop_server() -> None:
    """Ends the server at once; left alone, it finishes its imports first."""
    if not FORKS:
        return
    if (pid := forkserver_pid()) is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # multiprocessing looks for itself
