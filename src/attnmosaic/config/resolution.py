"""Converts a composed config to a run's config: reduces counts to its scale and resolves interpolations."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.core.errors import UserError


def with_scale(config: DictConfig) -> DictConfig:
    """Returns a copy of a composed config with reduced counts and without arguments of replaced targets.

    Counts above their limit in ``at_most`` (``scale=smoke``) are set to the limit. An argument that a file of ``conf/``
    defines only for its own target (``${with:TARGET,VALUE}``) is removed if ``_target_`` is another class.
    """
    scaled = config.copy()
    with open_dict(scaled):
        _remove_arguments_of_replaced_targets(scaled)
        scaled.at_most = {}
        for section, counts in config.at_most.items():
            for key, most in counts.items():
                count = scaled[section].get(key, "absent")
                if count is None or (isinstance(count, int) and count > most):  # `check` reports other types
                    scaled[section][key] = most
    return scaled


def _remove_arguments_of_replaced_targets(config: DictConfig) -> None:
    for key, raw in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(raw, str) and (owner := re.match(r"\$\{with:([\w.]+),", raw)):
            path, _, name = key[:-1].rpartition("[")
            node = OmegaConf.select(config, path)
            if node.get("_target_") != owner[1]:
                del node[name]


def unresolved(section: DictConfig, key: str) -> Any:
    """Returns the value of a key without resolving its interpolations."""
    plain: Any = OmegaConf.to_container(section, resolve=False)
    return plain[key]


def resolve(config: DictConfig) -> dict[str, Any]:
    """Returns a config as a plain dict, with each interpolation replaced by its value.

    Raises:
        UserError: a resolved value has ``${``, which would be an interpolation when the saved config is read again.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    for path, value in walk(resolved):
        if isinstance(value, str) and "${" in value:
            key = ".".join(map(str, path))
            raise UserError(f"{key}: got '{value}', but '${{' begins an interpolation; type a value without '${{'")
    return resolved


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the path and value of all nodes inside a plain config or node: sections, lists and single values."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, child in items:
        yield (*path, name), child
        yield from walk(child, (*path, name))


def leaves(node: Any) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of a plain config's leaves, a key in the form ``[data][views][0]``."""
    for path, value in walk(node):
        if not isinstance(value, (dict, list)):
            yield "".join(f"[{name}]" for name in path), value


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of a config by their dotted keys; lists and empty sections are values, too."""
    if not isinstance(node, dict) or (prefix and not node):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}
