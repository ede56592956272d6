"""Finds the indices of the foreground and background classes, which a config gives by name or by index."""

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
        background: at least one class; None means all classes that are not foreground.
        classes: names of all classes of the data set, in index order.

    Raises:
        UserError: a class is unknown, too few classes are given, or a class is in both lists.
    """
    front = class_indices(foreground, classes, "data.foreground")
    if len(front) < 2:
        raise UserError(
            f"data.foreground: got {list(foreground)}, needs at least two classes; "
            f"type for example {_in_quotes('data.foreground', classes[:2])}"
        )
    if background is None:
        back = [i for i in range(len(classes)) if i not in front]
    else:
        back = class_indices(background, classes, "data.background")
    if shared := [classes[i] for i in back if i in front]:
        raise UserError(
            f"data.background: has classes of data.foreground ({', '.join(shared)}); remove them from one of the lists"
        )
    if not back:
        raise UserError("data.background: got no class, needs at least one class that is not in data.foreground")
    return front, back


def class_indices(listed: Sequence[Any], classes: Sequence[str], key: str) -> list[int]:
    """Returns the indices of classes given by name or index.

    YAML and the command line read some names without quotes as other values: ``true``, ``null`` and ``1e3``, and YAML
    also ``no`` and ``01``. The original text is then lost, so such a value is refused. A whole number is an index. If
    the name of any class reads as a whole number, the number must be the name and the index of the same class.

    Args:
        listed: names (str) or indices (int) of classes, in the order of their labels.
        classes: names of all classes of the data set, in index order.
        key: the config key of the list, for error messages.

    Raises:
        UserError: a class is unknown or listed twice, or a value can be read as different classes.
    """
    indices = [_index(item, classes, key, listed) for item in listed]
    if len(set(indices)) < len(indices):
        raise UserError(f"{key}: got {list(listed)}, which lists a class twice; remove the duplicate")
    return indices


def _index(item: Any, classes: Sequence[str], key: str, listed: Sequence[Any]) -> int:
    allowed = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    if isinstance(item, str):
        if item in classes:
            return list(classes).index(item)
        close = nearest(item, classes)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{key}: got class '{item}', allowed: {allowed}{hint}")
    read_as_item = _names_read_as(item, classes)
    any_numeric_name = any(type(_value_of_name(name)) is int for name in classes)
    is_index = type(item) is int and 0 <= item < len(classes)
    if is_index and (not any_numeric_name or classes[item] in read_as_item):
        return int(item)
    if type(item) is int and not is_index and not read_as_item:
        raise UserError(f"{key}: got class index {item}, allowed: 0 to {len(classes) - 1}")
    names = [name if isinstance(name, str) else _likely_name(name, classes) for name in listed]
    raise UserError(
        f"{key}: got {short_value(item)}, which is ambiguous without quotes, allowed: {allowed}; type names in quotes: "
        f"{_in_quotes(key, names)}"
    )


@cache
def _value_of_name(name: str) -> Any:
    """Returns the value that YAML reads for an unquoted name; the command line reads fewer names as other values."""
    if _MAYBE_NOT_TEXT.fullmatch(name):
        with contextlib.suppress(Exception):  # the unquoted name is not valid YAML
            return OmegaConf.create(f"- {name}")[0]
    return name


_MAYBE_NOT_TEXT = re.compile(r"[-+.~\d][\w.:+-]*|true|false|yes|no|on|off|null", re.IGNORECASE)


def _names_read_as(value: Any, classes: Sequence[str]) -> list[str]:
    """Returns the class names that YAML reads as a value."""
    # Compares texts because True == 1.
    return [name for name in classes if repr(_value_of_name(name)) == repr(value)]


def _likely_name(value: Any, classes: Sequence[str]) -> str:
    """Returns the class name that the user probably meant by a value that is not text."""
    if names := _names_read_as(value, classes):
        return names[0]
    return classes[value] if type(value) is int and 0 <= value < len(classes) else short_value(value)


def _in_quotes(key: str, names: Sequence[str]) -> str:
    return in_shell(f"{key}=[{','.join(in_quotes(literal(name)) for name in names)}]")
