"""Ends a command on Ctrl-C, SIGTERM and SIGHUP with one line and exit code 128 + signal number.

A command ends immediately: its files on the disk are complete at any moment, and it resumes in the same way after a
signal as after a crash. Only a sweep ends in order: it ends its jobs, prints its table and closes its display first.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from attnmosaic.core.text import SUBSTITUTE, encoding_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE = 10
"""Seconds after which an end in order is cut short."""


class Stopped(KeyboardInterrupt):
    """Raised in the main thread of a command that ends in order.

    Attributes:
        signum: number of the signal that stopped the command.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_orderly = False
_received: int | None = None
_advice: Callable[[], str] | None = None


def listen() -> None:
    """Installs handlers of `SIGNALS` that end this process; signals that it already ignores (nohup) stay ignored."""
    global _received
    end_in_order(False)
    _received = None
    if threading.current_thread() is not threading.main_thread():  # only the main thread can install handlers
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def end_in_order(orderly: bool, advice: Callable[[], str] | None = None) -> None:
    """Sets whether this process ends at once after a signal, or in order as a sweep does.

    Args:
        orderly: whether the signal raises `Stopped` in the main thread, so that child processes and displays end first.
            A second signal, or the end of `GRACE` seconds, still ends the process immediately.
        advice: returns how to resume; its text is added to the line that reports the signal.
    """
    global _orderly, _advice
    _orderly, _advice = orderly, advice


def stop_message(signum: int) -> str:
    """Returns the line that reports the signal and how to resume."""
    advice = ""
    with contextlib.suppress(Exception):  # the signal may have interrupted any statement
        advice = _advice() if _advice is not None else ""
    return f"stopped by {signal.Signals(signum).name}{advice}"


def _stop(signum: int, _: FrameType | None) -> None:
    global _received
    if not _orderly or _received is not None:
        _end(signum)
    _received = signum
    signal.signal(signal.SIGALRM, lambda *_: _end(signum))
    signal.alarm(GRACE)
    raise Stopped(signum)


def _end(signum: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the signal may have interrupted a write to the stream
            stream.flush()
    with contextlib.suppress(OSError):
        cursor = "\n\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden the cursor
        os.write(2, f"{cursor}{stop_message(signum)}\n".encode(encoding_of(sys.stderr), SUBSTITUTE))
    os._exit(128 + signum)
