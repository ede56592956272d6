"""Errors that are shown to the user as one line."""

import difflib
import re
import sys
from collections.abc import Iterable

from attnmosaic.core.quoting import typed_override


class UserError(Exception):
    """A user error: reported in one line without a stack trace, exit code 2.

    The message names the config key, what was given, what is allowed and what to type instead.
    """


class BusyError(UserError):
    """The user error of a run, sweep or search that another process is running."""


class RunError(Exception):
    """The failure of a run whose config is valid: reported in one line, exit code 1."""


class Pruned(Exception):
    """The early end of a search's trial that is worse than others; not a failure."""


class DiskError(RunError):
    """The failure of a run by an error of the disk; the run resumes once the disk works again."""


class JobError(Exception):
    """A bug in a job of a sweep, with its stack trace as a note; other errors cannot all be sent between processes."""


_GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How CUDA and its libraries report that memory of their own is used up."""


def gpu_memory_message(error: BaseException) -> str | None:
    """Returns the line that reports a GPU whose memory is used up, or None for any other error. Imports no torch."""
    torch, text = sys.modules.get("torch"), str(error)
    if torch is None or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in _GPU_FULL):
        return None
    begin, free, _ = text.partition(" is free")  # the rest is about torch's allocator
    return (
        f"GPU memory is used up ({(begin + free).splitlines()[0]}); type compute.cache_gb=0 or a smaller "
        "data.batch_size, and where jobs of a sweep share a GPU hydra.launcher.jobs_per_gpu=1"
    )


def one_line(text: str) -> str:
    """Returns text on one line, without control characters: names in it may come from anybody's files."""
    words = re.sub(r"\s*[^\S ]\s*", " ", text.strip())  # spaces stay, as they are part of names in commands
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def nearest(given: object, allowed: Iterable[object], n: int = 3) -> list[str]:
    """Returns up to n of the allowed words, those most like the given one first."""
    words = [str(word) for word in allowed]
    by_lower = {word.lower(): word for word in words}
    close = difflib.get_close_matches(str(given).lower(), by_lower, n=n, cutoff=0.5)
    return [by_lower[word] for word in close]


def not_among(key: str, given: object, allowed: Iterable[object]) -> UserError:
    """Returns the error for a word that is not among those allowed, with the nearest one."""
    words = [str(word) for word in allowed]
    close = nearest(given, words, n=1)
    hint = f"; did you mean {typed_override(key, close[0])}?" if close else ""
    return UserError(f"{key}: got '{given}', allowed: {', '.join(words)}{hint}")
