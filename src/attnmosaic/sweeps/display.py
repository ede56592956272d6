"""What a sweep shows while it works: bars that move on a terminal, a line as each job ends. Imports no torch."""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

import rich
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from attnmosaic.core.text import (
    cut_middle,
    encoding_of,
    format_clock,
    format_duration,
    format_fraction,
    substituted,
    without_accuracy,
)
from attnmosaic.sweeps.monitor import BEFORE, DONE, FAILED, LEFT, PASSED, PRUNED, RUNNING, STOPPED, Job, Watch

log = logging.getLogger(__name__)

SECONDS = 0.5
"""Between two looks at the jobs' folders."""

WIDEST, SHORTEST, INDENT = 100, 6, 2
"""Columns: of the whole on a wider terminal, of a bar that is worth its place, and before the jobs' lines."""

RESULT_COLUMNS = len("done  : accuracy train .960 test .834 held_out .684, 12 min")

STYLES = {
    BEFORE: "dim",
    DONE: "green",
    FAILED: "bold red",
    STOPPED: "yellow",
    PASSED: "yellow",
    LEFT: "yellow",
    PRUNED: "yellow",
}


class Display:
    """Watches a sweep's jobs from a thread, and tells of them on standard error.

    Live, it has bars at the bottom of the terminal; what this process prints meanwhile, and the jobs where they are
    given a `stream`, goes above them.

    Args:
        mode: ``live``, or another for nothing but a line as each job ends.
        jobs: the jobs, by number.
        console: where to draw; None for standard error.

    Attributes:
        watch: what becomes of the jobs.
    """

    def __init__(self, mode: str, jobs: list[Job], console: Console | None = None) -> None:
        self._live: Live | None = None
        self._streams: list[Lines] = []
        self._console = console
        self._screen = threading.RLock()  # one writer at a time: what one erases is what the last one drew
        self._over = threading.Event()
        shared = _shared(jobs)
        self._labels = [substituted(job.label.removeprefix(shared), sys.stderr) for job in jobs]
        if mode == "live":
            self._start()
        width = self._console.width if self._console is not None else 0
        whole = not width or all(len(job.label) + RESULT_COLUMNS <= width for job in jobs)
        self._called = {job.label: job.label if whole else label for job, label in zip(jobs, self._labels, strict=True)}
        self.watch = Watch(jobs, self._tell)
        self._thread = threading.Thread(target=self._follow, name="sweep", daemon=True)
        self._thread.start()

    @property
    def live(self) -> bool:
        return self._live is not None

    def rename(self, number: int, label: str) -> None:
        """Gives a job another label: what tells it from others may be known only when it is about to begin."""
        self.watch.jobs[number].label = self._called[label] = label
        self._labels[number] = substituted(label, sys.stderr)

    def stream(self) -> "Lines":
        """Returns a stream for what one more process prints."""
        stream = Lines(self, sys.stderr)
        self._streams.append(stream)
        return stream

    def show(self, line: str) -> None:
        """Shows a line above the bars."""
        self._print(Text.from_ansi(line), soft_wrap=True)  # as its writer broke it

    def close(self) -> None:
        """Tells which jobs were stopped, takes the bars away and gives the terminal back."""
        self._over.set()
        try:
            self._thread.join()
            self.watch.close()
            if self.live:
                for stream in self._streams:
                    stream.close_line()
                self._print(Text(f"{_counts(self.watch)} in {format_duration(self.watch.elapsed)}"))
        finally:  # of a second Ctrl-C, too
            self._stop()

    def draw(self) -> None:
        """Draws the bars anew."""
        bars = self._bars()
        with self._screen:
            if self._live is not None:
                self._live.update(bars, refresh=True)

    def _start(self) -> None:
        if self._console is None:
            # The one that others take who draw bars (of images being decoded, say): rich puts theirs below ours.
            rich.reconfigure(file=sys.stderr, force_terminal=True)
            self._console = rich.get_console()
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._before = sys.stdout, sys.stderr
        self._streams = [Lines(self, sys.stdout), Lines(self, sys.stderr)]
        if sys.stdout.isatty():  # not what goes to a file
            sys.stdout = self._streams[0]
        sys.stderr = self._streams[1]
        self._live.start()

    def _stop(self) -> None:
        with self._screen:
            if self._live is not None and self._console is not None:
                self._live.stop()
                self._live = None
                sys.stdout, sys.stderr = self._before
                if self._console is rich.get_console():
                    rich.reconfigure()

    def _follow(self) -> None:
        while not self._over.wait(SECONDS):
            try:
                self.watch.look()
                self.draw()
            except Exception:  # a sweep of days must not hang on a bar; the next look may go well
                log.debug("the sweep's display", exc_info=True)

    def _tell(self, job: Job, text: str) -> None:
        line = Text(f"{job.state}  {self._called[job.label]}{': ' if text else ''}{text}")
        line.stylize(STYLES[job.state], 0, len(line) if job.state == BEFORE else len(job.state))
        self._print(line)

    def _print(self, line: Text, soft_wrap: bool = False) -> None:
        with self._screen, contextlib.suppress(OSError):  # a sweep outlives its terminal
            if self.live and self._console is not None:
                self._console.print(line, soft_wrap=soft_wrap)
            else:
                print(line.plain, file=sys.stderr, flush=True)

    def _bars(self) -> RenderableType:
        watch, width = self.watch, min(WIDEST, self._console.width if self._console is not None else WIDEST)
        everything = Table.grid(padding=(0, 2), expand=True)
        everything.add_column(ratio=1, min_width=SHORTEST)
        left = watch.left
        everything.add_row(
            ProgressBar(sum(job.schedule.epochs for job in watch.jobs), sum(job.behind for job in watch.jobs)),
            _counts(watch),
            format_clock(watch.elapsed),
            f"left {'?' if left is None else format_duration(left)}",
        )
        unfinished = [substituted(stream.unfinished, sys.stderr) for stream in self._streams]
        streams = (Text(line, no_wrap=True, overflow="ellipsis") for line in unfinished if line.strip())
        # The cursor rests on an empty line: what the terminal puts there (^C) must not break a full one in two.
        return Constrain(Group(everything, _running(watch.jobs, self._labels, width), *streams, ""), width)


class Lines(io.TextIOBase):
    """A stream whose whole lines go above a display; its unfinished one (a download's bar, say) is part of it.

    Args:
        display: the display.
        stream: stands behind it, and is written to once the display has gone.
    """

    def __init__(self, display: Display, stream: IO[str]) -> None:
        self._display = display
        self._stream = stream
        self._lock = threading.Lock()
        self.unfinished = ""

    def write(self, text: str) -> int:
        if not self._display.live:
            return self._stream.write(text)
        with self._lock:
            *lines, unfinished = (self.unfinished + text).split("\n")
            self.unfinished = _overwritten(unfinished) + "\r" * unfinished.endswith("\r")
        for line in lines:
            self._display.show(_overwritten(line))
        return len(text)

    def close_line(self) -> None:
        """Takes the unfinished line for a whole one, if there is any."""
        if self.unfinished.strip():
            self.write("\n")

    def flush(self) -> None:
        if not self._display.live:
            with contextlib.suppress(ValueError):  # closed in the meantime
                self._stream.flush()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return encoding_of(self._stream)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _overwritten(line: str) -> str:
    """Returns what is left of a line on a terminal in which carriage returns go back to its beginning."""
    return line.rstrip("\r").rpartition("\r")[2]


def _running(jobs: Sequence[Job], labels: Sequence[str], width: int) -> Table:
    """Returns a line for each job at work; its columns stay where they are while jobs come and go."""
    gap = 2 if width >= WIDEST else 1
    doing, measured = len("what+where"), len("test accuracy .834 focus .771")
    epochs = max(len(f"{job.schedule.epochs}/{job.schedule.epochs}") for job in jobs)
    longest = max(map(len, labels))
    # What there is no room for goes: first the bar, then the middle of the labels, then what was measured.
    bar = width - INDENT - longest - doing - epochs - measured - 4 * gap
    named = longest if bar >= SHORTEST else min(longest, bar + longest + gap)
    if named < min(longest, doing):
        named, measured = min(longest, named + measured + gap), 0
    lines = Table.grid(padding=(0, gap))
    for job, label in zip(jobs, labels, strict=True):
        if job.state == RUNNING:
            evaluated = " ".join(
                f"{without_accuracy(name)} {format_fraction(value)}" for name, value in job.evaluated.items()
            )
            lines.add_row(
                f"{'':{INDENT}}{cut_middle(label, named):{named}}",
                f"{job.doing:{doing}}",
                *([ProgressBar(job.schedule.epochs, job.behind, width=bar)] if bar >= SHORTEST else []),
                f"{f'{job.epochs}/{job.schedule.epochs}':>{epochs}}",
                *([f"{f'test {evaluated}' if evaluated else '':{measured}}"] if measured else []),
            )
    return lines


def _shared(jobs: list[Job]) -> str:
    """Returns what the names of all experiments begin with: ``table1/``, say, or nothing."""
    tables = {job.name.rpartition("/")[:2] for job in jobs}
    return "".join(tables.pop()) if len(tables) == 1 else ""


def _counts(watch: Watch) -> str:
    counts = watch.counts
    told = [f"{counts[DONE] + counts[BEFORE]}/{len(watch.jobs)} done"]
    others = (RUNNING, PRUNED, FAILED, STOPPED, PASSED, LEFT)
    return ", ".join([*told, *(f"{counts[state]} {state}" for state in others if counts[state])])
