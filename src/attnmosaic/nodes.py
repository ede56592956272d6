"""Whether a config has the parts that a run takes, and its nodes what can be made. Light: imports no torch."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from attnmosaic.config import TrainConfig, folder_name, networks_of
from attnmosaic.errors import UserError

_SPLITS = ("train", "test", "held_out")


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
                f"at_most.{section}: got {_short(counts)}, needs counts of a section; type for example "
                "at_most.data.train_mosaics=500"
            )


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
        UserError: see `attnmosaic.checks.check`.
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
            raise UserError(f"{key}: got {_short(node)}, needs a _target_ and its arguments; see conf/{part}")
    for key, value in _special(plain):
        kind, wording = _SPECIAL[key.rpartition(".")[2]]
        if not isinstance(value, kind) or value == "":
            raise UserError(f"{key}: got {_short(value)}, needs {wording}")
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
            f"{key}: got {_short(view)}, needs split and weights; see conf/experiment/weighted_average.yaml"
        )
    if not isinstance(view["weights"], Mapping) or "_target_" not in view["weights"]:
        raise UserError(
            f"{key}.weights: got {_short(view['weights'])}, needs a _target_ and its arguments; see conf/data/weights"
        )


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
