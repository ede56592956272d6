"""Instantiates the nodes of a config, and reports what they do not take."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from attnmosaic.core.errors import RunError, UserError, nearest


def build_object(key: str, node: Any, **arguments: Any) -> Any:
    """Instantiates a ``_target_`` node, its containers as plain ones.

    Args:
        key: where the node stands in the config, for the error.
        node: the node.
        **arguments: passed on, over those of the node.

    Raises:
        UserError: the node is none, or its target does not take these arguments.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{key}: got {node}, needs a _target_ and its arguments; see conf/{key.split('.')[0]}")
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (UserError, RunError)):
            raise
        if cause is None:  # it is Hydra's own
            raise UserError(f"{key}: {first_line(error)}") from error
        raise UserError(f"{key}: {node['_target_']} answers: {first_line(cause)}{remedy(key, node, cause)}") from error


def remedy(key: str, node: Any, error: BaseException) -> str:
    """Returns what to type where a target lacks an argument, or does not take one that its node has; or nothing."""
    if (extra := re.search(r"unexpected keyword argument '(\w+)'", str(error))) and extra[1] in node:
        return f"; leave out {key}.{extra[1]} ('~{key}.{extra[1]}' where a file has it)"
    if absent := re.search(r"missing .*?required .*?'(\w+)'", str(error)):
        return f"; type +{key}.{absent[1]}=VALUE"
    return ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def refused(what: str, instead: str = "") -> Iterator[None]:
    """Turns any error of a block into a user error: what was refused, why, what to do instead."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} ({first_line(error)}){instead}") from error


def check_targets(node: Any, key: str = "") -> None:
    """Checks that every ``_target_`` of a config can be imported.

    Raises:
        UserError: one cannot; names the nearest that could.
    """
    if isinstance(node, dict):
        for name, child in node.items():  # any kind of key: {1: 2} is the argument of a callback
            check_targets(child, f"{key}.{name!s}" if key else str(name))
    elif isinstance(node, list):
        for i, item in enumerate(node):
            check_targets(item, f"{key}.{i}")
    elif key.endswith("._target_"):
        try:
            if not callable(get_object(node)):
                raise TypeError("it is nothing that can be called")
        except Exception as error:
            module, _, name = node.rpartition(".")
            try:
                close = nearest(name, vars(get_object(module)), n=1)
            except Exception:
                close = []
            hint = f"; did you mean {module}.{close[0]}?" if close else ""
            raise UserError(f"{key}: cannot import '{node}' ({first_line(error)}){hint}") from error
