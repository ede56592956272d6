"""Limits on time and memory for tests with hostile input: a hang or a huge allocation is then a failed test."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from typing import Any


class HangError(BaseException):
    """Error for code that did not end in time. It is no `Exception`, as commands turn exceptions into one line."""


@contextlib.contextmanager
def bounded(seconds: int = 60, gigabytes: float = 6) -> Iterator[None]:
    """Raises `HangError` if the block runs longer than ``seconds``; limits its memory to ``gigabytes`` in addition."""

    def on_alarm(*_: Any) -> None:
        raise HangError(f"not finished within {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="utf-8") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (int(used + gigabytes * 1e9), before[1]))
    earlier = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, before)
