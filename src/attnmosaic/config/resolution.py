"""Builds a run's config from a composed one: counts cut to its scale, interpolations resolved, a plain dict."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.core.errors import UserError


def with_scale(config: DictConfig) -> DictConfig:
    """Returns a composed config with the counts and the arguments that its run takes.

    Counts are cut to those of ``at_most``, where it has them (``scale=smoke``). Arguments that a file of ``conf/`` has
    for its own target (``${with:TARGET,VALUE}``) are removed where ``_target_`` names another.
    """
    kept = config.copy()
    with open_dict(kept):
        _remove_arguments_of_replaced(kept)
        kept.at_most = {}
        for section, counts in config.at_most.items():
            for key, most in counts.items():
                given = kept[section].get(key, "absent")
                if given is None or (isinstance(given, int) and given > most):  # other types are for `check` to report
                    kept[section][key] = most
    return kept


def _remove_arguments_of_replaced(config: DictConfig) -> None:
    for key, raw in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(raw, str) and (owner := re.match(r"\$\{with:([\w.]+),", raw)):
            path, _, name = key[:-1].rpartition("[")
            node = OmegaConf.select(config, path)
            if node.get("_target_") != owner[1]:
                del node[name]


def unresolved(section: DictConfig, key: str) -> Any:
    """Returns a key's value as it was typed, its interpolations unresolved."""
    plain: Any = OmegaConf.to_container(section, resolve=False)
    return plain[key]


def resolve(config: DictConfig) -> dict[str, Any]:
    """Returns a config as a plain dict, every interpolation replaced by its value: the form that a run carries.

    Raises:
        UserError: a value has ``${``, which would be an interpolation wherever the config is read again.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    for path, value in walk(resolved):
        if isinstance(value, str) and "${" in value:
            key = ".".join(map(str, path))
            raise UserError(f"{key}: got '{value}', but '${{' begins an interpolation; type a name without it")
    return resolved


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the path and the value of each node below one of a plain config: of sections, lists and single values."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, child in items:
        yield (*path, name), child
        yield from walk(child, (*path, name))


def leaves(node: Any) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of a plain config without its sections and lists, a key as ``[data][views][0]``."""
    for path, value in walk(node):
        if not isinstance(value, (dict, list)):
            yield "".join(f"[{name}]" for name in path), value


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a config's values by their dotted keys; lists and empty sections count as values."""
    if not isinstance(node, dict) or (prefix and not node):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}
