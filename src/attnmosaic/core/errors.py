"""Exception classes whose messages are shown to the user in one line."""

import difflib
import re
import sys
from collections.abc import Iterable

from attnmosaic.core.quoting import typed_override


class UserError(Exception):
    """Wrong input by the user: reported in one line without a stack trace, exit code 2.

    The message gives the config key, its value, the allowed values and what to type instead.
    """


class BusyError(UserError):
    """User error: another process is already running this run, sweep or search."""


class RunError(Exception):
    """Failure of a run whose config is valid: reported in one line, exit code 1."""


class Pruned(Exception):
    """Early end of a trial that is worse than other trials of its search; not a failure."""


class DiskError(RunError):
    """Failure of a run by a disk error; the run can be resumed when the disk works again."""


class JobError(Exception):
    """Unexpected error (a bug) in a job of a sweep, with its stack trace.

    Replaces the original exception, which may not be picklable; the original stack trace is added as a note.
    """


_GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Texts by which CUDA and its libraries report that the GPU has no free memory."""


def gpu_memory_message(error: BaseException) -> str | None:
    """Returns the message for an error caused by full GPU memory, or None for other errors. Imports no torch."""
    torch, text = sys.modules.get("torch"), str(error)
    if torch is None or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in _GPU_FULL):
        return None
    begin, free, _ = text.partition(" is free")  # the rest of the text describes torch's allocator
    return (
        f"GPU memory is used up ({(begin + free).splitlines()[0]}); type compute.cache_gb=0 or a smaller "
        "data.batch_size; if jobs of a sweep share a GPU, also type hydra.launcher.jobs_per_gpu=1"
    )


def one_line(text: str) -> str:
    """Returns a text on one line and without control characters, because names of files and classes can have them."""
    words = re.sub(r"\s*[^\S ]\s*", " ", text.strip())  # repeated spaces stay: they can be part of a name
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def nearest(word: object, allowed: Iterable[object], n: int = 3) -> list[str]:
    """Returns up to n allowed words that resemble a word, the most similar word first."""
    by_lower = {str(candidate).lower(): str(candidate) for candidate in allowed}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=n, cutoff=0.5)
    return [by_lower[match] for match in close]


def not_among(key: str, value: object, allowed: Iterable[object]) -> UserError:
    """Returns the user error for a value that is not an allowed word; suggests the most similar allowed word."""
    words = [str(word) for word in allowed]
    close = nearest(value, words, n=1)
    hint = f"; did you mean {typed_override(key, close[0])}?" if close else ""
    return UserError(f"{key}: got '{value}', allowed: {', '.join(words)}{hint}")
