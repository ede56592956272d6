"""Formats numbers, times and long names for the report."""

import math
import time
from typing import Any

from attnmosaic.core.text import format_measured_duration, short_number, truncate_middle

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def fixed(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many digits behind the point."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Returns a difference with its sign, which 0 has none of."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def measured(value: float, share: bool) -> str:
    """Returns a curve's value; the page's script formats values under the pointer in the same way."""
    digits = ".3f" if share else ".0f" if abs(value) >= 1000 else "#.4g" if value else ".0f"
    return format(value, digits).replace("-", MINUS)


def tick(value: float) -> str:
    """Returns a number as an axis has it, with no more digits than it needs."""
    if value and not 1e-4 <= abs(value) < 1e6:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        digits = f"{value / 10.0**exponent:g}"
        text = f"{'' if digits == '1' else digits + ' · '}10{str(exponent).translate(_RAISED)}"
    else:
        text = f"{value:.6g}"
    return text.replace("-", MINUS)


def short(text: Any, most: int = 80) -> str:
    """Returns a name of at most `most` characters, cut in its middle."""
    return truncate_middle(str(text), most)


def when(seconds: float) -> str:
    """Returns a time since 1970 as this machine's clock has it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float | None) -> str:
    """Returns a measured time."""
    return NOTHING if seconds is None else format_measured_duration(seconds)


FILTERS = {word.__name__: word for word in (fixed, signed, short, short_number, when, duration)}
"""The filters of the templates."""
