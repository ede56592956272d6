"""Runs the jobs of a sweep on this machine, several at once, each in a fresh process."""

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
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.config.schema import processes_of
from attnmosaic.core.errors import RunError
from attnmosaic.core.files import write_atomically
from attnmosaic.core.resources import asked_threads, free_gb, visible_gpus
from attnmosaic.core.signals import SIGNALS
from attnmosaic.core.text import encoding_of, use_substitutes
from attnmosaic.runs.run import ERROR
from attnmosaic.sweeps.allocation import devices, environment, groups, plan
from attnmosaic.sweeps.display import Stream
from attnmosaic.sweeps.fork_server import CONTEXT
from attnmosaic.sweeps.hydra_callback import job_began, job_ended, job_output, job_prefix, write_plan
from attnmosaic.sweeps.packed_job import PackedJob, failed, portable


def run_jobs(
    config: DictConfig,
    context: HydraContext,
    task: tuple[str, str],
    limits: dict[str, Any],
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Runs jobs of a sweep at once, as many as cores, memory and GPUs allow.

    Args:
        config: the sweep's, with Hydra's own section.
        context: Hydra's.
        task: the function of a job, by module and name.
        limits: see `attnmosaic.sweeps.allocation.plan`.
        overrides: of each job.
        first: the number of the first.
    """
    from joblib import cpu_count

    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    takes = devices(config)
    gpus = [] if takes == 0 else visible_gpus(os.environ)
    # A search comes in rounds, of which a resumed one may lack some: its threads are those of a complete round.
    jobs = max(len(overrides), OmegaConf.select(config, "hydra.sweeper.n_jobs") or 1)
    at_once, threads = plan(
        jobs,
        cpu_count(),
        processes=processes_of({"trainer": OmegaConf.select(config, "trainer") or {}}),
        threads=asked_threads(OmegaConf.select(config, "compute.threads"), os.environ),
        free_gb=free_gb(),
        gpus=len(groups(gpus, takes)),
        **limits,
    )
    each = f", threads of each: {threads}" if threads else ""
    print(f"{len(overrides)} jobs, {at_once} at once{each}", file=sys.stderr)

    write_plan(context)

    def packed() -> Iterator[tuple[PackedJob, Sequence[str], Path]]:
        for number, own in enumerate(overrides, start=first):
            composed = context.config_loader.load_sweep_config(config, [*own])
            with open_dict(composed):
                composed.hydra.job.num = number
            log_file = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir, f"{composed.hydra.job.name}.log")
            environ = os.environ | environment(number, threads, gpus, devices(composed))
            yield PackedJob(number, composed, task, context, environ), own, log_file

    # A thread waits for each running job; Hydra, which is not thread-safe, runs in the job's process.
    with ThreadPoolExecutor(at_once) as pool, Jobs() as running:
        return [*pool.map(lambda job: running.run(*job), packed())]


class Jobs:
    """Runs jobs, each in a process of its own; leaving the ``with`` block ends those still running."""

    def __init__(self) -> None:
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

    def run(self, job: PackedJob, overrides: Sequence[str], log_file: Path) -> JobReturn:
        """Runs a job to its end; a failure, or the death of its process, is part of the result."""
        if self._over:
            return failed(overrides, RunError(f"job {job.number} was not begun"))
        job_began(job.number)
        with _printed() as output:
            done = self._run(job, overrides, log_file, output)
        if not self._over:
            job_ended(job.number, done)
        return done

    def _run(self, job: PackedJob, overrides: Sequence[str], log_file: Path, output: Connection | None) -> JobReturn:
        import cloudpickle

        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_serve, args=(job, [*overrides], job_prefix(job.number), send, output))
        with receive:
            try:
                self._start(process)
                send.close()
                if output is not None:
                    output.close()
                done: JobReturn = cloudpickle.loads(receive.recv_bytes())
                self._end(process)
                return done
            except (EOFError, OSError):  # the process has ended without a result
                message = f"job {job.number} ({' '.join(overrides)}): its process {self._end(process)}"
        if log_file.exists():
            with contextlib.suppress(OSError):
                with log_file.open("a", encoding="utf-8") as log:
                    log.write(f"{message}\n")
                if not self._over and -(process.exitcode or 0) not in SIGNALS:  # a job that was stopped has not failed
                    write_atomically(log_file.with_name(ERROR), message)
        return failed(overrides, RunError(message))

    def _start(self, process: BaseProcess) -> None:
        with self._lock:
            if self._over:
                raise EOFError
            process.start()
            self._running.add(process)

    def _end(self, process: BaseProcess) -> str:
        """Waits until a process has ended, and returns how it did."""
        if process not in self._running:
            return "could not be started: see the errors of its imports above"
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
    """Yields the pipe that a job is to print to; None where it may print to the terminal itself."""
    stream = job_output() if os.name == "posix" else None
    if stream is None:
        yield None
        return
    receive, send = CONTEXT.Pipe(duplex=False)
    reader = threading.Thread(target=_copy, args=(receive, stream), daemon=True)
    reader.start()
    try:
        yield send
    finally:
        send.close()
        reader.join(timeout=5)  # a process that the job left behind may hold the other end


def _copy(receive: Connection, stream: Stream) -> None:
    decode = codecs.getincrementaldecoder(encoding_of(stream.rich_proxied_file))("replace").decode
    with receive:
        while printed := os.read(receive.fileno(), 1 << 16):
            stream.write(decode(printed))
    stream.end_line()


def _serve(job: PackedJob, overrides: list[str], prefix: str, send: Connection, output: Connection | None) -> None:
    """Runs a job, in its own process, and sends the result."""
    import cloudpickle

    for signum in {*SIGNALS} - {signal.SIGTERM}:  # after Ctrl-C or in a closed terminal the parent ends its jobs
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_once)  # Lightning's own handler, alone, would make the exit code 0
    use_substitutes()  # while the streams still are what they were opened as
    logging.raiseExceptions = False  # see attnmosaic.cli.command.run
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        output.close()
    os.environ.clear()
    os.environ.update(job.environ)
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and "torch" in sys.modules:
        # Torch read the variable when the server imported it, but has no threads yet.
        sys.modules["torch"].set_num_threads(int(threads))

    def task(config: DictConfig) -> Any:
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setFormatter(_Prefixed(prefix, handler.formatter or logging.Formatter()))
        return job.call(config)

    try:
        done = job.run(task)
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
    """Begins every line of a message with a prefix, as jobs share a terminal."""

    def __init__(self, prefix: str, formatter: logging.Formatter) -> None:
        super().__init__()
        self.prefix = prefix
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return textwrap.indent(self.formatter.format(record), self.prefix, lambda _: True)
