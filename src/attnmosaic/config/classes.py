"""Finds the foreground and background classes that a config names, by name or by index."""

import contextlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.quoting import in_quotes, in_shell, literal
from attnmosaic.core.text import short_value


def split_classes(
    foreground: Sequence[Any], background: Sequence[Any] | None, classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Returns the indices of the foreground and of the background classes.

    Args:
        foreground: at least two classes; their order gives the labels 0, 1, ...
        background: classes, or None for every class that is not foreground.
        classes: every class of the data set, in index order.

    Raises:
        UserError: a class is unknown, either side is empty, or the two overlap.
    """
    front = class_indices(foreground, classes, "data.foreground")
    if len(front) < 2:
        raise UserError(
            f"data.foreground: got {list(foreground)}, needs at least two classes to tell apart; "
            f"type for example {_in_quotes('data.foreground', classes[:2])}"
        )
    if background is None:
        back = [i for i in range(len(classes)) if i not in front]
    else:
        back = class_indices(background, classes, "data.background")
    if shared := [classes[i] for i in back if i in front]:
        raise UserError(f"data.background: {', '.join(shared)} is also in data.foreground; a class is one or the other")
    if not back:
        raise UserError("data.background: got no class, needs at least one that is not in data.foreground")
    return front, back


def class_indices(wanted: Sequence[Any], classes: Sequence[str], key: str) -> list[int]:
    """Returns the indices of classes given by name or index.

    YAML and the command line read some names without quotes as other values: ``true``, ``null``, ``1e3``, in files also
    ``no`` and ``01``. What was typed is lost then, so such a value is refused. A whole number is an index, unless a
    class's name reads as a whole number: then it must be the name and the index of the same class.

    Args:
        wanted: names (str) or indices (int) of classes, in the order their labels are wanted.
        classes: every class of the data set, in index order.
        key: the config key they came from, for the error.

    Raises:
        UserError: a class is unknown or named twice, or a value may be the name of one class and the index of another.
    """
    indices = [_index(item, classes, key, wanted) for item in wanted]
    if len(set(indices)) < len(indices):
        raise UserError(f"{key}: got {list(wanted)}, which names a class twice; name each once")
    return indices


def _index(item: Any, classes: Sequence[str], key: str, wanted: Sequence[Any]) -> int:
    allowed = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    if isinstance(item, str):
        if item in classes:
            return list(classes).index(item)
        close = nearest(item, classes)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{key}: got class '{item}', allowed: {allowed}{hint}")
    named, numbered = _named(item, classes), any(type(_reading(name)) is int for name in classes)
    is_index = type(item) is int and 0 <= item < len(classes)
    if is_index and (not numbered or classes[item] in named):
        return int(item)
    if type(item) is int and not is_index and not named:
        raise UserError(f"{key}: got class index {item}, allowed: 0 to {len(classes) - 1}")
    names = [name if isinstance(name, str) else _meant(name, classes) for name in wanted]
    raise UserError(
        f"{key}: got {short_value(item)}, which may be a class's name or its index, allowed: {allowed}; type names in "
        f"quotes: {_in_quotes(key, names)}"
    )


@cache
def _reading(name: str) -> Any:
    """Returns the value of a name without quotes in a config file; the command line reads fewer names as others."""
    if _MAYBE_NO_TEXT.fullmatch(name):
        with contextlib.suppress(Exception):  # it is no YAML without quotes
            return OmegaConf.create(f"- {name}")[0]
    return name


_MAYBE_NO_TEXT = re.compile(r"[-+.~\d][\w.:+-]*|true|false|yes|no|on|off|null", re.IGNORECASE)


def _named(value: Any, classes: Sequence[str]) -> list[str]:
    """Returns the classes whose names read as a value."""
    return [name for name in classes if repr(_reading(name)) == repr(value)]  # True is equal to 1


def _meant(value: Any, classes: Sequence[str]) -> str:
    """Returns the name that was probably meant by a value that is no text."""
    if named := _named(value, classes):
        return named[0]
    return classes[value] if type(value) is int and 0 <= value < len(classes) else short_value(value)


def _in_quotes(key: str, names: Sequence[str]) -> str:
    return in_shell(f"{key}=[{','.join(in_quotes(literal(name)) for name in names)}]")
