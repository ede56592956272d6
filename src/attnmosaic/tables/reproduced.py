"""Builds tables from runs on the disk: which runs make a row, and what it is compared with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.paths import short_path
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.runs.run import STATES, Run
from attnmosaic.tables.published import Published, published_tables
from attnmosaic.tables.table import SMOKE, Cell, Row, Table, by_seed
from attnmosaic.tables.varied import (
    GroupSettings,
    comparable,
    differing,
    group_settings,
    order,
    settings_of,
    shared_values,
    varied_keys,
)

UNKNOWN = "?"
"""The value of a key of runs whose settings are not known."""


def reproduce(runs: Iterable[Run]) -> list[Table]:
    """Returns every published table that some of the runs belong to, and one of all other runs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    tables = []
    for table in published_tables():
        if table.rows.keys() & by_name.keys():
            groups = [group for name in table.rows for group in _groups(name, by_name.pop(name, [])) or [_Group(name)]]
            tables.append(_table(table, groups))
    if by_name:
        groups = [group for name, found in sorted(by_name.items()) for group in _groups(name, found)]
        tables.append(_table(_own_table(groups), groups))
    return tables


# ---- which runs make a row


@dataclass(frozen=True)
class _Group:
    """The runs of one experiment that differ in nothing but their seeds, and what they were given, if it is known."""

    name: str
    runs: tuple[Run, ...] = ()
    group_settings: GroupSettings | None = None

    @property
    def smoke(self) -> bool:
        return any(run.smoke for run in self.runs)

    @property
    def departures(self) -> tuple[str, ...]:
        """The settings in which its runs are not the experiment of their name, but for where the images come from."""
        own = _as_published(self.name, self.group_settings)
        if self.group_settings is None or own is None or self.smoke or not any(run.config for run in self.runs):
            return ()
        found, usual = self.group_settings.settings, own.settings
        keys = sorted(key for key in found.keys() | usual.keys() if found.get(key) != usual.get(key))
        return tuple(f"{key}={found.get(key)}, not {usual.get(key)}" for key in keys)


def _groups(name: str, runs: Sequence[Run]) -> list[_Group]:
    """Returns the groups of an experiment's runs. A run that has not begun is of the group that was planned alike."""
    begun_as = {_key(run.from_plan("settings")): _key(settings_of(run)) for run in runs if run.config and run.planned}
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config is None):
        key = _key(settings_of(run))
        groups.setdefault(key if run.config else begun_as.get(key, key), []).append(run)
    return [_Group(name, tuple(group), _given(name, group)) for group in groups.values()]


def _key(settings: Any) -> str:
    return str(sorted((settings or {}).items()))


def _given(name: str, runs: Sequence[Run]) -> GroupSettings | None:
    """Returns what a group was given. Runs that no command started were given what their experiment has otherwise."""
    found = group_settings(runs)
    own = _experiment(name) if found and all(run.overrides is None for run in runs) else None
    return replace(found, typed=tuple(differing([found, own]))) if found and own else found


# ---- what a row is compared with


@cache
def _experiment(name: str) -> GroupSettings | None:
    """Returns the settings that an experiment has of its own; None if there is none of that name."""
    register()
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("train", [f"experiment={name}", "run_dir=RUN_DIR"], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):  # no experiment of ours
        return None
    choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return GroupSettings(comparable(plain), choices)


_SOURCE = (
    "data._target_", "data.classes", "data.train_set.", "data.test_set.", "data.root", "data.held_out_share",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {"data.image_size": None, "data.color": True, "data.views": {}}
"""Settings that only some data sets have: at these values it is as if they were not there."""


def _as_published(name: str, one: GroupSettings | None) -> GroupSettings | None:
    """Returns an experiment's own settings, with the images of some runs: these may come from anywhere."""
    own = _experiment(name)
    if own is None or one is None:
        return None

    def is_free(key: str, value: Any) -> bool:
        return key.startswith(_SOURCE) or (key in _DEFAULTS and value == _DEFAULTS[key])

    settings = {key: value for key, value in own.settings.items() if not is_free(key, value)}
    settings |= {key: value for key, value in one.settings.items() if is_free(key, value)}
    return GroupSettings(settings, own.choices | {"data": one.choices.get("data", own.choices["data"])})


def _own_table(groups: Sequence[_Group]) -> Published:
    """Returns a table for runs of no published one, with a column for what any of them has measured."""
    metrics = {m for group in groups for run in group.runs for m in (run.result or {}).get("metrics", {})}
    shown = [f"{s}/{m}" for m in ("accuracy", "ftpt") for s in ("train", "test", "held_out")]
    shown += sorted(m for m in metrics if m.endswith("_accuracy"))
    names = {group.name for group in groups}
    title = f"Runs of {names.pop()}" if len(names) == 1 else "Other runs"
    return Published("runs", title, "", tuple(m for m in shown if m in metrics), {})


# ---- rows


def _table(table: Published, groups: Sequence[_Group]) -> Table:
    own = not table.rows
    known = [(group.name, group.group_settings) for group in groups if group.group_settings is not None]
    if own:
        keys = varied_keys(known)
        shared = shared_values([one for _, one in known])
    else:
        usual = [
            (g.name, published)
            for g in groups
            if g.departures and (published := _as_published(g.name, g.group_settings))
        ]
        keys = varied_keys([*known, *usual])
        # What differs from all published rows in the same way is no column.
        shared = {key: known[0][1].value(key) for key in keys if len({one.value(key) for _, one in known}) == 1}
        keys = [key for key in keys if key not in shared]
    rows = [_row(group, table, keys) for group in groups]
    names = list(dict.fromkeys(row.name for row in rows))
    rows.sort(key=lambda row: (names.index(row.name), [order(v) for v in row.varied.values() if own or row.notes]))
    return Table(table, tuple(rows), tuple(keys), {k: v for k, v in shared.items() if k not in keys})


def _row(group: _Group, table: Published, keys: Sequence[str]) -> Row:
    published = table.rows.get(group.name, {})
    results = [*by_seed(group.runs).values()]
    cells = [
        Cell(metric, tuple(result[metric] for result in results if metric in result), published.get(metric))
        for metric in table.shown
        if metric in published or not results or any(metric in result for result in results)
    ]
    config = next((run.config for run in group.runs if run.config is not None), None)
    values = group.group_settings or (_experiment(group.name) if keys and not group.runs else None)
    departures = group.departures if table.rows else ()
    return Row(
        name=group.name,
        cells=tuple(cells),
        state=_state(group.runs),
        data=_data(config["data"]) if config is not None else "",
        notes=(SMOKE,) if group.smoke else departures,
        runs=group.runs,
        varied={key: values.value(key) if values is not None else UNKNOWN for key in keys},
    )


def _state(runs: Sequence[Run]) -> str:
    by_state = {state: [run for run in runs if run.state == state] for state in STATES}
    parts = [f"{len(found)} {state}{_detail(state, found)}" for state, found in by_state.items() if found]
    return ", ".join(parts) or "missing"


def _detail(state: str, runs: Sequence[Run]) -> str:
    if state in ("running", "stopped", "pruned"):
        epochs = [f"{run.epochs_done} of {run.config['schedule']['epochs']}" for run in runs if run.config]
        return f" after epoch {', '.join(epochs)}" if epochs else ""
    lines = (runs[0].error or "").strip().splitlines() if state == "failed" else []
    return f" ({lines[-1][:120]})" if lines else ""


def _data(data: dict[str, Any]) -> str:
    if "root" in data:
        return f"images in {short_path(data['root'])}"
    source = data.get("train_set")
    target = source["_target_"] if isinstance(source, dict) else data["_target_"]
    return str(target).rpartition(".")[2]
