"""What tests with hostile input share: bounds on time and memory, so that a hang or a bomb is a failure and no end."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from typing import Any


class HangError(BaseException):
    """What was tried did not end in time. No `Exception`: what is tried may make one line of any of those."""


@contextlib.contextmanager
def bounded(seconds: int = 60, gigabytes: float = 6) -> Iterator[None]:
    """Ends what runs longer, and lets no allocation succeed that takes this process so far beyond what it has."""

    def ring(*_: Any) -> None:
        raise HangError(f"no answer within {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="utf-8") as file:
        has = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (int(has + gigabytes * 1e9), before[1]))
    earlier = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, before)
