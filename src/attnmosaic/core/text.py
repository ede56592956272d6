"""Text for display: shortened names, formatted numbers and times, substitutes for characters a terminal lacks."""

import codecs
import io
import sys
from typing import IO, Any

SUBSTITUTE = "attnmosaic.substitute"
"""Name of the codec error handler that writes substitutes."""

_AS_WIDE = {"\N{HORIZONTAL ELLIPSIS}": "~", "\N{REPLACEMENT CHARACTER}": "?"}
"""Substitutes of one character, for texts that fill a line exactly; an escape would be wider."""


def use_substitutes() -> None:
    """Configures standard output and error to write substitutes for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # other streams, such as a notebook's, accept all characters
            stream.reconfigure(errors=SUBSTITUTE)


def substituted(text: str, stream: IO[str] | None = None) -> str:
    """Returns a text with substitutes for characters that a stream lacks; the default is standard output."""
    encoding = encoding_of(stream or sys.stdout)
    return text.encode(encoding, SUBSTITUTE).decode(encoding, "surrogateescape")


def encoding_of(stream: IO[str]) -> str:
    """Returns the encoding of a stream, or UTF-8 if the stream has no encoding."""
    return getattr(stream, "encoding", None) or "utf-8"


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter, end = error.object[error.start], error.start + 1
    if letter in _AS_WIDE:
        return _AS_WIDE[letter], end
    # Bytes of a file name that are not valid text are written unchanged, as by standard output in the C locale.
    handler = codecs.lookup_error("surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace")
    return handler(UnicodeEncodeError(error.encoding, error.object, error.start, end, error.reason))


codecs.register_error(SUBSTITUTE, _substitute)


def truncate(text: str, most: int) -> str:
    """Returns a text of at most `most` characters; a longer text keeps its beginning and ends with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def truncate_middle(text: str, most: int) -> str:
    """Returns a text of at most `most` characters; a longer text keeps both ends, with an ellipsis between them."""
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def short_value(value: object, most: int = 80) -> str:
    """Returns a value of a config as text of at most `most` characters; None becomes ``null``."""
    return "null" if value is None else truncate(str(value), most)


def short_number(value: Any) -> str:
    """Returns a value as text; a number longer than eight characters is rounded to four significant digits."""
    text = str(value)
    try:
        return text if len(text) <= 8 else f"{float(text):.4g}"
    except ValueError:
        return text


def format_fraction(value: float) -> str:
    """Returns a fraction from 0 to 1 with three digits: ``.834``, ``1.00``."""
    return "1.00" if round(value, 3) == 1 else f"{value:.3f}".removeprefix("0")


def format_duration(seconds: float) -> str:
    """Returns an estimated time, rounded: ``40 s``, ``25 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def format_measured_duration(seconds: float) -> str:
    """Returns a measured time: ``2.8 s``, ``4 min 05 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def without_accuracy(metric: str) -> str:
    """Returns a metric's name without its ending ``_accuracy``: ``digit`` for ``digit_accuracy``."""
    return metric.removesuffix("_accuracy")
