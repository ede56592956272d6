"""Starts, connects and ends the processes of a run that trains on several devices.

Rank 0 is the process of the command. The processes with other ranks train with it and write no files. With
``trainer.devices=N`` rank 0 starts the other processes on its machine. With torchrun or srun the launcher starts all
processes, also on several machines. In both cases they exchange messages in torch's key-value store, which is served on
rank 0's machine. Its keys are:

- ``config``: the resolved config, set by rank 0;
- ``error``: the message of the first failure of a process with another rank;
- ``end``: the exit code of a command that torchrun or srun has started, set by rank 0;
- ``left/RANK``: set by a process that has read ``end``.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

from attnmosaic.cli.command import describe
from attnmosaic.config.schema import processes_of
from attnmosaic.core.errors import RunError, UserError, one_line
from attnmosaic.core.library_internals import import_lightning
from attnmosaic.core.processes import RankInfo, launched_rank
from attnmosaic.core.signals import SIGNALS

EXIT_TIMEOUT = 60
"""Seconds in which a process must notice by itself that another process of its run has ended. With NCCL it does not."""

_REASON_TIMEOUT = 5
"""Seconds to wait, after another process has ended, for the message with its reason."""


class Ranks:
    """Context manager of rank 0: starts the other processes of a run, unless torchrun or srun has, and ends them.

    Args:
        config: the run's resolved config.

    Raises:
        UserError: at entry, if this process is not rank 0.
        RunError: at exit, if another process has failed.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.info: RankInfo | None = None
        """Rank of this process; None for a run of one process."""
        self._config = config
        self._children: list[subprocess.Popen[bytes]] = []
        self._listener: socket.socket | None = None
        self._store: Any = None
        self._failure = ""
        self._failed, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> "Ranks":
        if (count := processes_of(self._config)) == 1:
            return self
        self.info = launched_rank(os.environ)
        if self.info is None:
            # The socket listens before the other processes start, so that they connect at the first attempt.
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.info = RankInfo(0, count, 0, count, *self._listener.getsockname())
            self._children = [_start(replace(self.info, rank=rank, local_rank=rank)) for rank in range(1, count)]
        elif self.info.rank > 0:
            raise UserError("torchrun and srun cannot start a custom script; type torchrun -m attnmosaic.train")
        return self

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Sends the config to the other processes and connects them; if one of them fails, this process ends, too."""
        if self.info is None:
            yield
            return
        self._store = launch_store(self.info) if self._listener is None else open_store(self.info, self._listener)
        self._watcher = threading.Thread(target=self._await_failure, args=(self._store.clone(),), daemon=True)
        self._watcher.start()
        self._store.set("config", json.dumps(self._config))
        for rank, child in enumerate(self._children, start=1):
            threading.Thread(target=self._await_end, args=(rank, child), daemon=True).start()
        with connected(self.info, self._store):
            yield

    def _await_failure(self, store: Any) -> None:
        self._failure = store.get("error").decode()
        self._failed.set()
        if not self._over.wait(EXIT_TIMEOUT):
            print(f"error: {one_line(self._failure)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _await_end(self, rank: int, child: "subprocess.Popen[bytes]") -> None:
        code = child.wait()
        if not self._over.is_set():
            count = len(self._children) + 1
            reason = f"process {rank} of {count} of this run ended with exit code {code}"
            self._store.compare_set("error", "", reason)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # If another process has ended, this process only has a connection error; the store has the reason.
        disconnected = self._store is not None and is_connection_error(error)
        if disconnected:
            self._failed.wait(_REASON_TIMEOUT)
        failure = self._failure
        self._over.set()
        for child in self._children:
            child.kill()
            child.communicate()
        if self._listener is not None:
            self._listener.close()
        if self._store is not None:
            self._store.compare_set("error", "", " ")  # ends the thread that waits for this key
            self._watcher.join()
            self._store = None
        if disconnected:
            raise RunError(failure or f"lost the connection to another process of this run ({error})") from error


def _start(info: RankInfo) -> "subprocess.Popen[bytes]":
    """Starts another process of this run, which ends when this process ends for any reason."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | info.environ() | {"PYTHONPATH": path},
        start_new_session=True,  # only this process gets Ctrl-C; it ends the others
    )


def open_store(info: RankInfo, listener: socket.socket | None = None) -> Any:
    """Opens torch's key-value store of a run; rank 0 serves it, unless torchrun does.

    Args:
        info: rank of this process.
        listener: rank 0's listening socket on ``info.port``, if it has one; the store takes the socket over.

    Raises:
        RuntimeError: no process served the store within five minutes.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    is_server = info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    fd = None if listener is None else listener.detach()
    store = TCPStore(info.address, info.port, is_master=is_server, wait_for_workers=False, master_listen_fd=fd)
    store.set_timeout(timedelta(days=24))  # longer than any run; torch counts milliseconds in 32 bits
    return PrefixStore(f"attnmosaic/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


launch_store = functools.cache(open_store)
"""`open_store` for a process that a launcher has started; it has one run, so the store is opened once and kept."""


@contextlib.contextmanager
def connected(info: RankInfo, store: Any) -> Iterator[None]:
    """Initializes torch's process group of a run; at exit waits for the other processes, except after an error."""
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    group: Any = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=group, rank=info.rank, world_size=info.count)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def leading(info: RankInfo | None) -> Iterator[None]:
    """Context of rank 0 that, at exit, ends the other processes that a launcher has started, with rank 0's exit code.

    Args:
        info: rank of this process; None if no launcher has started it.
    """
    code: Any = 1
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code or 0
        raise
    finally:
        if info is not None and info.count > 1:
            store = launch_store(info)
            store.set("end", str(code))
            with contextlib.suppress(RuntimeError):  # another process has already ended
                store.wait([f"left/{rank}" for rank in range(1, info.count)], timedelta(seconds=EXIT_TIMEOUT))


def follow(info: RankInfo) -> NoReturn:
    """Trains with rank 0, writes no files, and ends with the exit code of rank 0's command, or with 1.

    Args:
        info: rank of this process, above 0.
    """
    for signum in SIGNALS:  # rank 0 reports them
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    os.environ.update(info.environ(), TORCH_CPP_LOG_LEVEL="ERROR")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import_lightning()  # while rank 0 checks the config
    try:
        store = open_store(info)
    except RuntimeError:
        sys.exit(f"error: no connection to process 0 of this run at {info.address}:{info.port}")
    end_thread = threading.Thread(target=_end_with_run, args=(info, store.clone()), daemon=True)
    end_thread.start()
    try:
        _train_with_rank_0(info, store)
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # rank 0 has ended
            if not is_connection_error(error):
                store.compare_set("error", "", describe(error))
        end_thread.join(EXIT_TIMEOUT)
        os._exit(1)
    end_thread.join()
    os._exit(1)


def _train_with_rank_0(info: RankInfo, store: Any) -> None:
    from attnmosaic.training.checkpointing import read_saved
    from attnmosaic.training.fit import fit
    from attnmosaic.training.runtime import job_globals, threads_for

    config = json.loads(store.get("config"))
    checkpoint = None if config["ckpt_path"] is None else read_saved(config["ckpt_path"])
    threads = threads_for(config["compute"]["threads"], checkpoint)
    settings = config["seed"]["init"], threads, config["compute"]["matmul_precision"], info.local_count
    with job_globals(*settings), connected(info, store):
        fit(config, checkpoint, info)


def _end_with_run(info: RankInfo, store: Any) -> NoReturn:
    """Waits for rank 0's exit code and ends this process with it; with 1 if rank 0 ended without setting the code."""
    code = 1
    with contextlib.suppress(RuntimeError):  # rank 0 has ended
        code = int(store.get("end"))
        store.set(f"left/{info.rank}", "")
    os._exit(code)


def is_connection_error(error: BaseException | None) -> bool:
    """Returns whether an error only reports a lost connection to another process, so that the cause lies there."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "nccl", "peer")
    return type(error).__module__ == "torch.distributed" or any(word in str(error).lower() for word in words)


def _end_with_parent() -> None:
    """Ends this process as soon as its parent, rank 0, has ended."""
    sys.stdin.read()  # returns when rank 0 ends, as its end of the pipe is closed then
    os._exit(1)


if __name__ == "__main__":  # see `_start`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "SUBMITIT_EXECUTOR" in os.environ:  # Slurm sends signals to all processes; only rank 0 handles them
        for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    follow(RankInfo.of(os.environ))
