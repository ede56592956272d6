"""The processes of a run that several train: rank 0 is the command, the others train along and write no file.

``trainer.devices=N`` has rank 0 start the others on its machine; torchrun and srun start all of them, on several
machines say. Either way they meet in torch's store, which is served where rank 0 runs. Its keys:

- ``config``: the resolved config, from rank 0;
- ``error``: the first failure of another process, in words;
- ``end``: the exit code of a command that torchrun or srun has started, from rank 0;
- ``left/RANK``: a process has read ``end``.
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

PATIENCE = 60
"""Seconds in which a process has to notice by itself that another one of its run is gone. (With NCCL it does not.)"""

_REASON = 5
"""Seconds in which the reason of a failure has arrived after the failure."""


class Ranks:
    """Starts the other processes of a run, unless a launcher has started them, and ends them.

    Args:
        config: the run's, resolved.

    Raises:
        UserError: this is not the first process.
        RunError: on leaving, if another process has failed.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.info: RankInfo | None = None
        """Which process this is; None if it trains the run alone."""
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
            # It listens from now on, so that the others need not try again and again.
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.info = RankInfo(0, count, 0, count, *self._listener.getsockname())
            self._children = [_start(replace(self.info, rank=rank, local_rank=rank)) for rank in range(1, count)]
        elif self.info.rank > 0:
            raise UserError("torchrun and srun start no script of one's own; type torchrun -m attnmosaic.train")
        return self

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Sends the config to the other processes and connects them; a failure of theirs ends this process, too."""
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
        if not self._over.wait(PATIENCE):
            print(f"error: {one_line(self._failure)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _await_end(self, rank: int, child: "subprocess.Popen[bytes]") -> None:
        code = child.wait()
        if not self._over.is_set():
            count = len(self._children) + 1
            reason = f"process {rank} of {count} of this run ended with exit code {code}"
            self._store.compare_set("error", "", reason)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # The end of another process is why this one could not continue; its own error is that nobody answers.
        lost = self._store is not None and is_lost(error)
        if lost:
            self._failed.wait(_REASON)
        failure = self._failure
        self._over.set()
        for child in self._children:
            child.kill()
            child.communicate()
        if self._listener is not None:
            self._listener.close()
        if self._store is not None:
            self._store.compare_set("error", "", " ")  # ends the thread that waits for it
            self._watcher.join()
            self._store = None
        if lost:
            raise RunError(failure or f"another process of this run does not answer ({error})") from error


def _start(info: RankInfo) -> "subprocess.Popen[bytes]":
    """Starts another process of this run; it ends with this process, however this process ends."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | info.environ() | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for this process, which ends the others
    )


def open_store(info: RankInfo, listener: socket.socket | None = None) -> Any:
    """Opens torch's store in which the processes of a run meet; rank 0 serves it, unless torchrun does.

    Args:
        info: which process this is.
        listener: the socket of rank 0 on ``info.port``, if it has one; it is given away.

    Raises:
        RuntimeError: no process serves the store within five minutes.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    serves = info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    fd = None if listener is None else listener.detach()
    store = TCPStore(info.address, info.port, is_master=serves, wait_for_workers=False, master_listen_fd=fd)
    store.set_timeout(timedelta(days=24))  # longer than a run; milliseconds are counted in 32 bits
    return PrefixStore(f"attnmosaic/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


launch_store = functools.cache(open_store)
"""`open_store` where a launcher has started this process, which then has one run and one store."""


@contextlib.contextmanager
def connected(info: RankInfo, store: Any) -> Iterator[None]:
    """Connects the processes of a run for what they exchange; leaves together with them, after an error without."""
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
    """Ends, on leaving, the processes that a launcher has started beside rank 0, with the exit code of this one.

    Args:
        info: which process this is; None if no launcher has started it.
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
            with contextlib.suppress(RuntimeError):  # one of them has ended already
                store.wait([f"left/{rank}" for rank in range(1, info.count)], timedelta(seconds=PATIENCE))


def follow(info: RankInfo) -> NoReturn:
    """Trains along with rank 0, writes no file, and ends with the exit code of its command, or with 1.

    Args:
        info: which process this is, not rank 0.
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
        sys.exit(f"error: process 0 of this run does not answer at {info.address}:{info.port}")
    end = threading.Thread(target=_end_with_run, args=(info, store.clone()), daemon=True)
    end.start()
    try:
        _train_along(info, store)
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # rank 0 is gone
            if not is_lost(error):
                store.compare_set("error", "", describe(error))
        end.join(PATIENCE)
        os._exit(1)
    end.join()
    os._exit(1)


def _train_along(info: RankInfo, store: Any) -> None:
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
    code = 1
    with contextlib.suppress(RuntimeError):  # rank 0 is gone
        code = int(store.get("end"))
        store.set(f"left/{info.rank}", "")
    os._exit(code)


def is_lost(error: BaseException | None) -> bool:
    """Whether an error only reports that another process does not answer; any other has a reason of its own."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "nccl", "peer")
    return type(error).__module__ == "torch.distributed" or any(word in str(error).lower() for word in words)


def _end_with_parent() -> None:
    sys.stdin.read()  # ends when rank 0 does
    os._exit(1)


if __name__ == "__main__":  # see `_start`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "SUBMITIT_EXECUTOR" in os.environ:  # what Slurm sends to all processes is for rank 0 to answer
        for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    follow(RankInfo.of(os.environ))
