"""Builds tables from runs on the disk: groups runs into rows and finds the published numbers of each row."""

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
    settings_of,
    shared_values,
    sort_key,
    varied_keys,
)

UNKNOWN = "?"
"""The value of every key for runs whose settings are not known."""


def build_tables(runs: Iterable[Run]) -> list[Table]:
    """Returns each published table that any of the runs belongs to, and one table of all other runs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    tables = []
    for table in published_tables():
        if table.rows.keys() & by_name.keys():
            groups = [group for name in table.rows for group in _groups(name, by_name.pop(name, [])) or [_Group(name)]]
            tables.append(_table(table, groups))
    if by_name:
        groups = [group for name, named in sorted(by_name.items()) for group in _groups(name, named)]
        tables.append(_table(_unpublished_table(groups), groups))
    return tables


# ---- groups of runs: one per row


@dataclass(frozen=True)
class _Group:
    """The runs of one experiment that differ only in their seeds, with their settings if these are known."""

    name: str
    runs: tuple[Run, ...] = ()
    group_settings: GroupSettings | None = None

    @property
    def smoke(self) -> bool:
        return any(run.smoke for run in self.runs)

    @property
    def departures(self) -> tuple[str, ...]:
        """The settings in which the runs differ from the experiment of their name; the source of images can differ."""
        experiment = _with_source_of(self.name, self.group_settings)
        if self.group_settings is None or experiment is None or self.smoke or not any(run.config for run in self.runs):
            return ()
        actual, published = self.group_settings.settings, experiment.settings
        keys = sorted(key for key in actual.keys() | published.keys() if actual.get(key) != published.get(key))
        return tuple(f"{key}={actual.get(key)}, not {published.get(key)}" for key in keys)


def _groups(name: str, runs: Sequence[Run]) -> list[_Group]:
    """Returns the groups of an experiment's runs; a run that has not started joins runs with the same planned settings.

    The settings of a started run can differ from its planned settings.
    """
    actual_key = {_key(run.from_plan("settings")): _key(settings_of(run)) for run in runs if run.config and run.planned}
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config is None):
        key = _key(settings_of(run))
        groups.setdefault(key if run.config else actual_key.get(key, key), []).append(run)
    return [_Group(name, tuple(group), _settings_of_group(name, group)) for group in groups.values()]


def _key(settings: Any) -> str:
    return str(sorted((settings or {}).items()))


def _settings_of_group(name: str, runs: Sequence[Run]) -> GroupSettings | None:
    """Returns the settings that all runs of a group share.

    For runs started from Python, which have no overrides, the settings that differ from the experiment count as typed.
    """
    settings = group_settings(runs)
    experiment = _experiment(name) if settings and all(run.overrides is None for run in runs) else None
    if settings and experiment:
        return replace(settings, typed=tuple(differing([settings, experiment])))
    return settings


# ---- settings of the published rows


@cache
def _experiment(name: str) -> GroupSettings | None:
    """Returns the settings of an experiment in ``conf/experiment``; None if there is no experiment of that name."""
    register()
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("train", [f"experiment={name}", "run_dir=RUN_DIR"], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):  # The name is not that of an experiment in conf/experiment.
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
"""Settings that only some data sets have, with the values that have no effect."""


def _with_source_of(name: str, group: GroupSettings | None) -> GroupSettings | None:
    """Returns an experiment's settings with a group's source of images, which can differ from the published one."""
    experiment = _experiment(name)
    if experiment is None or group is None:
        return None

    def is_free(key: str, value: Any) -> bool:
        return key.startswith(_SOURCE) or (key in _DEFAULTS and value == _DEFAULTS[key])

    settings = {key: value for key, value in experiment.settings.items() if not is_free(key, value)}
    settings |= {key: value for key, value in group.settings.items() if is_free(key, value)}
    data = group.choices.get("data", experiment.choices["data"])
    return GroupSettings(settings, experiment.choices | {"data": data})


def _unpublished_table(groups: Sequence[_Group]) -> Published:
    """Returns a table without published numbers, with a column for each metric that any of the runs measured."""
    metrics = {m for group in groups for run in group.runs for m in (run.result or {}).get("metrics", {})}
    shown = [f"{s}/{m}" for m in ("accuracy", "ftpt") for s in ("train", "test", "held_out")]
    shown += sorted(m for m in metrics if m.endswith("_accuracy"))
    names = {group.name for group in groups}
    title = f"Runs of {names.pop()}" if len(names) == 1 else "Other runs"
    return Published("runs", title, "", tuple(m for m in shown if m in metrics), {})


# ---- rows


def _table(table: Published, groups: Sequence[_Group]) -> Table:
    is_unpublished = not table.rows
    known = [(group.name, group.group_settings) for group in groups if group.group_settings is not None]
    if is_unpublished:
        keys = varied_keys(known)
        shared = shared_values([settings for _, settings in known])
    else:
        published = [
            (group.name, settings)
            for group in groups
            if group.departures and (settings := _with_source_of(group.name, group.group_settings))
        ]
        keys = varied_keys([*known, *published])
        # A key with the same unpublished value in all rows is reported once below the table, not in a column.
        shared = {key: known[0][1].value(key) for key in keys if len({group.value(key) for _, group in known}) == 1}
        keys = [key for key in keys if key not in shared]
    rows = [_row(group, table, keys) for group in groups]
    names = list(dict.fromkeys(row.name for row in rows))

    def position(row: Row) -> tuple[int, list[Any]]:
        is_sorted_by_values = is_unpublished or bool(row.notes)  # A published row comes before its variants.
        return names.index(row.name), [sort_key(value) for value in row.varied.values() if is_sorted_by_values]

    rows.sort(key=position)
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
    parts = [f"{len(some)} {state}{_detail(state, some)}" for state, some in by_state.items() if some]
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
