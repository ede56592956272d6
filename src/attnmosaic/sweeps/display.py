"""Shows a sweep at work: moving bars on a terminal, and a line as each job ends."""

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
from attnmosaic.sweeps.monitor import BEFORE, DONE, FAILED, LEFT, PRUNED, RUNNING, SKIPPED, STOPPED, Job, Monitor

log = logging.getLogger(__name__)

SECONDS = 0.5
"""Seconds between two polls of the jobs' folders."""

SHORT = 60
"""Seconds under which no time left is announced."""

WIDEST = 100
"""Columns that the bars take at most."""


class Display:
    """Follows a sweep's jobs in a thread, and shows them on standard error.

    Live, it has bars at the bottom of the terminal; the output of this process, and of jobs that print to a `stream`,
    appears above them.

    Args:
        mode: ``live``, or another for nothing but a line as each job ends.
        jobs: the jobs, by number.
        console: where to draw; None for standard error.

    Attributes:
        watch: the states of the jobs.
        live: whether there are bars.
    """

    def __init__(self, mode: str, jobs: list[Job], console: Console | None = None) -> None:
        self.live, self._silent = False, mode != "lines"
        self._lock = threading.RLock()  # each thread erases what the thread before has drawn
        self._over = threading.Event()
        self._before = sys.stdout, sys.stderr
        tables = {job.name.rpartition("/")[:2] for job in jobs}  # ("table1", "/")
        self._common = "".join(tables.pop()) if mode == "live" and len(tables) == 1 else ""
        if mode == "live":
            self._start(jobs, console)
        self.watch = Monitor(jobs, self._report)
        self._thread = threading.Thread(target=self._follow, name="sweep", daemon=True)
        self._thread.start()

    def rename(self, number: int, label: str) -> None:
        """Gives a job another label, which may be known only when the job is about to begin."""
        self.watch.jobs[number].label = label

    def stream(self) -> "Stream":
        """Returns a stream for the output of one more process."""
        self._streams.append(Stream(self._console, self._before[1], self._lock))
        return self._streams[-1]

    def show(self, line: Text) -> None:
        """Shows a line, above the bars if there are any."""
        with self._lock, contextlib.suppress(OSError):  # the terminal may have been closed
            if self.live:
                self._console.print(line)
            else:
                print(line.plain, file=sys.stderr, flush=True)

    def draw(self) -> None:
        """Draws the bars anew."""
        if self.live:
            self._update()  # without the lock: it takes the watch's, which another thread may hold while it reports
        with self._lock:
            if self.live:
                self._bars.refresh()

    def close(self) -> None:
        """Reports the jobs that were stopped, removes the bars and restores the terminal."""
        self._over.set()
        try:
            self._thread.join()
            self.watch.close()
            if self.live:
                for stream in self._streams:
                    stream.end_line()
                self.show(Text(f"{_counts(self.watch)} in {format_duration(self.watch.elapsed)}"))
        finally:  # also after a second Ctrl-C
            self._stop()

    def _start(self, jobs: list[Job], console: Console | None) -> None:
        if console is None:
            # Others use rich's own console for bars (of images being decoded, say), which then appear below ours.
            rich.reconfigure(file=sys.stderr, force_terminal=True)
            console = rich.get_console()
        self._console, self._all = console, jobs
        self._sweep = Progress(
            BarColumn(None, table_column=Column(ratio=1, min_width=6)),
            TextColumn(" {task.fields[counts]} "),
            TimeElapsedColumn(),
            TextColumn(" left {task.fields[left]}"),
            expand=True,
        )
        self._sweep.add_task("", total=sum(job.schedule.epochs for job in jobs), counts="", left="?")
        self._jobs = Progress()
        for job in jobs:
            self._jobs.add_task("", visible=False, total=job.schedule.epochs, label="", doing="", measured="")
        self._streams = [Stream(console, stream, self._lock) for stream in self._before]
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
                sys.stdout, sys.stderr = self._before
                if self._console is rich.get_console():
                    rich.reconfigure()

    def _follow(self) -> None:
        while not self._over.wait(SECONDS):
            try:
                self.watch.poll()
                self.draw()
                self._announce()
            except Exception:  # the next poll of a folder may succeed
                log.debug("the sweep's display", exc_info=True)

    def _announce(self) -> None:
        """Shows the time left once, as soon as it is known, where there are only lines."""
        if self._silent or (left := self.watch.left) is None:
            return
        self._silent = True
        if left >= SHORT:
            self.show(Text(f"about {format_duration(left)} left for the sweep"))

    def _report(self, job: Job, text: str) -> None:
        line = Text(f"{job.state}  {self._label(job)}{': ' if text else ''}{text}")
        style = {BEFORE: "dim", DONE: "green", FAILED: "bold red"}.get(job.state, "yellow")
        line.stylize(style, 0, None if job.state == BEFORE else len(job.state))
        self.show(line)

    def _label(self, job: Job) -> str:
        return substituted(job.label.removeprefix(self._common), self._before[1])

    def _update(self) -> None:
        jobs, left = self.watch.jobs, self.watch.left
        completed, ahead = sum(job.completed for job in jobs), "?" if left is None else format_duration(left)
        self._sweep.update(self._sweep.task_ids[0], completed=completed, counts=_counts(self.watch), left=ahead)
        for task, job in zip(self._jobs.task_ids, jobs, strict=True):
            values = (f"{without_accuracy(name)} {format_fraction(value)}" for name, value in job.evaluated.items())
            self._jobs.update(
                task, visible=job.state == RUNNING, completed=job.completed, label=self._label(job), doing=job.doing,
                measured=" ".join(["test", *values]) if job.evaluated else "",
            )  # fmt: skip

    def _renderable(self) -> RenderableType:
        width = min(WIDEST, self._console.width)
        longest = max(len(task.fields["label"]) for task in self._jobs.tasks)
        self._jobs.columns = _columns(width, self._all, longest)
        unfinished = (stream.unfinished() for stream in self._streams)
        # The cursor rests on an empty line: the terminal's echo of a key (^C) must not lengthen a full line.
        lines = Group(self._sweep, self._jobs, *(line for line in unfinished if line.plain.strip()), "")
        return Constrain(lines, width)


def _counts(watch: Monitor) -> str:
    counts = watch.counts
    done = f"{counts[DONE] + counts[BEFORE]}/{len(watch.jobs)} done"
    others = (RUNNING, PRUNED, FAILED, STOPPED, SKIPPED, LEFT)
    return ", ".join([done, *(f"{counts[state]} {state}" for state in others if counts[state])])


def _columns(width: int, jobs: Sequence[Job], longest: int) -> tuple[ProgressColumn, ...]:
    """Returns the columns of a job's line; their widths depend on the terminal and on all jobs.

    A narrow terminal has no bars, then no measured values, then short labels.

    Args:
        width: the terminal's.
        jobs: all jobs.
        longest: the length of the longest label.
    """
    doing, measured, shortest = len("what+where"), len("test accuracy .834 focus .771"), 6
    epochs = max(len(f"{job.schedule.epochs}/{job.schedule.epochs}") for job in jobs)
    room = width - doing - epochs - 5  # an indentation and three spaces between columns
    if room - measured - 1 < min(longest, 2 * doing):
        measured = 0
    room -= measured + 1
    columns: list[ProgressColumn] = [_Label(min(longest, room)), _text("doing", doing)]
    if (bar := room - longest - 1) >= shortest:
        columns.append(BarColumn(bar))
    columns.append(TextColumn("{task.completed}/{task.total}", justify="right", table_column=Column(width=epochs)))
    return (*columns, _text("measured", measured)) if measured else tuple(columns)


def _text(field: str, width: int) -> TextColumn:
    return TextColumn(f"{{task.fields[{field}]}}", markup=False, table_column=Column(width=width, no_wrap=True))


class _Label(ProgressColumn):
    """A job's label, indented and, if it is too long, cut in its middle: labels differ in their ends."""

    def __init__(self, width: int) -> None:
        super().__init__(Column(width=2 + width, no_wrap=True))
        self.width = width

    def render(self, task: Task) -> Text:
        return Text("  " + truncate_middle(task.fields["label"], self.width))


class Stream(FileProxy):
    """A stream whose complete lines appear above the bars, and its unfinished one (a download's bar, say) below.

    Args:
        console: where the bars are.
        file: the stream that it stands for.
        lock: is held while anything is written to the console.
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
        """Does nothing: rich's own would make a line of each state of an unfinished bar."""

    def unfinished(self) -> Text:
        """Returns the unfinished line, as it fits the terminal."""
        line = Text.from_ansi(substituted(self._unfinished.rstrip("\r"), self.rich_proxied_file))
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def end_line(self) -> None:
        """Completes the unfinished line, if there is any."""
        if self._unfinished.strip():
            self.write("\n")
