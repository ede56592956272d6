"""From runs on disk to rows that stand beside published ones."""

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config.paths import shortest
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.runs.run import Run, seed_name
from attnmosaic.tables.published import Published, published_tables
from attnmosaic.tables.varied import (
    Given,
    comparable,
    differing,
    given,
    label,
    order,
    settings_of,
    shared_values,
    varied_keys,
)

SMOKE = "smoke, no result"

NEAR = 0.05
"""How far a mean may be from a published value to be called near it."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        metric: ``<split>/<metric>``.
        values: of each finished run, one a seed.
        published: what it is to be compared with, if anything.
    """

    metric: str
    values: tuple[float, ...]
    published: float | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean minus published."""
        return None if self.mean is None or self.published is None else self.mean - self.published

    @property
    def verdict(self) -> str:
        """``within the seeds' range``, ``within 0.05`` or ``outside``; empty where there is nothing to compare."""
        if self.difference is None or self.published is None:
            return ""
        if len(self.values) > 1 and min(self.values) <= self.published <= max(self.values):
            return "within the seeds' range"
        return f"within {NEAR}" if round(abs(self.difference), 9) <= NEAR else "outside"


@dataclass(frozen=True)
class Row:
    """One row of a table: the runs of one experiment that differ in nothing but their seeds.

    Attributes:
        name: the experiment.
        cells: a number for each metric.
        state: what has become of the runs, in words.
        data: what the mosaics were made of, in words.
        notes: what keeps it from being the published row: other settings, or a smoke run.
        runs: its runs, in whatever state.
        varied: its value of each key that its table's runs vary.
    """

    name: str
    cells: tuple[Cell, ...]
    state: str
    data: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    varied: Mapping[str, str] = field(default_factory=dict)

    def difference(self, cell: Cell) -> float | None:
        """Returns a cell's difference from what was published, None where the two are not to be compared."""
        return None if self.notes else cell.difference

    @property
    def smoke(self) -> bool:
        return SMOKE in self.notes

    @property
    def kind(self) -> str:
        """What its numbers are if they are not the published row's: ``smoke`` or ``other settings``, else empty."""
        return "smoke" if self.smoke else "other settings" if self.notes else ""

    def verdict(self, cell: Cell) -> str:
        """Returns a cell's verdict, or why it has none."""
        return (self.kind or cell.verdict) if cell.values else ""


@dataclass(frozen=True)
class Reproduced:
    """A table as far as it was reproduced, or one of a user's own runs.

    Attributes:
        published: what it is to be compared with; of own runs without rows.
        rows: sorted by experiment, then by the values of the varied keys.
        varied: the keys that tell rows of one experiment apart, as they were typed.
        shared: other keys, with their values, that were typed for all of its runs; of a published table's, those whose
            values are not the published ones.
    """

    published: Published
    rows: tuple[Row, ...]
    varied: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The published title; that it is all smoke, if it is."""
        measured = [row for row in self.rows if any(cell.values for cell in row.cells)]
        smoke = bool(measured) and all(row.smoke for row in measured)
        return f"{'SMOKE RUNS, NO RESULT. ' if smoke else ''}{self.published.title}"

    @property
    def has_published(self) -> bool:
        """Whether any number of it was published."""
        return any(self.published.rows.values())

    @property
    def is_named(self) -> bool:
        """Whether rows are to be called by their experiments: not where all are of one, and their values differ."""
        return bool(self.published.rows) or not self.varied or len({row.name for row in self.rows}) > 1

    @property
    def measured(self) -> list[str]:
        """The metrics that any row has a value of."""
        found = {cell.metric for row in self.rows for cell in row.cells if cell.values}
        return [metric for metric in self.published.shown if metric in found]

    def label(self, row: Row) -> str:
        """Returns a row's short name: its experiment, and the values that tell it from others of the experiment."""
        parts = [self.published.label(row.name)] if self.is_named else []
        values = label(self._own_values(row))
        name = ", ".join([*parts, *([values] if values else [])]) or row.name
        kind = row.kind if row.smoke or not values else ""
        return f"{name} ({kind.replace('smoke', 'SMOKE')})" if kind else name

    def _own_values(self, row: Row) -> dict[str, str]:
        alike = [other for other in self.rows if other.name == row.name]
        own = {
            key: value for key, value in row.varied.items()
            if key != "scale" and len({other.varied[key] for other in alike}) > 1
        }  # fmt: skip
        beside_published = self.published.rows and row.notes and not row.smoke
        return own or ({**row.varied, **self.shared} if beside_published else {})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its finished runs did not learn: a line for each finding, with the first run that has it."""
        found: dict[str, dict[str, str]] = {}
        runs = [(self.label(row), run) for row in self.rows for run in row.runs]
        for name, run in runs:
            seed = seed_name(run.config["seed"]) if run.config is not None else "?"
            for line in run.warnings:
                # The same finding in another run differs in its numbers alone.
                same = found.setdefault(re.sub(r"[\d.]+", "#", line), {})
                same.setdefault(f"{name}, seed {seed}", line)
        return tuple(_finding(lines) for lines in found.values())

    @property
    def verdicts(self) -> dict[str, int]:
        """How many published cells came how near; of a row in several copies of the data, the first counts."""
        verdicts: dict[tuple[str, str], str] = {}
        for row in self.rows:
            for cell in row.cells:
                if not row.notes and cell.verdict:
                    verdicts.setdefault((row.name, cell.metric), cell.verdict)
        counts = {word: sum(verdict == word for verdict in verdicts.values()) for word in _VERDICTS}
        total = sum(map(len, self.published.rows.values()))
        return counts | {"without a finished run": total - len(verdicts)}

    @property
    def summary(self) -> str:
        """The same in words."""
        total = sum(self.verdicts.values())
        told = ", ".join(f"{n} {word}" for word, n in self.verdicts.items() if n)
        return f"{total} published cells: {told}" if total else "no published cells"


def _finding(lines: Mapping[str, str]) -> str:
    """Returns the line of a finding.

    Args:
        lines: each run that has it, by name, and what is reported of it.
    """
    (name, line), *others = lines.items()
    return f"{name}: {line}" if not others else f"{len(lines)} runs, {name} for example: {line}"


_VERDICTS = ("within the seeds' range", f"within {NEAR}", "outside")


def reproduce(runs: Iterable[Run]) -> list[Reproduced]:
    """Returns every published table that some of the runs belong to, and one of all other runs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(_name(run), []).append(run)
    tables = []
    for table in published_tables():
        if table.rows.keys() & by_name.keys():
            groups = [group for name in table.rows for group in _groups(name, by_name.pop(name, [])) or [_Group(name)]]
            tables.append(_table(table, groups))
    if by_name:
        groups = [group for name, found in sorted(by_name.items()) for group in _groups(name, found)]
        tables.append(_table(_own_table(groups), groups))
    return tables


def _name(run: Run) -> str:
    if run.config is not None:
        return str(run.config["name"])
    return run.planned["name"] if run.planned is not None else run.folder.name


@dataclass(frozen=True)
class _Group:
    """The runs of one experiment that differ in nothing but their seeds, and what they were given, if it is known."""

    name: str
    runs: tuple[Run, ...] = ()
    given: Given | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        return next((run.config for run in self.runs if run.config is not None), None)

    @property
    def smoke(self) -> bool:
        planned = next((run.planned for run in self.runs if run.planned is not None), None)
        return (self.config or planned or {}).get("scale") == "smoke"

    @property
    def notes(self) -> tuple[str, ...]:
        if self.smoke:
            return (SMOKE,)
        return () if self.config is None else tuple(_departures(self.name, comparable(self.config)))


def _groups(name: str, runs: Sequence[Run]) -> list[_Group]:
    """Returns the groups of an experiment's runs. A run that has not begun is of the group that was planned alike."""
    groups: dict[str, list[Run]] = {}
    begun_as: dict[str, str] = {}
    for run in runs:
        if run.config is not None:
            key = _key(settings_of(run))
            groups.setdefault(key, []).append(run)
            begun_as.setdefault(_key(run.from_plan("settings") or {}), key)
    unknown = [run for run in runs if run.config is None and not settings_of(run)]
    for run in runs:
        if run.config is None and (planned := settings_of(run)):
            groups.setdefault(begun_as.get(_key(planned), _key(planned)), []).append(run)
    found = [_Group(name, tuple(group), _given(name, group)) for group in groups.values()]
    return _with_unknown(name, found, unknown)


def _key(settings: Mapping[str, Any]) -> str:
    return str(sorted(settings.items()))


def _with_unknown(name: str, groups: list[_Group], unknown: Sequence[Run]) -> list[_Group]:
    """Adds runs whose settings nobody knows: to the only group of their scale, or as a group of their own."""
    for smoke in (False, True):
        waiting = tuple(run for run in unknown if (run.from_plan("scale") == "smoke") == smoke)
        like = [i for i, group in enumerate(groups) if group.smoke == smoke]
        if waiting and len(like) == 1:
            groups[like[0]] = replace(groups[like[0]], runs=groups[like[0]].runs + waiting)
        elif waiting:
            groups.append(_Group(name, waiting))
    return groups


def _given(name: str, runs: Sequence[Run]) -> Given | None:
    """Returns what a group was given. Runs that no command started were given what their experiment has otherwise."""
    found, own = given(runs), None
    if found is not None and all(run.overrides is None for run in runs):
        own = _experiment(name)
    return found if found is None or own is None else replace(found, typed=tuple(differing([found, own])))


def _own_table(groups: Sequence[_Group]) -> Published:
    """Returns a table for runs of no published one, with a column for what any of them has measured."""
    metrics = {m for group in groups for run in group.runs for m in (run.result or {}).get("metrics", {})}
    shown = [f"{s}/{m}" for m in ("accuracy", "ftpt") for s in ("train", "test", "held_out")]
    shown += sorted(m for m in metrics if m.endswith("_accuracy"))
    names = {group.name for group in groups}
    title = f"Runs of {names.pop()}" if len(names) == 1 else "Other runs"
    return Published("runs", title, "", tuple(m for m in shown if m in metrics), {})


def _table(table: Published, groups: Sequence[_Group]) -> Reproduced:
    known = [(group.name, group.given) for group in groups if group.given is not None]
    own = not table.rows
    keys = varied_keys(known if own else [*known, *_published_settings(groups)])
    shared = shared_values([one for _, one in known]) if own and known else {}
    if not own:  # what differs from all published rows in the same way
        shared = {key: known[0][1].value(key) for key in keys if len({one.value(key) for _, one in known}) == 1}
        keys = [key for key in keys if key not in shared]
    rows = [_row(group, table, keys) for group in groups]
    places = list(dict.fromkeys(row.name for row in rows))
    rows.sort(key=lambda row: (places.index(row.name), [order(v) for v in row.varied.values() if own or row.notes]))
    return Reproduced(table, tuple(rows), tuple(keys), {k: v for k, v in shared.items() if k not in keys})


def _published_settings(groups: Sequence[_Group]) -> Iterator[tuple[str, Given]]:
    """Yields, beside each group with other settings than its published row's, those; its images may be any."""
    for group in groups:
        own = _experiment(group.name)
        if group.given is not None and own is not None and group.notes and not group.smoke:
            images = {key: value for key, value in group.given.settings.items() if key.startswith(_SOURCE)}
            images |= {key: value for key, value in group.given.settings.items() if _is_default(key, {key: value})}
            choices = {key: value for key, value in group.given.choices.items() if key == "data"}
            settings = {key: value for key, value in own.settings.items() if not key.startswith(_SOURCE)}
            yield group.name, Given(settings | images, own.choices | choices)


def _row(group: _Group, table: Published, keys: Sequence[str]) -> Row:
    published = table.rows.get(group.name, {})
    # A seed that was run twice, in two folders, is one value all the same.
    finished = {str(run.config["seed"]): run.result for run in group.runs if run.config and run.result}
    results = [result["metrics"] for result in finished.values()]
    cells = [
        Cell(metric, tuple(result[metric] for result in results if metric in result), published.get(metric))
        for metric in table.shown
        if metric in published or not results or any(metric in result for result in results)
    ]
    values = group.given or (_experiment(group.name) if keys and not group.runs else None)
    return Row(
        name=group.name,
        cells=tuple(cells),
        state=_state(group.runs),
        data=_data(group.config["data"]) if group.config is not None else "",
        notes=group.notes if table.rows or group.smoke else (),
        runs=group.runs,
        varied={key: values.value(key) if values is not None else UNKNOWN for key in keys},
    )


UNKNOWN = "?"
"""The value of a key of runs that have not begun, and whose sweep says nothing of their settings."""


def _state(runs: Sequence[Run]) -> str:
    if not runs:
        return "missing"
    told = []
    for state in ("finished", "running", "stopped", "pruned", "failed", "missing"):
        having = [run for run in runs if run.state == state]
        if not having:
            continue
        detail = ""
        if state in ("running", "stopped", "pruned"):
            epochs = [f"{run.epochs_done} of {run.config['schedule']['epochs']}" for run in having if run.config]
            detail = f" after epoch {', '.join(epochs)}" if epochs else ""
        if state == "failed":
            lines = (having[0].error or "").strip().splitlines()
            detail = f" ({lines[-1][:120]})" if lines else ""
        told.append(f"{len(having)} {state}{detail}")
    return ", ".join(told)


def _departures(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the settings in which a run is not the experiment of its name, but for where its images come from."""
    experiment = _experiment(name)
    if experiment is None:
        return []
    own = experiment.settings
    keys = sorted(key for key in own.keys() | found.keys() if not key.startswith(_SOURCE))
    return [
        f"{key}={found.get(key)}, not {own.get(key)}"
        for key in keys
        if own.get(key) != found.get(key) and not _is_default(key, found)
    ]


_SOURCE = (
    "data._target_", "data.classes", "data.train_set.", "data.test_set.", "data.root", "data.held_out_share",
)  # fmt: skip


def _is_default(key: str, given: dict[str, Any]) -> bool:
    """Whether a setting that only some data sets have is as if it were not there."""
    defaults: dict[str, Any] = {"data.image_size": None, "data.color": True, "data.views": {}}
    return key in defaults and given.get(key, defaults[key]) == defaults[key]


@cache
def _experiment(name: str) -> Given | None:
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
    return Given(comparable(plain), choices)


def _data(data: dict[str, Any]) -> str:
    if "root" in data:
        return f"images in {shortest(data['root'])}"
    source = data.get("train_set")
    target = source["_target_"] if isinstance(source, dict) else data["_target_"]
    return str(target).rpartition(".")[2]
