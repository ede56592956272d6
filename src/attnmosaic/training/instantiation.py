"""Instantiates config nodes, and turns failures into user errors with advice."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from attnmosaic.core.errors import RunError, UserError, nearest


def build_object(key: str, node: Any, **arguments: Any) -> Any:
    """Instantiates a ``_target_`` node; the target gets lists and dicts instead of OmegaConf containers.

    Args:
        key: key of the node in the config, for the error message.
        node: the node.
        **arguments: more arguments for the target; they override those of the node.

    Raises:
        UserError: the node has no ``_target_``, or its target fails with these arguments.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{key}: got {node}, needs a _target_ and its arguments; see conf/{key.split('.')[0]}")
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (UserError, RunError)):
            raise
        if cause is None:  # Hydra itself raised the error
            raise UserError(f"{key}: {first_line(error)}") from error
        advice = argument_advice(key, node, cause)
        raise UserError(f"{key}: {node['_target_']} cannot be built ({first_line(cause)}){advice}") from error


def argument_advice(key: str, node: Any, error: BaseException) -> str:
    """Returns advice on an unexpected or a missing argument of a node's target; empty for other errors."""
    if (extra := re.search(r"unexpected keyword argument '(\w+)'", str(error))) and extra[1] in node:
        return f"; remove {key}.{extra[1]} from the command, or type '~{key}.{extra[1]}' if a file sets it"
    if missing := re.search(r"missing .*?required .*?'(\w+)'", str(error)):
        return f"; type +{key}.{missing[1]}=VALUE"
    return ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def raising_user_error(failure: str, advice: str = "") -> Iterator[None]:
    """Turns any error of a block into a user error.

    Args:
        failure: what failed; the first line of the error follows in parentheses.
        advice: what to type instead; ends the message.
    """
    try:
        yield
    except Exception as error:
        raise UserError(f"{failure} ({first_line(error)}){advice}") from error


def check_targets(node: Any, key: str = "") -> None:
    """Checks that every ``_target_`` of a config can be imported.

    Raises:
        UserError: a target cannot be imported; the message suggests the nearest name.
    """
    if isinstance(node, dict):
        for name, child in node.items():  # keys need not be text: {1: 2} can be an argument of a callback
            check_targets(child, f"{key}.{name!s}" if key else str(name))
    elif isinstance(node, list):
        for i, item in enumerate(node):
            check_targets(item, f"{key}.{i}")
    elif key.endswith("._target_"):
        try:
            if not callable(get_object(node)):
                raise TypeError("it is not callable")
        except Exception as error:
            module, _, name = node.rpartition(".")
            try:
                close = nearest(name, vars(get_object(module)), n=1)
            except Exception:
                close = []
            hint = f"; did you mean {module}.{close[0]}?" if close else ""
            raise UserError(f"{key}: cannot import '{node}' ({first_line(error.__cause__ or error)}){hint}") from error
