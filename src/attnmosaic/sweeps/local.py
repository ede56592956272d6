"""Runs the jobs of a sweep on this machine, several in parallel, each in a new process."""

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
from attnmosaic.core.resources import free_gb, requested_threads, visible_gpus
from attnmosaic.core.signals import SIGNALS
from attnmosaic.core.text import encoding_of, use_substitutes
from attnmosaic.runs.run import ERROR
from attnmosaic.sweeps.allocation import gpu_groups, gpus_per_job, job_environment, jobs_and_threads
from attnmosaic.sweeps.display import Stream
from attnmosaic.sweeps.fork_server import CONTEXT
from attnmosaic.sweeps.hydra_callback import job_began, job_ended, job_output, job_prefix, write_plan
from attnmosaic.sweeps.job_configs import JobConfigs
from attnmosaic.sweeps.packed_job import PackedJob, failed_job, portable_error


def run_jobs(
    config: DictConfig,
    context: HydraContext,
    task: tuple[str, str],
    limits: dict[str, Any],
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Runs jobs of a sweep, as many in parallel as cores, memory and GPUs allow.

    Args:
        config: config of the sweep, with Hydra's section ``hydra``.
        context: Hydra's context of the sweep.
        task: function that a job calls, as (module, name).
        limits: ``n_jobs``, ``gb_per_job`` and ``jobs_per_gpu``, see `attnmosaic.sweeps.allocation.jobs_and_threads`.
        overrides: overrides of each job.
        first: number of the first job.
    """
    from joblib import cpu_count

    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    gpus_of_job = gpus_per_job(config)
    gpus = [] if gpus_of_job == 0 else visible_gpus(os.environ)
    # A search launches its trials in rounds. A resumed round can have fewer trials than a complete one, but its jobs
    # must have as many threads.
    jobs = max(len(overrides), OmegaConf.select(config, "hydra.sweeper.n_jobs") or 1)
    at_once, threads = jobs_and_threads(
        jobs,
        cpu_count(),
        processes=processes_of({"trainer": OmegaConf.select(config, "trainer") or {}}),
        threads=requested_threads(OmegaConf.select(config, "compute.threads"), os.environ),
        free_gb=free_gb(),
        gpus=len(gpu_groups(gpus, gpus_of_job)),
        **limits,
    )
    threads_text = f", threads per process: {threads}" if threads else ""
    print(f"{len(overrides)} jobs, {at_once} at once{threads_text}", file=sys.stderr)

    write_plan(context)

    def packed_jobs() -> Iterator[tuple[PackedJob, Sequence[str], Path]]:
        configs = JobConfigs(context.config_loader, config)
        for number, job_overrides in enumerate(overrides, start=first):
            composed = configs(job_overrides)
            with open_dict(composed):
                composed.hydra.job.num = number
            log_file = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir, f"{composed.hydra.job.name}.log")
            environ = os.environ | job_environment(number, threads, gpus, gpus_per_job(composed))
            yield PackedJob(number, composed, task, context, environ), job_overrides, log_file

    # Each running job has a thread that waits for it. Hydra, which is not thread-safe, runs in the job's process.
    with ThreadPoolExecutor(at_once) as pool, Jobs() as running:
        return [*pool.map(lambda job: running.run(*job), packed_jobs())]


class Jobs:
    """Runs jobs, each in its own process; leaving the ``with`` block kills the processes that still run."""

    def __init__(self) -> None:
        self._running: set[BaseProcess] = set()
        self._closed = False
        self._lock = threading.Lock()  # multiprocessing's tables of processes are not thread-safe

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        running = tuple(self._running)
        for process in running:
            process.kill()
        for process in running:  # a process holds the lock of its run's folder until it has ended
            wait([process.sentinel], timeout=5)

    def run(self, job: PackedJob, overrides: Sequence[str], log_file: Path) -> JobReturn:
        """Runs a job to its end; if the job fails or its process is killed, the result contains the error."""
        if self._closed:
            return failed_job(overrides, RunError(f"job {job.number} was not started"))
        job_began(job.number)
        with _output_pipe() as output:
            job_return = self._run(job, overrides, log_file, output)
        if not self._closed:
            job_ended(job.number, job_return)
        return job_return

    def _run(self, job: PackedJob, overrides: Sequence[str], log_file: Path, output: Connection | None) -> JobReturn:
        import cloudpickle

        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run_here, args=(job, [*overrides], job_prefix(job.number), send, output))
        with receive:
            try:
                self._start(process)
                send.close()
                if output is not None:
                    output.close()
                job_return: JobReturn = cloudpickle.loads(receive.recv_bytes())
                self._wait_for_end(process)
                return job_return
            except (EOFError, OSError):  # the process has ended without a result
                message = f"job {job.number} ({' '.join(overrides)}): its process {self._wait_for_end(process)}"
        if log_file.exists():
            with contextlib.suppress(OSError):
                with log_file.open("a", encoding="utf-8") as log:
                    log.write(f"{message}\n")
                # A stopped job has not failed, so its folder gets no error.
                if not self._closed and -(process.exitcode or 0) not in SIGNALS:
                    write_atomically(log_file.with_name(ERROR), message)
        return failed_job(overrides, RunError(message))

    def _start(self, process: BaseProcess) -> None:
        with self._lock:
            if self._closed:
                raise EOFError
            process.start()
            self._running.add(process)

    def _wait_for_end(self, process: BaseProcess) -> str:
        """Waits until a process has ended; returns how it ended, as the end of a sentence."""
        if process not in self._running:
            return "could not be started: see the errors of its imports above"
        wait([process.sentinel])
        with self._lock:
            process.join()
            self._running.remove(process)
        if self._closed:
            return "was stopped with the sweep"
        code = process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code} before the job was done"
        hint = ": out of memory? To run fewer jobs at once, type for example hydra.launcher.n_jobs=1"
        return f"was killed by {signal.Signals(-code).name}{hint if code == -signal.SIGKILL else ''}"


@contextlib.contextmanager
def _output_pipe() -> Iterator[Connection | None]:
    """Yields the pipe that a job must print to; None if the job can print to the terminal itself."""
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
        reader.join(timeout=5)  # with a timeout, as a process that the job started can still hold the other end


def _copy(receive: Connection, stream: Stream) -> None:
    decode = codecs.getincrementaldecoder(encoding_of(stream.rich_proxied_file))("replace").decode
    with receive:
        while printed := os.read(receive.fileno(), 1 << 16):
            stream.write(decode(printed))
    stream.end_line()


def _run_here(job: PackedJob, overrides: list[str], prefix: str, send: Connection, output: Connection | None) -> None:
    """Runs a job in the current process, which is the job's own, and sends the result to the parent process."""
    import cloudpickle

    for signum in {*SIGNALS} - {signal.SIGTERM}:  # after Ctrl-C, or if the terminal is closed, the parent ends its jobs
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_once)  # with Lightning's handler only, the exit code would be 0
    use_substitutes()  # before the streams are redirected
    logging.raiseExceptions = False  # see attnmosaic.cli.command.run
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        output.close()
    os.environ.clear()
    os.environ.update(job.environ)
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and "torch" in sys.modules:
        # Torch read this variable when the fork server imported torch; it has not started any threads yet.
        sys.modules["torch"].set_num_threads(int(threads))

    def task(config: DictConfig) -> Any:
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setFormatter(_PrefixFormatter(prefix, handler.formatter or logging.Formatter()))
        return job.call(config)

    try:
        job_return = job.run(task)
    except Exception as error:
        job_return = failed_job(overrides, portable_error(error))
    send.send_bytes(cloudpickle.dumps(job_return))


def _end_at_once(signum: int, _: FrameType | None) -> None:
    """Ends this process by the signal it got, as if the signal had no handler."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _PrefixFormatter(logging.Formatter):
    """Adds a prefix to every line of a message, because several jobs print to the same terminal."""

    def __init__(self, prefix: str, formatter: logging.Formatter) -> None:
        super().__init__()
        self.prefix = prefix
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return textwrap.indent(self.formatter.format(record), self.prefix, lambda _: True)
