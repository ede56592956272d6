"""Formats numbers, times and long names for the report."""

import math
import time
from typing import Any

from attnmosaic.core.text import format_measured_duration, short_number, truncate_middle

MINUS, NO_VALUE = "\N{MINUS SIGN}", "\N{EN DASH}"

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def fixed(value: float | None, digits: int = 3) -> str:
    """Returns a number with `digits` decimals; a dash for None."""
    return NO_VALUE if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Returns a difference with its sign; 0 has no sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def measured(value: float, fraction: bool) -> str:
    """Returns a curve's value as text; the page's script formats values under the pointer in the same way."""
    digits = ".3f" if fraction else ".0f" if abs(value) >= 1000 else "#.4g" if value else ".0f"
    return format(value, digits).replace("-", MINUS)


def tick(value: float) -> str:
    """Returns the text of a tick on an axis, with no more digits than needed."""
    if value and not 1e-4 <= abs(value) < 1e6:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        digits = f"{value / 10.0**exponent:g}"
        text = f"{'' if digits == '1' else digits + ' · '}10{str(exponent).translate(_SUPERSCRIPT)}"
    else:
        text = f"{value:.6g}"
    return text.replace("-", MINUS)


def short(text: Any, most: int = 80) -> str:
    """Returns a text of at most `most` characters; the middle of a longer text is removed."""
    return truncate_middle(str(text), most)


def when(seconds: float) -> str:
    """Returns date and time, in this machine's time zone, of a time in seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float | None) -> str:
    """Returns a measured duration as text; a dash for None."""
    return NO_VALUE if seconds is None else format_measured_duration(seconds)


FILTERS = {function.__name__: function for function in (fixed, signed, short, short_number, when, duration)}
"""The filters of the templates, by name."""
