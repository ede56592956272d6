"""Text for a terminal: substitutes for letters that its encoding lacks, durations and fractions."""

import codecs
import io
import sys
from typing import IO


def in_words(seconds: float) -> str:
    """Returns a time as it is told: ``40 s``, ``25 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


SUBSTITUTE = "attnmosaic.substitute"
"""The name of the error handler."""

_AS_WIDE = {"\N{HORIZONTAL ELLIPSIS}": "~", "\N{REPLACEMENT CHARACTER}": "?"}
"""What this program and rich put into texts that fill a line: an escape would break it."""


def use_substitutes() -> None:
    """Makes standard output and error write a substitute for a letter that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # others, a notebook's say, take any letter
            stream.reconfigure(errors=SUBSTITUTE)


def substituted(text: str, stream: IO[str] | None = None) -> str:
    """Returns a text as a stream shows it (standard output by default): its length is that of its substitutes, too."""
    encoding = encoding_of(stream or sys.stdout)
    return text.encode(encoding, SUBSTITUTE).decode(encoding, "surrogateescape")


def encoding_of(stream: IO[str]) -> str:
    """Returns the encoding of a stream, UTF-8 for one that has none."""
    return getattr(stream, "encoding", None) or "utf-8"


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter, end = error.object[error.start], error.start + 1
    if letter in _AS_WIDE:
        return _AS_WIDE[letter], end
    # A file name's bytes that are no text are written as they are, which standard output does in the C locale.
    by = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace"
    return codecs.lookup_error(by)(UnicodeEncodeError(error.encoding, error.object, error.start, end, error.reason))


codecs.register_error(SUBSTITUTE, _substitute)


def share(value: float) -> str:
    """Returns a share of one as it is told: ``.834``, ``1.00``."""
    return "1.00" if round(value, 3) == 1 else f"{value:.3f}".removeprefix("0")


def short(metric: str) -> str:
    """Returns a metric's name without what every reader supplies: ``digit`` of ``digit_accuracy``."""
    return metric.removesuffix("_accuracy")
