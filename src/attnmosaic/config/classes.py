"""Which classes are foreground and which background. Light: checked before torch is imported."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.quoting import in_grammar, in_quotes, in_shell, literal


def class_indices(wanted: Sequence[Any], classes: Sequence[str], key: str) -> list[int]:
    """Turns class names or indices into indices.

    Without quotes the command line and YAML read some names as other values: ``true``, ``null``, ``1e3``, in files also
    ``no`` and ``01``. Which of them was typed is lost, so such a value is refused. A whole number is an index, unless
    a class's name reads as a whole number: then it must be the name and the index of the same class.

    Args:
        wanted: names (str) or indices (int) of classes, in the order their labels are wanted.
        classes: every class of the data set, in index order.
        key: the config key they came from, for the error.

    Raises:
        UserError: a class is unknown or named twice, or a value may be the name of one class and the index of another.
    """
    numbered = int in map(type, wanted) and any(
        re.match(r"[+-]?\d", name) and int in map(type, _readings(name)) for name in classes
    )
    indices = []
    for item in wanted:
        is_index = type(item) is int and 0 <= item < len(classes)
        if is_index and (not numbered or classes[item] in _named(item, classes)):
            indices.append(item)
        elif type(item) is int and not is_index and not _named(item, classes):
            raise UserError(f"{key}: got class index {item}, allowed: 0 to {len(classes) - 1}")
        elif not isinstance(item, str):
            raise UserError(f"{key}: {_unclear(item, classes)}: {_in_quotes(key, wanted, classes)}")
        elif item in classes:
            indices.append(list(classes).index(item))
        else:
            close = nearest(item, classes)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"{key}: got class '{item}', allowed: {_shown(classes)}{hint}")
    if len(set(indices)) < len(indices):
        raise UserError(f"{key}: got {list(wanted)}, which names a class twice; name each once")
    return indices


def check_names(names: Any) -> None:
    """Checks the names of all classes that a config has.

    Raises:
        UserError: one of them is no text: YAML has read it as something else.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"data.classes: got {names}, needs a list of class names, in quotes where they read as numbers, true, "
            'false or null; type for example \'data.classes=["0","1",cat]\', or data.classes=null'
        )


def _readings(name: str) -> list[Any]:
    """Returns what a name becomes without quotes, in a config file and on the command line."""
    values = []
    if re.fullmatch(r"[\w.:+~-]+", name):
        for read in (lambda: OmegaConf.create(f"- {name}")[0], lambda: _PARSER.parse_override(f"_={name}").value()):
            with contextlib.suppress(Exception):  # it is no YAML, or no override, without quotes
                values.append(read())
    return values


_PARSER = OverridesParser.create()


def _named(value: Any, classes: Sequence[str]) -> list[str]:
    """Returns the classes whose names read as a value."""
    return [name for name in classes if repr(value) in map(repr, _readings(name))]  # nan is unlike itself, True is 1


def _unclear(value: Any, classes: Sequence[str]) -> str:
    """Returns what a value may stand for."""
    may_be = [f"the class named '{name}'" for name in _named(value, classes)]
    if type(value) is int and 0 <= value < len(classes):
        may_be = [*(may_be or ["a name"]), f"the class at index {value}, '{classes[value]}'"]
    if may_be:
        return f"{_typed(value)} may be {' or '.join(may_be)}; name it in quotes"
    return f"got {_typed(value)}, allowed: {_shown(classes)}; such names are typed in quotes"


def _in_quotes(key: str, wanted: Sequence[Any], classes: Sequence[str]) -> str:
    """Returns what to type for the classes that were probably meant."""
    numbers = [item for item in wanted if type(item) is int]
    indices = all(0 <= item < len(classes) for item in numbers) and not all(_named(item, classes) for item in numbers)
    words = []
    for item in wanted:
        if type(item) is int and indices:
            name = classes[item]
        else:
            name = item if isinstance(item, str) else [*_named(item, classes), _typed(item)][0]
        words.append(
            name
            if re.fullmatch(r"[^\W\d]\w*", name) and {*_readings(name), in_grammar(name)} == {name}
            else in_quotes(literal(name))
        )
    return in_shell(f"{key}=[{','.join(words)}]")


def _typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")


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
            f"type for example {_in_quotes('data.foreground', classes[:2], classes)}"
        )
    if background is None:
        back = [i for i in range(len(classes)) if i not in front]
    else:
        back = class_indices(background, classes, "data.background")
    shared = [classes[i] for i in back if i in front]
    if shared:
        raise UserError(f"data.background: {', '.join(shared)} is also in data.foreground; a class is one or the other")
    if not back:
        raise UserError("data.background: got no class, needs at least one that is not in data.foreground")
    return front, back
