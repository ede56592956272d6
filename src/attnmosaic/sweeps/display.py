"""Displays a running sweep: progress bars on a terminal, and a line when a job ends."""

import contextlib
import logging
import sys
import threading
from collections.abc import Sequence
from typing import IO

import rich
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from attnmosaic.core.text import format_duration, format_fraction, substituted, truncate_middle, without_accuracy
from attnmosaic.sweeps.monitor import (
    DONE,
    DONE_BEFORE,
    FAILED,
    LEFT_RUNNING,
    PRUNED,
    RUNNING,
    SKIPPED,
    STOPPED,
    Job,
    Monitor,
)

log = logging.getLogger(__name__)

SECONDS = 0.5
"""Seconds between two polls of the jobs' folders."""

SHORTEST_ANNOUNCED = 60
"""Seconds; a shorter time left is not announced."""

WIDEST = 100
"""Maximum width of the bars, in terminal columns."""


class Display:
    """Monitors a sweep's jobs in a thread and displays them on standard error.

    A live display has progress bars at the bottom of the terminal. The output of this process, and of jobs that print
    to a `stream`, appears above the bars.

    Args:
        mode: ``live`` for bars; with any other mode, only a line when a job ends.
        jobs: the jobs, in the order of their numbers.
        console: console of the bars; None for standard error.

    Attributes:
        monitor: the states of the jobs.
        live: whether the display has bars.
    """

    def __init__(self, mode: str, jobs: list[Job], console: Console | None = None) -> None:
        self.live, self._silent = False, mode != "lines"
        self._lock = threading.RLock()  # a thread that draws first erases the bars that another thread has drawn
        self._closed = threading.Event()
        self._original_streams = sys.stdout, sys.stderr
        tables = {job.name.rpartition("/")[:2] for job in jobs}  # ("table1", "/")
        self._common_prefix = "".join(tables.pop()) if mode == "live" and len(tables) == 1 else ""
        if mode == "live":
            self._start(jobs, console)
        self.monitor = Monitor(jobs, self._report)
        self._thread = threading.Thread(target=self._poll_jobs, name="sweep", daemon=True)
        self._thread.start()

    def rename(self, number: int, label: str) -> None:
        """Changes a job's label; a search knows the label of a trial only just before the trial begins."""
        self.monitor.jobs[number].label = label

    def stream(self) -> "Stream":
        """Returns a new stream for the output of one process."""
        self._streams.append(Stream(self._console, self._original_streams[1], self._lock))
        return self._streams[-1]

    def show(self, line: Text) -> None:
        """Prints a line; in a live display, above the bars."""
        with self._lock, contextlib.suppress(OSError):  # if the terminal was closed
            if self.live:
                self._console.print(line)
            else:
                # One write for the text and its end: between two, a job could write into the line (PYTHONUNBUFFERED=1).
                sys.stderr.write(f"{line.plain}\n")
                sys.stderr.flush()

    def draw(self) -> None:
        """Redraws the bars."""
        if self.live:
            # `_update` must not run under this lock: it waits for the monitor's lock, and a thread that holds the
            # monitor's lock while it reports waits for this lock.
            self._update()
        with self._lock:
            if self.live:
                self._bars.refresh()

    def close(self) -> None:
        """Reports the jobs that were stopped, removes the bars and restores the terminal."""
        self._closed.set()
        try:
            self._thread.join()
            self.monitor.close()
            if self.live:
                for stream in self._streams:
                    stream.end_line()
                self.show(Text(f"{_counts(self.monitor)} in {format_duration(self.monitor.elapsed)}"))
        finally:  # also after a second Ctrl-C
            self._stop()

    def _start(self, jobs: list[Job], console: Console | None) -> None:
        if console is None:
            # Other code uses rich's global console for its bars, for example while it decodes images. With the same
            # console, those bars appear below the bars of the sweep.
            rich.reconfigure(file=sys.stderr, force_terminal=True)
            console = rich.get_console()
        self._console, self._all_jobs = console, jobs
        self._sweep_bar = Progress(
            BarColumn(None, table_column=Column(ratio=1, min_width=6)),
            TextColumn(" {task.fields[counts]} "),
            TimeElapsedColumn(),
            TextColumn(" left {task.fields[left]}"),
            expand=True,
        )
        self._sweep_bar.add_task("", total=sum(job.schedule.epochs for job in jobs), counts="", left="?")
        self._job_bars = Progress()
        for job in jobs:
            self._job_bars.add_task("", visible=False, total=job.schedule.epochs, label="", activity="", metrics="")
        self._streams = [Stream(console, stream, self._lock) for stream in self._original_streams]
        self._bars = Live(
            get_renderable=self._renderable, console=console, transient=True, auto_refresh=False,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        if sys.stdout.isatty():
            sys.stdout = self._streams[0]
        sys.stderr = self._streams[1]
        self.live = True
        self._bars.start()

    def _stop(self) -> None:
        with self._lock:
            if self.live:
                self.live = False
                self._bars.stop()
                sys.stdout, sys.stderr = self._original_streams
                if self._console is rich.get_console():
                    rich.reconfigure()

    def _poll_jobs(self) -> None:
        while not self._closed.wait(SECONDS):
            try:
                self.monitor.poll()
                self.draw()
                self._announce()
            except Exception:  # a later poll of the folder may succeed
                log.debug("error in the display of the sweep", exc_info=True)

    def _announce(self) -> None:
        """Prints the time left of the sweep once, when it can first be estimated; only in mode ``lines``."""
        if self._silent or (left := self.monitor.seconds_left) is None:
            return
        self._silent = True
        if left >= SHORTEST_ANNOUNCED:
            self.show(Text(f"about {format_duration(left)} left for the sweep"))

    def _report(self, job: Job, text: str) -> None:
        line = Text(f"{job.state}  {self._label(job)}{': ' if text else ''}{text}")
        style = {DONE_BEFORE: "dim", DONE: "green", FAILED: "bold red"}.get(job.state, "yellow")
        line.stylize(style, 0, None if job.state == DONE_BEFORE else len(job.state))
        self.show(line)

    def _label(self, job: Job) -> str:
        return substituted(job.label.removeprefix(self._common_prefix), self._original_streams[1])

    def _update(self) -> None:
        jobs, seconds_left = self.monitor.jobs, self.monitor.seconds_left
        completed = sum(job.completed for job in jobs)
        left = "?" if seconds_left is None else format_duration(seconds_left)
        self._sweep_bar.update(
            self._sweep_bar.task_ids[0], completed=completed, counts=_counts(self.monitor), left=left
        )
        for task, job in zip(self._job_bars.task_ids, jobs, strict=True):
            values = (f"{without_accuracy(name)} {format_fraction(value)}" for name, value in job.evaluated.items())
            self._job_bars.update(
                task, visible=job.state == RUNNING, completed=job.completed, label=self._label(job),
                activity=job.activity, metrics=" ".join(["test", *values]) if job.evaluated else "",
            )  # fmt: skip

    def _renderable(self) -> RenderableType:
        width = min(WIDEST, self._console.width)
        longest = max(len(task.fields["label"]) for task in self._job_bars.tasks)
        self._job_bars.columns = _columns(width, self._all_jobs, longest)
        unfinished = (stream.unfinished() for stream in self._streams)
        # The last line is empty, for the cursor: the terminal's echo of a key (^C) must not lengthen a full line.
        lines = Group(self._sweep_bar, self._job_bars, *(line for line in unfinished if line.plain.strip()), "")
        return Constrain(lines, width)


def _counts(monitor: Monitor) -> str:
    counts = monitor.counts
    done = f"{counts[DONE] + counts[DONE_BEFORE]}/{len(monitor.jobs)} done"
    others = (RUNNING, PRUNED, FAILED, STOPPED, SKIPPED, LEFT_RUNNING)
    return ", ".join([done, *(f"{counts[state]} {state}" for state in others if counts[state])])


def _columns(width: int, jobs: Sequence[Job], longest: int) -> tuple[ProgressColumn, ...]:
    """Returns the columns of a job's line; their widths depend on the terminal and on all jobs.

    On a narrower terminal the bars are left out first, then the metrics, and then labels are shortened.

    Args:
        width: width of the display, in terminal columns.
        jobs: all jobs.
        longest: length of the longest label.
    """
    activity, metrics, shortest_bar = len("what+where"), len("test accuracy .834 focus .771"), 6
    epochs = max(len(f"{job.schedule.epochs}/{job.schedule.epochs}") for job in jobs)
    free = width - activity - epochs - 5  # an indentation and three spaces between columns
    if free - metrics - 1 < min(longest, 2 * activity):
        metrics = 0
    free -= metrics + 1
    columns: list[ProgressColumn] = [_Label(min(longest, free)), _text("activity", activity)]
    if (bar := free - longest - 1) >= shortest_bar:
        columns.append(BarColumn(bar))
    columns.append(TextColumn("{task.completed}/{task.total}", justify="right", table_column=Column(width=epochs)))
    return (*columns, _text("metrics", metrics)) if metrics else tuple(columns)


def _text(field: str, width: int) -> TextColumn:
    return TextColumn(f"{{task.fields[{field}]}}", markup=False, table_column=Column(width=width, no_wrap=True))


class _Label(ProgressColumn):
    """Column of the jobs' labels, indented; a long label is cut in the middle, because labels differ at their ends."""

    def __init__(self, width: int) -> None:
        super().__init__(Column(width=2 + width, no_wrap=True))
        self.width = width

    def render(self, task: Task) -> Text:
        return Text("  " + truncate_middle(task.fields["label"], self.width))


class Stream(FileProxy):
    """A stream that prints complete lines above the bars; its unfinished line is shown below them.

    An unfinished line is for example the progress bar of a download.

    Args:
        console: console of the bars.
        file: the stream that this one replaces.
        lock: held while the stream writes to the console.
    """

    def __init__(self, console: Console, file: IO[str], lock: threading.RLock) -> None:
        super().__init__(console, file)
        self._lock = lock
        self._unfinished = ""

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._unfinished = (self._unfinished + text).split("\n")
            if lines:
                super().write("".join(f"{line.rstrip(chr(13))}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Does nothing: rich's `FileProxy.flush` would print each state of an unfinished bar as a line."""

    def unfinished(self) -> Text:
        """Returns the unfinished line, cut at the width of the terminal."""
        line = Text.from_ansi(substituted(self._unfinished.rstrip("\r"), self.rich_proxied_file))
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def end_line(self) -> None:
        """Completes the unfinished line if it is not empty."""
        if self._unfinished.strip():
            self.write("\n")
