"""Display of a sweep: bars that fit the terminal, lines above them, and a restored terminal at the end."""

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.terminal import Screen
from rich.console import Console

from attnmosaic.cli.progress import SWEEP_PROGRESS, filter_console, progress_mode
from attnmosaic.config.schedule import Schedule
from attnmosaic.sweeps.display import Display
from attnmosaic.sweeps.monitor import Job

NAMES = ("table1/row1 seed 0", "table1/row2 seed 0", "table1/row2 seed 1")


class LiveDisplay:
    """A live display of jobs that is drawn only when `lines` is called."""

    def __init__(self, folder: Path, names: tuple[str, ...], width: int) -> None:
        self.file = io.StringIO()
        self.jobs = [
            Job(name.split()[0], name, folder / name.replace("/", "_"), Schedule("what_then_where", 5, 180))
            for name in names
        ]
        console = Console(file=self.file, force_terminal=True, width=width, height=30)
        self.width = width
        self.display = Display("live", self.jobs, console)

    def runs(self, number: int, epochs: int) -> None:
        self.display.monitor.began(number)
        job = self.jobs[number]
        job.epochs, job.preparing = epochs, False
        job.evaluated = {"accuracy": 0.8341, "focus": 1.0}

    def lines(self) -> list[str]:
        """Draws the display and returns the lines on the screen; checks that no line was wider than the screen."""
        self.display.draw()
        screen = Screen(self.width)
        screen.write(self.file.getvalue())
        assert screen.wrapped == 0
        return "\n".join(screen.lines()).rstrip().split("\n")


@pytest.fixture
def new_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yields a function that returns a `LiveDisplay`; closes the displays after the test."""
    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 1e6)  # the thread draws nothing during the test
    displays: list[LiveDisplay] = []

    def new_display(names: tuple[str, ...] = NAMES, width: int = 80) -> LiveDisplay:
        displays.append(LiveDisplay(tmp_path, names, width))
        return displays[-1]

    yield new_display
    for live in displays:
        live.display.close()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars(new_display: Any, width: int) -> None:
    live = new_display(width=width)
    live.runs(0, 45)
    live.display.monitor.began(2)
    live.lines()
    live.file.write("^C")  # a terminal's echo of the key
    total, first, second = live.lines()
    assert total.startswith("━")
    assert re.search(r" 0/3 done, 2 running  0:00:0\d  left \?$", total)
    words = first.translate(dict.fromkeys(map(ord, "━╸╺"))).split()
    measured = ["test", "accuracy", ".834", "focus", "1.00"] if width > 60 else []
    assert words == ["row1", "seed", "0", "where", "45/180", *measured]
    assert "━" in first
    assert second.replace("━", "").split() == ["row2", "seed", "1", "preparing", "0/180"]
    assert first.index("45/180") + 6 == second.index("0/180") + 5
    assert max(map(len, (total, first, second))) <= min(width, 100)


def test_long_labels_keep_their_ends(new_display: Any) -> None:
    """A bar is left out before a label is shortened."""
    names = tuple(f"gradients/what_then_where seed 0 lr.what={lr}" for lr in ("0.001", "0.002"))
    live = new_display(names)
    for number in range(2):
        live.runs(number, 180)
    _, first, second = live.lines()
    assert first.split()[0].startswith("what_then_")
    assert "lr.what=0.001 measuring" in first.replace("  ", " ")
    assert "lr.what=0.002 measuring" in second.replace("  ", " ")
    assert "━" not in first
    assert first.endswith("180/180 test accuracy .834 focus 1.00")


def test_lines_stay_above_the_bars(new_display: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = new_display()
    live.runs(0, 45)
    live.runs(1, 10)
    live.display.monitor.ended(1, "its process was killed")
    print("a warning\nof two lines", file=sys.stderr)
    job = live.display.stream()
    job.write("downloading   0%\r")
    job.flush()
    job.write("downloading  50%")
    job.flush()
    lines = live.lines()
    assert lines[:3] == ["failed  row2 seed 0: its process was killed", "a warning", "of two lines"]
    assert re.search(r"0/3 done, 1 running, 1 failed  0:00:0\d  left \?$", lines[3])
    assert lines[5:] == ["downloading  50%"]
    job.write("\rdownloading 100%\r\ndone")
    lines = live.lines()
    assert lines[3] == "downloading 100%"
    assert lines[6:] == ["done"]
    terminal = sys.stderr
    live.display.close()
    assert sys.stderr is not terminal
    print("a late message", file=terminal)
    screen = Screen()
    screen.write(live.file.getvalue())
    assert "\n".join(screen.lines()).rstrip().split("\n")[4:] == [
        "stopped  row1 seed 0: after epoch 45 of 180",
        "done",
        "0/3 done, 1 failed, 1 stopped in 0 s",
        "a late message",
    ]


def test_job_can_end_while_the_bars_are_drawn(new_display: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the end does not wait for the drawing thread, so there is no deadlock."""
    live = new_display()
    live.runs(0, 45)
    update = live.display._update

    def ends_meanwhile() -> None:
        other = threading.Thread(target=live.display.monitor.ended, args=(0, "it failed"), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive()
        update()

    monkeypatch.setattr(live.display, "_update", ends_meanwhile)
    assert live.lines()[0] == "failed  row1 seed 0: it failed"


def test_terminal_is_restored_after_a_second_interrupt(new_display: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stderr
    live = new_display()
    assert sys.stderr is not before

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(live.display.monitor, "close", interrupt)
        with pytest.raises(KeyboardInterrupt):
            live.display.close()
    assert sys.stderr is before
    assert "\x1b[?25h" in live.file.getvalue()  # the cursor


def test_polls_continue_after_a_failed_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 0.001)
    display = Display("quiet", [Job("a", "a seed 0", tmp_path, Schedule("joint", 1, 1))])
    polls, enough = [], threading.Event()

    def poll() -> None:
        polls.append(1)
        if len(polls) > 2:
            enough.set()
        raise PermissionError("a folder on a disk that is missing")

    with monkeypatch.context() as patch:
        patch.setattr(display.monitor, "poll", poll)
        assert enough.wait(10)
    display.close()


@pytest.mark.parametrize(("mode", "lines"), [("lines", ["about 20 min left for the sweep"]), ("quiet", [])])
def test_time_left_is_printed_once_in_mode_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, lines: list[str]
) -> None:
    """It is printed as soon as it is known; mode ``quiet`` never prints it."""
    monkeypatch.setattr("attnmosaic.sweeps.display.SECONDS", 1e6)
    jobs = [Job(name, f"{name} seed 0", tmp_path / name, Schedule("joint", 1, 12)) for name in ("a", "b")]
    display = Display(mode, jobs)
    display.monitor.began(0)
    display._announce()
    jobs[0].times.add(jobs[0].schedule, 0, 2, 100)
    display._announce()
    display._announce()
    assert capsys.readouterr().err.splitlines() == lines
    display.close()


@pytest.mark.parametrize(
    ("mode", "sweep", "messages"),
    [
        ("lines", None, ["epoch 5", "resuming", "the result", "careful"]),
        ("live", None, ["resuming", "the result", "careful"]),
        ("quiet", None, ["the result", "careful"]),
        ("lines", "live", ["careful"]),
        ("live", "quiet", ["careful"]),
        ("quiet", "lines", ["epoch 5", "resuming", "the result", "careful"]),
    ],
)
def test_messages_on_the_console(
    mode: str, sweep: str | None, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a single run its own mode decides, for a job of a sweep the mode of the sweep."""
    console, file = io.StringIO(), io.StringIO()
    handlers = [logging.StreamHandler(console), LogFile(file)]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    monkeypatch.delenv(SWEEP_PROGRESS, raising=False)
    if sweep is not None:
        monkeypatch.setenv(SWEEP_PROGRESS, sweep)
    filter_console(mode)
    logging.getLogger("attnmosaic.callbacks.progress").info("epoch 5")
    logging.getLogger("attnmosaic.training.resume").info("resuming")
    logging.getLogger("attnmosaic.train").info("the result")
    logging.getLogger("anyone").warning("careful")
    assert console.getvalue().splitlines() == messages
    assert file.getvalue().splitlines() == ["epoch 5", "resuming", "the result", "careful"]


class LogFile(logging.StreamHandler):  # type: ignore[type-arg]
    """Stand-in for the handler of a log file."""


def test_auto_depends_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    assert [progress_mode(mode) for mode in ("auto", "live", "lines", "quiet")] == ["lines", "live", "lines", "quiet"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress_mode("auto") == "live"
    monkeypatch.setenv("TERM", "dumb")
    assert progress_mode("auto") == "lines"
