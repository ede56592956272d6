"""The jobs of a sweep, each in a process of its own, however it ends."""

import codecs
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from attnmosaic.core.errors import RunError
from attnmosaic.core.files import write_atomically
from attnmosaic.core.signals import SIGNALS
from attnmosaic.core.text import use_substitutes
from attnmosaic.runs.run import AT_ONCE, ERROR
from attnmosaic.sweeps.allocation import environment
from attnmosaic.sweeps.callback import job_began, job_ended, job_output, job_prefix
from attnmosaic.sweeps.display import Lines
from attnmosaic.sweeps.job import failed, portable, run_composed, task_named
from attnmosaic.sweeps.server import CONTEXT


class Jobs:
    """Runs jobs of a sweep, each in a process of its own; leaving the ``with`` block ends those still running.

    Args:
        task: the function of a job, by module and name.
        shared: what all jobs get, pickled; see `attnmosaic.sweeps.job.Shared`.
        threads: CPU threads of a job; None leaves them as they are.
        gpus: the jobs take turns at these; with none, they see what there is.
        at_once: how many jobs run at once, for those that estimate how long all will take.
    """

    def __init__(
        self, task: tuple[str, str], shared: bytes, threads: int | None, gpus: Sequence[str], at_once: int = 1
    ) -> None:
        self.task = task
        self.shared = shared
        self.threads = threads
        self.gpus = gpus
        self.at_once = at_once
        self._running: set[BaseProcess] = set()
        self._over = False
        self._lock = threading.Lock()  # multiprocessing's own tables of processes have none

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        running = tuple(self._running)
        for process in running:
            process.kill()
        for process in running:  # the locks of their folders end with them
            wait([process.sentinel], timeout=5)

    def run(self, job: int, overrides: Sequence[str], config: bytes, devices: int | None = 1) -> JobReturn:
        """Runs a job to its end; that it failed, or that its process was killed, is in what this returns.

        Args:
            job: its number.
            overrides: what tells it from the other jobs.
            config: its composed config, pickled.
            devices: how many GPUs it takes, see `attnmosaic.sweeps.allocation.devices`.
        """
        if self._over:
            return failed(overrides, RunError(f"job {job} was not begun"))
        job_began(job)
        with _printed() as output:
            done = self._run(job, overrides, config, devices, output)
        if not self._over:
            job_ended(job, done)
        return done

    def _run(
        self, job: int, overrides: Sequence[str], config: bytes, devices: int | None, output: Connection | None
    ) -> JobReturn:
        environ = os.environ | environment(job, self.threads, self.gpus, devices) | {AT_ONCE: str(self.at_once)}
        receive, send = CONTEXT.Pipe(duplex=False)
        sent_to = (send, output, job_prefix(job))
        arguments = (*sent_to, job, [*overrides], config, self.shared, self.task, os.getcwd(), environ, self.threads)
        process = CONTEXT.Process(target=_serve, args=arguments)
        log_files: list[str] = []
        with receive:
            try:
                self._start(process)
                send.close()
                if output is not None:
                    output.close()
                while not isinstance(sent := cloudpickle.loads(receive.recv_bytes()), JobReturn):
                    log_files = sent
                self._end(process)
                return sent
            except (EOFError, OSError):  # nothing more will come
                message = f"job {job} ({' '.join(overrides)}): its process {self._end(process)}"
                stopped = -(process.exitcode or 0) in SIGNALS
        for file in log_files:
            with contextlib.suppress(OSError), Path(file).open("a", encoding="utf-8") as log:
                log.write(f"{message}\n")
            if not (self._over or stopped):  # else it was stopped, and has not failed
                with contextlib.suppress(OSError):
                    write_atomically(Path(file).with_name(ERROR), message)
        return failed(overrides, RunError(message))

    def _start(self, process: BaseProcess) -> None:
        with self._lock:
            if self._over:
                raise EOFError
            process.start()
            self._running.add(process)

    def _end(self, process: BaseProcess) -> str:
        """Waits until a process has ended, and says how it did."""
        if process not in self._running:
            return "could not be started: see above for what its imports said"
        wait([process.sentinel])
        with self._lock:
            process.join()
            self._running.remove(process)
        if self._over:
            return "was ended with the sweep"
        code = process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code} before the job was done"
        hint = ": out of memory? Fewer jobs at once take less, hydra.launcher.n_jobs=1 say"
        return f"was killed by {signal.Signals(-code).name}{hint if code == -signal.SIGKILL else ''}"


@contextlib.contextmanager
def _printed() -> Iterator[Connection | None]:
    """Gives what a job is to print to, or None where it may print to the terminal itself."""
    stream = job_output() if os.name == "posix" else None
    if stream is None:
        yield None
        return
    receive, send = CONTEXT.Pipe(duplex=False)
    passes_on = threading.Thread(target=_pass_on, args=(receive, stream), daemon=True)
    passes_on.start()
    try:
        yield send
    finally:
        send.close()
        passes_on.join(timeout=5)  # a process that the job left behind may hold the other end


def _pass_on(receive: Connection, stream: Lines) -> None:
    decode = codecs.getincrementaldecoder(stream.encoding)("replace").decode
    with receive:
        while printed := os.read(receive.fileno(), 1 << 16):
            stream.write(decode(printed))
    stream.close_line()


def _serve(
    send: Connection,
    output: Connection | None,
    prefix: str,
    job: int,
    overrides: Sequence[str],
    config: bytes,
    shared: bytes,
    task: tuple[str, str],
    folder: str,
    environ: dict[str, str],
    threads: int | None,
) -> None:
    """Runs a job, in its own process, and sends where it logs and what came of it."""
    for signum in {*SIGNALS} - {signal.SIGTERM}:  # Ctrl-C and a closed terminal: the parent ends its jobs
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_once)  # Lightning's own handler, alone, would make an exit with code 0 of it
    use_substitutes()
    logging.raiseExceptions = False  # see attnmosaic.cli.command.run
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        output.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    if threads is not None and "torch" in sys.modules:
        # It read OMP_NUM_THREADS when the server imported it, but has no threads yet.
        sys.modules["torch"].set_num_threads(threads)

    def run(config: DictConfig) -> Any:
        handlers = logging.getLogger().handlers
        log_files = [handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler)]
        send.send_bytes(cloudpickle.dumps(log_files))
        for handler in handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setFormatter(_Prefixed(prefix, handler.formatter or logging.Formatter()))
        return task_named(*task)(config)

    try:
        composed: DictConfig = cloudpickle.loads(config)
        job_id = f"{composed.hydra.job.name}_{job}"
        done = run_composed(composed, job, job_id, run, cloudpickle.loads(shared))
    except Exception as error:
        done = failed(overrides, portable(error))
    send.send_bytes(cloudpickle.dumps(done))


def _end_at_once(signum: int, _: FrameType | None) -> None:
    """Ends this process by a signal, as it would end without a handler."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Prefixed(logging.Formatter):
    """Tells the lines of jobs that share a terminal apart."""

    def __init__(self, prefix: str, formatter: logging.Formatter) -> None:
        super().__init__()
        self.prefix = prefix
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return textwrap.indent(self.formatter.format(record), self.prefix, lambda _: True)
