"""Finds the settings that differ between groups of runs, under the config keys that the user typed."""

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

_MOST_IN_LABEL = 4
"""The most keys that a label lists; a longer label has the first key and the number of the others."""


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that all runs of a group share, by dotted key.

    These are the settings that decide a run's numbers, except for seeds and the machine.
    """
    settings = {"scale": config["scale"]} | flat(identity_settings(config))  # The scale decides other settings.
    return {key: value for key, value in settings.items() if kind_of(key) not in (Kind.SEED, Kind.MACHINE)}


@dataclass(frozen=True)
class GroupSettings:
    """The settings of a group of runs, and the keys that the user typed.

    Attributes:
        settings: the settings by dotted key, see `comparable`.
        choices: the chosen option of each config group (``data``: ``digits``), as far as known.
        typed: keys of the overrides in the runs' commands, in the order of the commands.
        swept: keys that the runs' sweep or search varies.
    """

    settings: dict[str, Any]
    choices: dict[str, Any]
    typed: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()

    def value(self, key: str) -> str:
        """Returns the value of a key as text.

        A config group has its chosen option as value or, if that is not known, the names of the classes in it.
        """
        if key in self.choices:
            return as_text(self.choices[key])
        path = path_of(key)
        if path in self.settings:
            return as_text(self.settings[path])
        inside = {k.removeprefix(f"{path}."): v for k, v in self.settings.items() if k.startswith(f"{path}.")}
        classes = [str(v).rpartition(".")[2] for k, v in inside.items() if k.rpartition(".")[2] == "_target_"]
        return "+".join(dict.fromkeys(classes)) or (as_text(inside) if inside else NOT_SET)

    def decides(self, key: str) -> bool:
        """Returns whether a key sets anything that decides a run's numbers."""
        path = path_of(key)
        return key in GROUPS or any(k == path or k.startswith(f"{path}.") for k in self.settings)


def group_settings(runs: Sequence[Run]) -> GroupSettings | None:
    """Returns the settings of a group of runs that share them; None if no run's settings are known."""
    settings = next((settings for run in runs if (settings := settings_of(run))), None)
    if settings is None:
        return None
    typed = dict.fromkeys(key_of(text) for run in runs for text in run.overrides or ())
    swept = dict.fromkeys(key for run in runs for key in run.from_plan("swept") or ())
    choices = next((choices for run in runs if (choices := run.choices)), {})
    return GroupSettings(settings, choices, tuple(typed), tuple(swept))


def settings_of(run: Run) -> dict[str, Any]:
    """Returns a run's settings, before its start the planned settings; empty if neither is known."""
    return comparable(run.config) if run.config is not None else run.from_plan("settings") or {}


def key_of(override: str) -> str:
    """Returns the key of an override: ``model.where.depth`` of ``+model.where.depth=3``."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def path_of(key: str) -> str:
    """Returns the dotted path of a key in a config: ``data.weights`` for the config group ``data/weights``."""
    return key.replace("/", ".")


def varied_keys(groups: Sequence[tuple[str, GroupSettings]]) -> list[str]:
    """Returns the keys by whose values groups of runs can be distinguished.

    These are the typed keys with several values. If they are the same in two groups of an experiment, the settings in
    which these two groups differ are added.

    Args:
        groups: the experiment and the settings of each group.
    """
    swept = {key for _, group in groups for key in group.swept if key != "experiment"}
    keys = [key for key in _typed([group for _, group in groups]) if key in swept or _is_varied(key, groups)]
    for same in _indistinguishable(groups, keys):
        keys += differing(same)
    return list(dict.fromkeys(keys))


def shared_values(groups: Sequence[GroupSettings]) -> dict[str, str]:
    """Returns the typed keys that have the same value in all groups, with these values."""
    keys = [key for key in _typed(groups) if key != "experiment"]
    return {key: groups[0].value(key) for key in keys if len(_values(key, groups)) == 1}


def differing(groups: Sequence[GroupSettings]) -> list[str]:
    """Returns the settings in which groups differ, without settings that follow from another of them."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    several = [key for key in keys if len({str(group.settings.get(key, NOT_SET)) for group in groups}) > 1]
    heads = [*dict.fromkeys(_head(key, groups) for key in several if _is_head(key))]
    rest = [key for key in several if not _is_head(key) and not _is_length(key, groups)]
    return heads + [key for key in rest if not any(_follows(key, head, groups) for head in heads)]


def label(values: Mapping[str, str]) -> str:
    """Returns varied keys and their values on one line: ``lr.what=0.03, schedule.k=5``."""
    texts = [f"{key}={short_number(value)}" for key, value in values.items()]
    return ", ".join(texts) if len(texts) <= _MOST_IN_LABEL else f"{texts[0]} and {len(texts) - 1} more"


def as_text(value: Any) -> str:
    """Returns a value as text in the syntax of an override: ``[4,8]``, ``null``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return " ".join(str(value).split())


def sort_key(value: str) -> tuple[bool, float, list[tuple[int, str]]]:
    """Returns a sort key for a value: numbers by size, then words and lists, in which numbers are sorted by size."""
    size = number(value)
    parts = re.findall(r"(\d+)|(\D+)", value.strip("[]"))
    return size is None, size or 0.0, [(int(digits or -1), word) for digits, word in parts]


def _typed(groups: Sequence[GroupSettings]) -> list[str]:
    """Returns the typed keys that decide a run's numbers."""
    keys = dict.fromkeys(key for group in groups for key in group.typed)
    return [key for key in keys if any(group.decides(key) for group in groups)]


def _values(key: str, groups: Sequence[GroupSettings]) -> set[str]:
    return {group.value(key) for group in groups}


def _is_varied(key: str, groups: Sequence[tuple[str, GroupSettings]]) -> bool:
    values = {(name if key == "experiment" else "", group.value(key)) for name, group in groups}
    return len(values) > len({name for name, _ in values})


def _indistinguishable(
    groups: Sequence[tuple[str, GroupSettings]], keys: Sequence[str]
) -> Iterator[list[GroupSettings]]:
    """Yields lists of two groups or more of one experiment that have the same values for all keys."""
    by_values: dict[tuple[str, ...], list[GroupSettings]] = {}
    for name, group in groups:
        by_values.setdefault((name, *map(group.value, keys)), []).append(group)
    yield from (same for same in by_values.values() if len(same) > 1)


def _is_head(key: str) -> bool:
    """Returns whether other settings follow from a setting, as from the scale and from the choice of a class."""
    return key == "scale" or key.endswith("._target_")


def _head(key: str, groups: Sequence[GroupSettings]) -> str:
    """Returns a column name for such a setting: the config group if its options differ, else the section."""
    section, _, rest = key.partition(".")
    chosen = {group.value(section) for group in groups if section in group.choices}
    return section if section == "data" or not rest or len(chosen) > 1 else key.removesuffix("._target_")


def _follows(key: str, head: str, groups: Sequence[GroupSettings]) -> bool:
    """Returns whether a setting is below a head and has the same value in all groups with the same head."""
    if head != "scale" and not key.startswith(f"{head}."):
        return False
    return len({(group.value(head), group.value(key)) for group in groups}) == len(_values(head, groups))


def _is_length(key: str, groups: Sequence[GroupSettings]) -> bool:
    """Returns whether a setting only repeats ``schedule.epochs``, as ``trainer.max_epochs`` does."""
    is_length = key.rpartition(".")[2] in ("max_epochs", "T_max")
    return is_length and all(group.settings.get(key) == group.settings.get("schedule.epochs") for group in groups)
