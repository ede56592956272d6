"""A composed config made ready for a run: cut to its scale, resolved, and read as a plain tree."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attnmosaic.core.errors import UserError


def scaled(config: DictConfig) -> DictConfig:
    """Returns a composed config as its run takes it.

    Counts are cut to those of ``at_most``, where it has them (``scale=smoke``). Arguments that a file of ``conf/`` has
    for its own target (``${with:TARGET,VALUE}``) are removed where ``_target_`` names another.
    """
    cut = _without_replaced(config)
    limits = config.at_most
    with open_dict(cut):
        cut.at_most = {}
        for section, counts in limits.items():
            for key, most in counts.items():
                given = cut[section].get(key, "absent")
                if given is None or (isinstance(given, int) and given > most):  # what is no number, `check` will tell
                    cut[section][key] = most
    return cut


def _without_replaced(config: DictConfig) -> DictConfig:
    kept = config.copy()
    with open_dict(kept):
        for key, raw in leaves(OmegaConf.to_container(config, resolve=False)):
            if isinstance(raw, str) and (owner := re.match(r"\$\{with:([\w.]+),", raw)):
                path, _, name = key[:-1].rpartition("[")
                node = OmegaConf.select(kept, path) if path else kept
                if node.get("_target_") != owner[1]:
                    del node[name]
    return kept


def unresolved(section: DictConfig, key: str) -> Any:
    """Returns a key's value as it was typed, its interpolations unresolved."""
    plain: Any = OmegaConf.to_container(section, resolve=False)
    return plain[key]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of a plain config, a key as ``[data][views][0]``."""
    if not isinstance(node, (dict, list)):
        yield key, node
        return
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(child, f"{key}[{name}]")


def resolve(config: DictConfig) -> dict[str, Any]:
    """Returns a config as a plain dict, every interpolation replaced by its value: the form that a run carries.

    Raises:
        UserError: a value has ``${``, which would be an interpolation wherever the config is read again.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    for key, value in leaves(resolved):
        if isinstance(value, str) and "${" in value:
            dotted = key[1:-1].replace("][", ".")
            raise UserError(f"{dotted}: got '{value}', but '${{' begins an interpolation; type a name without it")
    return resolved


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a config's values by their dotted keys."""
    if not isinstance(node, dict) or (prefix and not node):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}
