"""Ctrl-C, and the signals by which a system ends a process: told in one line, exit code 128 + signal.

A command ends at once, wherever it is: what it leaves on the disk is whole at any moment, and going on from there is
the same after a stop as after a crash. Only a sweep is ended in order, for its jobs, its table and its display.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from attnmosaic.core.text import SUBSTITUTE, encoding_of

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

GRACE = 10
"""Seconds that an end in order may take."""


class Stopped(KeyboardInterrupt):
    """A command that was told to stop.

    Attributes:
        signum: by which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_orderly = False
_received: int | None = None
_advice: Callable[[], str] | None = None


def listen() -> None:
    """Has one of `SIGNALS` end this process from now on, but for those that it was started to ignore (nohup)."""
    global _received
    in_order(False)
    _received = None
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        return
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def in_order(orderly: bool, advice: Callable[[], str] | None = None) -> None:
    """Says how this process is to end when it is told to.

    Args:
        orderly: by raising `Stopped` in the main thread, for whoever has children or a display to end; a second signal,
            or `GRACE`, ends it at once all the same.
        advice: gives what to type to go on.
    """
    global _orderly, _advice
    _orderly, _advice = orderly, advice


def told_stop(signum: int) -> str:
    """Returns what to say of a stop."""
    advice = ""
    with contextlib.suppress(Exception):  # wherever the process was
        advice = _advice() if _advice is not None else ""
    return f"stopped by {signal.Signals(signum).name}{advice}"


def _stop(signum: int, _: FrameType | None) -> None:
    global _received
    if not _orderly or _received is not None:
        _end(signum)
    _received = signum
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, lambda *_: _end(signum))
        signal.alarm(GRACE)
    raise Stopped(signum)


def _end(signum: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may just be at work
            stream.flush()
    with contextlib.suppress(OSError):
        cursor = "\n\x1b[?25h" if os.isatty(2) else ""  # a bar may have hidden it
        os.write(2, f"{cursor}{told_stop(signum)}\n".encode(encoding_of(sys.stderr), SUBSTITUTE))
    os._exit(128 + signum)
