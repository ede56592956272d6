"""Ends a command on Ctrl-C and on the signals by which a system ends processes: one line, exit code 128 + signal.

A command ends at once: its files on the disk are complete at any moment, and resuming after a stop is the same as after
a crash. Only a sweep is ended in order, for its jobs, its table and its display.
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
"""Seconds that an end in order may take."""


class Stopped(KeyboardInterrupt):
    """The stop of a command that ends in order.

    Attributes:
        signum: the signal that stopped it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_orderly = False
_received: int | None = None
_advice: Callable[[], str] | None = None


def listen() -> None:
    """Installs handlers of `SIGNALS` that end this process, but for signals that it was started to ignore (nohup)."""
    global _received
    end_in_order(False)
    _received = None
    if threading.current_thread() is not threading.main_thread():  # the only one that may install handlers
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def end_in_order(orderly: bool, advice: Callable[[], str] | None = None) -> None:
    """Sets how this process ends when it is stopped.

    Args:
        orderly: by raising `Stopped` in the main thread, so that children and displays are ended first; a second
            signal, or `GRACE`, ends the process at once all the same.
        advice: returns what to type to resume.
    """
    global _orderly, _advice
    _orderly, _advice = orderly, advice


def stop_message(signum: int) -> str:
    """Returns the line that reports a stop."""
    advice = ""
    with contextlib.suppress(Exception):  # the process may have been anywhere
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
        with contextlib.suppress(Exception):  # the signal may have interrupted a write
            stream.flush()
    with contextlib.suppress(OSError):
        cursor = "\n\x1b[?25h" if os.isatty(2) else ""  # a bar may have hidden it
        os.write(2, f"{cursor}{stop_message(signum)}\n".encode(encoding_of(sys.stderr), SUBSTITUTE))
    os._exit(128 + signum)
