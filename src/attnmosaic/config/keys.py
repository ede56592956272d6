"""Checks that no key of a composed config is missing, and that the program reads every key."""

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
"""Counts that ``at_most`` accepts also if the data have no such key."""


def check_parts(config: Mapping[str, Any]) -> None:
    """Checks that no key of the schema was removed from a run's config (``~key``), and that ``at_most`` has counts.

    Raises:
        UserError: a key is missing, or a value of ``at_most`` is not a count of its section.
    """
    for field in fields(TrainConfig):
        if field.name not in config:
            raise UserError(f"{field.name}: required; remove '~{field.name}' from the command")
    for section, counts in (config["at_most"] or {}).items():
        allowed = {*(config.get(section) or ()), *_COUNTS}
        if not isinstance(counts, Mapping) or not all(name in allowed and type(counts[name]) is int for name in counts):
            raise UserError(
                f"at_most.{section}: got {short_value(counts)}, needs whole numbers for counts of {section}; type for "
                "example at_most.data.train_mosaics=500"
            )


_SECTIONS: dict[str, Any] = {field.name: field.type for field in fields(TrainConfig) if is_dataclass(field.type)}
"""Sections with a fixed set of keys, and their schemas."""


def check_keys(config: DictConfig, schema: type) -> None:
    """Checks that the program or an interpolation reads every key of a command's config.

    Arguments of a ``_target_`` and names of loggers and callbacks are not checked.

    Args:
        config: the composed config before its interpolations are resolved. A run's resolved config (``config.yaml``)
            is not checked, because the interpolations that read its keys are lost.
        schema: the dataclass of the command's config.

    Raises:
        UserError: nothing reads a key; the message suggests the most similar known key.
    """
    if schema is TrainConfig and not _interpolated(config):
        return
    known = {"": [field.name for field in fields(schema)]}
    for section, section_schema in _SECTIONS.items():
        if section in config:
            known[section] = [f"{section}.{field.name}" for field in fields(section_schema)]
    for section, keys in known.items():
        node = OmegaConf.select(config, section) if section else config
        for name in map(str, node if isinstance(node, DictConfig) else ()):
            key = f"{section}.{name}".lstrip(".")
            if key in keys or key == "hydra" or _is_read(config, key):
                continue
            close = nearest(key, keys if section else itertools.chain(*known.values()), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            value, allowed = short_value(node.get(name)), ", ".join(keys)
            raise UserError(f"{key}: got {value}, but nothing reads this key, allowed: {allowed}{hint}")


def _is_read(config: DictConfig, key: str) -> bool:
    """Whether the value of an interpolation depends on a key."""
    config = config.copy()
    if "hydra" not in config and HydraConfig.initialized():  # the name of a run's folder can contain any key
        with open_dict(config):
            config.hydra = HydraConfig.get()
    before, changed = _interpolated(config), config.copy()
    OmegaConf.copy_cache(config, changed)  # cached values, such as the start time, must stay equal
    OmegaConf.update(changed, key, "another value", force_add=True)
    return any(value != before[name] for name, value in _interpolated(changed).items())


def _interpolated(config: DictConfig) -> dict[str, Any]:
    """Returns the values of all interpolations by their keys; an error's text if an interpolation fails."""
    values: dict[str, Any] = {}
    for key, raw in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(raw, str) and "${" in raw:
            try:
                value = OmegaConf.select(config, key)
                values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException as error:
                values[key] = str(error)
    return values
