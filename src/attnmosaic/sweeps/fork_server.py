"""The process that imports once what every job of a sweep needs.

Each job is a fork of this server: it starts within milliseconds instead of the seconds that imports take, it finds
nothing that another job left, and its memory is freed when it ends.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from typing import Any

from hydra.core.utils import env_override

from attnmosaic.core.library_internals import forkserver_pid

# Windows cannot fork, and on macOS the system's own libraries may not survive it: there each job imports anew.
FORKS = sys.platform == "linux"
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")

PRELOAD = (
    "attnmosaic.callbacks.checkpoints", "attnmosaic.callbacks.csv_tables", "attnmosaic.callbacks.figures",
    "attnmosaic.callbacks.progress", "attnmosaic.data.gaussian", "attnmosaic.data.images", "attnmosaic.nn.networks",
    "attnmosaic.plotting.run", "attnmosaic.sweeps.local", "attnmosaic.training.factory", "attnmosaic.training.results",
    "attnmosaic.training.resume", "attnmosaic.training.runtime", "attnmosaic.training.trainer",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "matplotlib.figure",
    "torch.utils.tensorboard",
)  # fmt: skip
"""What most jobs import. No module here starts a thread, runs an operation of torch or uses a GPU: forks could not."""


def start_server() -> None:
    """Starts the server, which still imports when this has returned."""
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
    """Kills the server, which else would finish its imports first."""
    if FORKS and (pid := forkserver_pid()) is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # multiprocessing itself removes the ended process
