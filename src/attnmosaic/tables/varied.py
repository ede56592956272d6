"""Finds which settings tell groups of runs apart, under the keys that their user typed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnmosaic.config.identity import GROUPS, Kind, identity_settings, kind_of
from attnmosaic.config.resolution import flat
from attnmosaic.core.text import short_number
from attnmosaic.runs.rows import number
from attnmosaic.runs.run import Run

NOT_SET = "not set"
"""The value of a key that a run's config does not have."""

_MOST = 4
"""Keys that a label lists; of more it gives the first and counts the others."""


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what runs of one group share, by dotted key: what decides numbers, but for seeds and machine."""
    settings = {"scale": config["scale"]} | flat(identity_settings(config))  # first, as others follow from it
    return {key: value for key, value in settings.items() if kind_of(key) not in (Kind.SEED, Kind.MACHINE)}


@dataclass(frozen=True)
class GroupSettings:
    """The settings of a group of runs, and which of them were typed.

    Attributes:
        settings: see `comparable`.
        choices: the option chosen of each config group (``data``: ``digits``), where it is known.
        typed: keys of its commands' overrides, in their order.
        swept: those that its sweep or search varies.
    """

    settings: dict[str, Any]
    choices: dict[str, Any]
    typed: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()

    def value(self, key: str) -> str:
        """Returns the value of a key as text: of a config group its option, or the classes that it names."""
        if key in self.choices:
            return as_text(self.choices[key])
        path = path_of(key)
        if path in self.settings:
            return as_text(self.settings[path])
        inside = {k.removeprefix(f"{path}."): v for k, v in self.settings.items() if k.startswith(f"{path}.")}
        classes = [str(v).rpartition(".")[2] for k, v in inside.items() if k.rpartition(".")[2] == "_target_"]
        return "+".join(dict.fromkeys(classes)) or (as_text(inside) if inside else NOT_SET)

    def decides(self, key: str) -> bool:
        """Whether a key sets anything that decides numbers."""
        path = path_of(key)
        return key in GROUPS or any(k == path or k.startswith(f"{path}.") for k in self.settings)


def group_settings(runs: Sequence[Run]) -> GroupSettings | None:
    """Returns what a group of runs with the same settings was given; None if no run's settings are known."""
    settings = next((found for run in runs if (found := settings_of(run))), None)
    if settings is None:
        return None
    typed = dict.fromkeys(key_of(text) for run in runs for text in run.overrides or ())
    swept = dict.fromkeys(key for run in runs for key in run.from_plan("swept") or ())
    choices = next((found for run in runs if (found := run.choices)), {})
    return GroupSettings(settings, choices, tuple(typed), tuple(swept))


def settings_of(run: Run) -> dict[str, Any]:
    """Returns a run's settings, or the planned ones of a run that has not begun; empty if neither is known."""
    return comparable(run.config) if run.config is not None else run.from_plan("settings") or {}


def key_of(override: str) -> str:
    """Returns the key of an override: ``model.where.depth`` of ``+model.where.depth=3``."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def path_of(key: str) -> str:
    """Returns where a key lies in a config: ``data.weights`` of the group ``data/weights``."""
    return key.replace("/", ".")


def varied_keys(groups: Sequence[tuple[str, GroupSettings]]) -> list[str]:
    """Returns the keys that tell groups of runs apart.

    These are typed keys with several values and, where they leave two groups of an experiment alike, the settings in
    which those two differ.

    Args:
        groups: the experiment and the settings of each.
    """
    swept = {key for _, one in groups for key in one.swept if key != "experiment"}
    keys = [key for key in _typed([one for _, one in groups]) if key in swept or _is_varied(key, groups)]
    for alike in _alike(groups, keys):
        keys += differing(alike)
    return list(dict.fromkeys(keys))


def shared_values(groups: Sequence[GroupSettings]) -> dict[str, str]:
    """Returns the typed keys, and their values, that all groups have in common."""
    keys = [key for key in _typed(groups) if key != "experiment"]
    return {key: groups[0].value(key) for key in keys if len(_values(key, groups)) == 1}


def differing(groups: Sequence[GroupSettings]) -> list[str]:
    """Returns the settings in which groups differ, without those that follow from another one of them."""
    keys = dict.fromkeys(key for one in groups for key in one.settings)
    several = [key for key in keys if len({str(one.settings.get(key, NOT_SET)) for one in groups}) > 1]
    heads = [*dict.fromkeys(_head(key, groups) for key in several if _is_head(key))]
    rest = [key for key in several if not _is_head(key) and not _is_length(key, groups)]
    return heads + [key for key in rest if not any(_follows(key, head, groups) for head in heads)]


def label(values: Mapping[str, str]) -> str:
    """Returns varied keys and their values in a line: ``lr.what=0.03, schedule.k=5``."""
    texts = [f"{key}={short_number(value)}" for key, value in values.items()]
    return ", ".join(texts) if len(texts) <= _MOST else f"{texts[0]} and {len(texts) - 1} more"


def as_text(value: Any) -> str:
    """Returns a value as one types it: ``[4,8]``, ``null``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return " ".join(str(value).split())


def order(value: str) -> tuple[bool, float, list[tuple[int, str]]]:
    """Returns what to sort values by: numbers by size, then words and lists, with the numbers in them by size."""
    size = number(value)
    parts = re.findall(r"(\d+)|(\D+)", value.strip("[]"))
    return size is None, size or 0.0, [(int(digits or -1), word) for digits, word in parts]


def _typed(groups: Sequence[GroupSettings]) -> list[str]:
    """Returns the typed keys that decide numbers."""
    keys = dict.fromkeys(key for one in groups for key in one.typed)
    return [key for key in keys if any(one.decides(key) for one in groups)]


def _values(key: str, groups: Sequence[GroupSettings]) -> set[str]:
    return {one.value(key) for one in groups}


def _is_varied(key: str, groups: Sequence[tuple[str, GroupSettings]]) -> bool:
    values = {(name if key == "experiment" else "", one.value(key)) for name, one in groups}
    return len(values) > len({name for name, _ in values})


def _alike(groups: Sequence[tuple[str, GroupSettings]], keys: Sequence[str]) -> Iterator[list[GroupSettings]]:
    """Yields groups of one experiment that have the same values of all keys."""
    found: dict[tuple[str, ...], list[GroupSettings]] = {}
    for name, one in groups:
        found.setdefault((name, *map(one.value, keys)), []).append(one)
    yield from (alike for alike in found.values() if len(alike) > 1)


def _is_head(key: str) -> bool:
    """Whether other settings follow from a setting: the scale, and whatever class is named."""
    return key == "scale" or key.endswith("._target_")


def _head(key: str, groups: Sequence[GroupSettings]) -> str:
    """Returns the name of such a setting: the config group if options of it were chosen, else the section."""
    section, _, rest = key.partition(".")
    chosen = {one.value(section) for one in groups if section in one.choices}
    return section if section == "data" or not rest or len(chosen) > 1 else key.removesuffix("._target_")


def _follows(key: str, head: str, groups: Sequence[GroupSettings]) -> bool:
    """Whether a setting is the same wherever the head is, and belongs to it."""
    if head != "scale" and not key.startswith(f"{head}."):
        return False
    return len({(one.value(head), one.value(key)) for one in groups}) == len(_values(head, groups))


def _is_length(key: str, groups: Sequence[GroupSettings]) -> bool:
    """Whether a setting is no more than ``schedule.epochs`` under another name."""
    is_named_so = key.rpartition(".")[2] in ("max_epochs", "T_max") and key != "schedule.epochs"
    return is_named_so and all(one.settings.get(key) == one.settings.get("schedule.epochs") for one in groups)
