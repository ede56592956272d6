"""Whether a config has the parts that a run takes, and its nodes what can be made. Light: imports no torch."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.resolution import leaves
from attnmosaic.config.schema import TrainConfig, folder_name, networks_of
from attnmosaic.core.errors import UserError, nearest
from attnmosaic.core.text import cut

_SPLITS = ("train", "test", "held_out")

_CUT_WHERE_THERE = {f"{split}_{what}" for split in _SPLITS for what in ("mosaics", "images")}
"""Counts that ``at_most`` may have for data without them."""


def check_parts(config: Mapping[str, Any]) -> None:
    """Checks that nothing was left out (``~key``) that every run has, and that ``at_most`` is what it is.

    Raises:
        UserError: something was.
    """
    for field in fields(TrainConfig):
        if field.name not in config:
            raise UserError(f"{field.name}: was left out, and a run has it; leave out ~{field.name}")
    for section, counts in (config["at_most"] or {}).items():
        whole = isinstance(config.get(section), Mapping) and isinstance(counts, Mapping)
        if not whole or not all(type(most) is int for most in counts.values()):
            raise UserError(
                f"at_most.{section}: got {_shown(counts)}, needs counts of a section; type for example "
                "at_most.data.train_mosaics=500"
            )
        if absent := counts.keys() - config[section].keys() - _CUT_WHERE_THERE:
            raise UserError(
                f"at_most.{section}.{min(absent)}: got {counts[min(absent)]}, but {section} has no such count"
            )


def check_keys(config: DictConfig, schema: type) -> None:
    """Checks that the program or an interpolation reads every key of a command's config.

    Arguments of a ``_target_`` are left to the target, names of loggers and callbacks are the user's.

    Args:
        config: composed and not resolved. A run's without interpolations (its ``config.yaml``) is not checked: what
            they read is not known any more.
        schema: the dataclass of the command's config.

    Raises:
        UserError: nothing reads a key; names the nearest known one.
    """
    names = {"": [field.name for field in fields(schema)]}
    names |= {section: [field.name for field in fields(kind)] for section, kind in _FIXED.items() if section in config}
    nodes = {section: OmegaConf.select(config, section) if section else config for section in names}
    added = [
        (section, name)
        for section, node in nodes.items()
        if isinstance(node, DictConfig)
        for name in map(str, node)
        if name not in names[section] and (section or name != "hydra")
    ]
    if not added or (schema is TrainConfig and not _interpolated(config)):
        return
    every = config.copy()
    if "hydra" not in config and HydraConfig.initialized():  # a run's folder may be named by any key
        with open_dict(every):
            every.hydra = HydraConfig.get()
    for section, name in added:
        if _is_read(every, section, name):
            continue
        dotted = {s: [f"{s}.{n}".lstrip(".") for n in known] for s, known in names.items()}
        key = f"{section}.{name}".lstrip(".")
        close = nearest(key, itertools.chain(*(keys for s, keys in dotted.items() if s or not section)), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(
            f"{key}: got {_shown(nodes[section].get(name))}, but nothing reads this key, "
            f"allowed: {', '.join(dotted[section])}{hint}"
        )


_FIXED: dict[str, Any] = {field.name: field.type for field in fields(TrainConfig) if is_dataclass(field.type)}
"""Sections whose keys are known, and their schemas."""


def _is_read(config: DictConfig, section: str, name: str) -> bool:
    """Whether the value of an interpolation depends on a key."""
    before, other = _interpolated(config), config.copy()
    OmegaConf.copy_cache(config, other)  # the time of its start, say
    with open_dict(other):
        (other[section] if section else other)[name] = "another value"
    return any(value != before[key] for key, value in _interpolated(other).items())


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


def check_sections(plain: Mapping[str, Any]) -> None:
    """Checks that every section of a resolved config is one: an interpolation may stand for anything.

    Raises:
        UserError: one is not.
    """
    for section, kind in _SECTIONS.items():
        if section in plain and not isinstance(plain[section], kind):
            raise UserError(f"{section}: got {plain[section]}, needs a section of keys; see conf/{section}")


def check_nodes(plain: Mapping[str, Any]) -> None:
    """Checks every node of a resolved config that something is made of, and the names that files are called by.

    Raises:
        UserError: see `attnmosaic.config.validation.check`.
    """
    folder_name(plain["name"])
    check_sections(plain)
    needed = ["data", "objective", "trainer"]
    needed += [f"{part}.{name}" for part in ("model", "optimizer") for name in networks_of(plain)]
    if plain["data"].get("weights") is not None:
        needed.append("data.weights")
    needed += [
        f"{part}.{name}"
        for part in ("logger", "callbacks")
        for name, node in _items(plain.get(part))
        if node is not None
    ]
    for key in needed:
        part, _, name = key.partition(".")
        node = plain[part] if not name else plain[part].get(name)
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"{key}: got {_shown(node)}, needs a _target_ and its arguments; see conf/{part}")
    for key, value in _special(plain):
        kind, wording = _SPECIAL[key.rpartition(".")[2]]
        if not isinstance(value, kind) or value == "":
            raise UserError(f"{key}: got {_shown(value)}, needs {wording}")
    for name, view in _items(plain["data"].get("views")):
        _check_view(name, view)


_SECTIONS: dict[str, Any] = {
    **dict.fromkeys(("data", "model", "objective", "trainer", "optimizer", "scheduler"), Mapping),
    "logger": (Mapping, type(None)), "callbacks": (Mapping, type(None)),
}  # fmt: skip

_SPECIAL: dict[str, tuple[Any, str]] = {
    "_target_": (str, "the name of what is to be made, torch.optim.SGD say"),
    "_partial_": (bool, "true or false"),
    "_recursive_": (bool, "true or false"),
    "_convert_": (str, "none, partial, object or all"),
    "_args_": (list, "a list of arguments"),
}
"""Keys that Hydra reads, what their values are, and how to say that."""


def _special(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    children = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, Mapping) else ()
    for name, child in children:
        if name in _SPECIAL:
            yield f"{key}{name}", child
        yield from _special(child, f"{key}{name}.")


def _items(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()


def _check_view(name: Any, view: Any) -> None:
    key = f"data.views.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,60}", name) or name in _SPLITS:
        raise UserError(
            f"{key[:100]}: is no name for a view; letters, digits and _ make one, and it is not {', '.join(_SPLITS)}"
        )
    if not isinstance(view, Mapping) or set(view) != {"split", "weights"}:
        raise UserError(
            f"{key}: got {_shown(view)}, needs split and weights; see conf/experiment/weighted_average.yaml"
        )
    if not isinstance(view["weights"], Mapping) or "_target_" not in view["weights"]:
        raise UserError(
            f"{key}.weights: got {_shown(view['weights'])}, needs a _target_ and its arguments; see conf/data/weights"
        )


def _shown(value: Any) -> str:
    return "null" if value is None else cut(str(value), 80)
