"""Checks the keys of a composed config: that none is missing, and that something reads each."""

import itertools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.resolution import leaves
from attnmosaic.config.schema import TrainConfig
from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.text import short_value

_COUNTS = {f"{split}_{what}" for split in ("train", "test", "held_out") for what in ("mosaics", "images")}
"""Counts that ``at_most`` may have for data without them."""


def check_parts(config: Mapping[str, Any]) -> None:
    """Checks that a run's config has every key of its schema (``~key`` removes one), and the counts of ``at_most``.

    Raises:
        UserError: a key is missing, or ``at_most`` has no counts of a section.
    """
    for field in fields(TrainConfig):
        if field.name not in config:
            raise UserError(f"{field.name}: required; remove '~{field.name}' from the command")
    for section, counts in (config["at_most"] or {}).items():
        known = {*(config.get(section) or ()), *_COUNTS}
        if not isinstance(counts, Mapping) or not all(name in known and type(counts[name]) is int for name in counts):
            raise UserError(
                f"at_most.{section}: got {short_value(counts)}, needs counts that {section} has; type for example "
                "at_most.data.train_mosaics=500"
            )


_SECTIONS: dict[str, Any] = {field.name: field.type for field in fields(TrainConfig) if is_dataclass(field.type)}
"""Sections whose keys are known, and their schemas."""


def check_keys(config: DictConfig, schema: type) -> None:
    """Checks that the program or an interpolation reads every key of a command's config.

    Arguments of a ``_target_`` are left to the target, names of loggers and callbacks are the user's.

    Args:
        config: composed and not resolved. A run's without interpolations (its ``config.yaml``) is not checked: the
            interpolations that read its keys are not known.
        schema: the dataclass of the command's config.

    Raises:
        UserError: nothing reads a key; names the nearest known one.
    """
    if schema is TrainConfig and not _interpolated(config):
        return
    known = {"": [field.name for field in fields(schema)]}
    for section, kind in _SECTIONS.items():
        if section in config:
            known[section] = [f"{section}.{field.name}" for field in fields(kind)]
    for section, keys in known.items():
        node = OmegaConf.select(config, section) if section else config
        for name in map(str, node if isinstance(node, DictConfig) else ()):
            key = f"{section}.{name}".lstrip(".")
            if key in keys or key == "hydra" or _is_read(config, key):
                continue
            close = nearest(key, keys if section else itertools.chain(*known.values()), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            given, allowed = short_value(node.get(name)), ", ".join(keys)
            raise UserError(f"{key}: got {given}, but nothing reads this key, allowed: {allowed}{hint}")


def _is_read(config: DictConfig, key: str) -> bool:
    """Whether the value of an interpolation depends on a key."""
    config = config.copy()
    if "hydra" not in config and HydraConfig.initialized():  # a run's folder may be named by any key
        with open_dict(config):
            config.hydra = HydraConfig.get()
    before, other = _interpolated(config), config.copy()
    OmegaConf.copy_cache(config, other)  # the time of its start, for example
    OmegaConf.update(other, key, "another value", force_add=True)
    return any(value != before[name] for name, value in _interpolated(other).items())


def _interpolated(config: DictConfig) -> dict[str, Any]:
    """Returns the values of all interpolations, or the errors they lead to, by their keys."""
    values: dict[str, Any] = {}
    for key, raw in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(raw, str) and "${" in raw:
            try:
                value = OmegaConf.select(config, key)
                values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException as error:
                values[key] = str(error)
    return values
