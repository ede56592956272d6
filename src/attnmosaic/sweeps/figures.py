"""Plots the figures of several runs at the same time, in as many processes as there are cores."""

import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from attnmosaic.core.quoting import command, path_word
from attnmosaic.core.signals import SIGNALS
from attnmosaic.core.text import format_duration, use_substitutes
from attnmosaic.plotting.run import ALL, MAIN, RUN_FORMATS, draw_run, up_to_date
from attnmosaic.plotting.style import PlottedFiles
from attnmosaic.runs.run import Run
from attnmosaic.sweeps.fork_server import CONTEXT, start_server
from attnmosaic.sweeps.monitor import DONE, DONE_BEFORE, Job

log = logging.getLogger(__name__)

TARGET = "attnmosaic.callbacks.figures.RunPictures"
"""The callback whose figures a sweep plots for its jobs."""

PRELOAD = (
    "attnmosaic.sweeps.figures", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
    "matplotlib.figure", "matplotlib.style",
)  # fmt: skip
"""Modules that the processes need. They do not include torch."""


class Figures(NamedTuple):
    """The figures of one run that `attnmosaic.plotting.run.draw_run` plots: its arguments."""

    folder: Path
    formats: tuple[str, ...]
    figures: str = ALL


Report = Callable[[Figures, PlottedFiles], None]


# ---- the figures of a sweep


def plot_sweep(folder: Path, jobs: Sequence[Job], mode: str) -> None:
    """Plots the figures of a sweep's finished jobs, each with the settings of its own config.

    Figures of jobs that had finished before the sweep began are plotted only if they are missing or out of date. The
    figures that could not be plotted are reported; they change nothing else.

    Args:
        folder: the sweep's folder.
        jobs: the jobs, after the end of the sweep.
        mode: how progress is shown, see `attnmosaic.cli.progress.progress_mode`.
    """
    figures = [each for job in jobs for each in figures_of_job(job)]
    if not figures:
        return
    began, runs = time.monotonic(), f"{len(figures)} run{'s' if len(figures) > 1 else ''}"
    if mode == "lines":
        print(f"plotting the figures of {runs}", file=sys.stderr, flush=True)
    with _progress(mode, len(figures)) as advance:
        draw_runs(figures, partial(_report, advance))
    if mode != "quiet":
        rest = any(each.figures == MAIN for each in figures)
        more = f"; all figures: {command('draw', path_word(folder))}" if rest else ""
        print(f"plotted the figures of {runs} in {format_duration(time.monotonic() - began)}{more}", file=sys.stderr)


def figures_of_job(job: Job) -> list[Figures]:
    """Returns the figures that a sweep must plot for a job, one element for each node of `TARGET` in its config."""
    if job.state not in (DONE, DONE_BEFORE):
        return []
    run = Run(job.folder)
    callbacks = (run.config or {}).get("callbacks") or {}
    nodes = [node for node in callbacks.values() if isinstance(node, dict) and node.get("_target_") == TARGET]
    figures = [_from_node(run.folder, node) for node in nodes]
    return [each for each in figures if job.state == DONE or not up_to_date(run, each.formats, each.figures)]


def _from_node(folder: Path, node: dict[str, Any]) -> Figures:
    formats = node.get("formats", RUN_FORMATS)
    return Figures(folder, (formats,) if isinstance(formats, str) else tuple(formats), node.get("figures", MAIN))


def _report(advance: Callable[[], None], figures: Figures, drawn: PlottedFiles) -> None:
    advance()
    if drawn.failed:
        print(f"{figures.folder}: could not plot {', '.join(drawn.failed)}", file=sys.stderr)


@contextlib.contextmanager
def _progress(mode: str, runs: int) -> Iterator[Callable[[], None]]:
    """Shows on a terminal how many runs have their figures; yields a function that counts one more run."""
    if mode != "live":
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    text = TextColumn("plotting figures: {task.completed} of {task.total} runs")
    with Progress(text, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=runs)
        yield lambda: progress.advance(task)


# ---- several runs at the same time


def draw_runs(figures: Sequence[Figures], report: Report) -> None:
    """Plots the figures of several runs; a single run's figures are plotted in this process.

    Args:
        figures: the figures of each run.
        report: called with each element of `figures` and its files, in the order in which they are ready.
    """
    if len(figures) == 1:
        report(figures[0], _draw(figures[0]))
        return
    from joblib import cpu_count

    waiting = iter(figures)
    with _Workers() as workers:
        for each in itertools.islice(waiting, cpu_count()):
            workers.start(each)
        while workers.busy:
            for finished, drawn in workers.wait():
                report(finished, drawn)
                for following in itertools.islice(waiting, 1):
                    workers.start(following)


def _draw(figures: Figures) -> PlottedFiles:
    try:
        return draw_run(*figures)
    except Exception:  # for example an unreadable table; the figures of other runs must be plotted
        log.warning("%s: the figures could not be plotted", figures.folder, exc_info=True)
        return PlottedFiles([], ["its figures"])


class _Workers:
    """Processes that plot the figures of one run after another; leaving the ``with`` block kills them.

    Attributes:
        busy: the figures that each process plots, by the connection to the process.
    """

    def __init__(self) -> None:
        self.busy: dict[Connection, Figures] = {}
        self._idle: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> "_Workers":
        start_server(PRELOAD)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def start(self, figures: Figures) -> None:
        """Plots the figures of a run in an idle process or, if there is none, in a new one."""
        connection = self._idle.pop() if self._idle else self._new()
        self.busy[connection] = figures
        with contextlib.suppress(OSError):  # if the process was killed; `wait` reports this
            # The process has its own working directory.
            connection.send(figures._replace(folder=figures.folder.absolute()))

    def wait(self) -> Iterator[tuple[Figures, PlottedFiles]]:
        """Waits until the figures of at least one run are ready, and yields them with their files."""
        for connection in wait([*self.busy]):
            assert isinstance(connection, Connection)
            figures = self.busy.pop(connection)
            try:
                drawn: PlottedFiles = connection.recv()
                self._idle.append(connection)
            except (EOFError, OSError):
                drawn = PlottedFiles([], ["its figures: the process was killed"])
            yield figures, drawn

    def _new(self) -> Connection:
        connection: Connection
        connection, other_end = CONTEXT.Pipe()
        with other_end:
            process = CONTEXT.Process(target=_plot_for, args=(other_end,), daemon=True)
            process.start()
        self._processes.append(process)
        return connection


def _plot_for(connection: Connection) -> None:
    """Plots the figures that another process asks for, until that process closes the connection or ends."""
    for signum in {*SIGNALS} - {signal.SIGTERM}:  # the other process handles Ctrl-C and kills this one
        signal.signal(signum, signal.SIG_IGN)
    use_substitutes()
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_draw(connection.recv()))
