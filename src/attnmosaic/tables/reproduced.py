"""From runs on disk to rows that stand beside published ones."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.config import conf_dir, decisive, register
from attnmosaic.runs import Run, flat
from attnmosaic.tables.published import Published, published_tables

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
    """

    name: str
    cells: tuple[Cell, ...]
    state: str
    data: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()

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
    """A table as far as it was reproduced."""

    published: Published
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The published title; that it is all smoke, if it is."""
        measured = [row for row in self.rows if any(cell.values for cell in row.cells)]
        smoke = bool(measured) and all(row.smoke for row in measured)
        return f"{'SMOKE RUNS, NO RESULT. ' if smoke else ''}{self.published.title}"

    def label(self, row: Row) -> str:
        """Returns a row's short name, and what it is if it is not the published row."""
        short = self.published.label(row.name)
        return f"{short} ({row.kind.replace('smoke', 'SMOKE')})" if row.kind else short

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


_VERDICTS = ("within the seeds' range", f"within {NEAR}", "outside")


def reproduce(runs: Iterable[Run]) -> list[Reproduced]:
    """Returns every published table that some of the runs belong to, and one of all other runs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(_name(run), []).append(run)
    tables = []
    for table in published_tables():
        if table.rows.keys() & by_name.keys():
            rows = [row for name in table.rows for row in _rows(name, by_name.pop(name, []), table)]
            tables.append(Reproduced(table, tuple(rows)))
    if by_name:
        metrics = {m for found in by_name.values() for run in found for m in (run.result or {}).get("metrics", {})}
        shown = tuple(f"{s}/{m}" for m in ("accuracy", "ftpt") for s in ("train", "test", "held_out"))
        other = tuple(sorted(m for m in metrics if m.endswith("_accuracy")))
        table = Published("runs", "Other runs", "in no published table", (*shown, *other), {})
        rows = [row for name, found in sorted(by_name.items()) for row in _rows(name, found, table)]
        tables.append(Reproduced(table, tuple(rows)))
    return tables


def _name(run: Run) -> str:
    if run.config is not None:
        return str(run.config["name"])
    return run.planned["name"] if run.planned is not None else run.folder.name


def _rows(name: str, runs: Sequence[Run], table: Published) -> list[Row]:
    """Returns a row for each group of runs that differ in nothing but their seeds, a row without runs if none began."""
    published = table.rows.get(name, {})
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config is not None:
            groups.setdefault(str(_settings(run.config)), []).append(run)
    rows = {key: _row(name, group, table.shown, published) for key, group in groups.items()}
    # Those that have not begun are told apart by their scale alone, as far as anybody knows.
    for smoke in (False, True):
        waiting = [run for run in runs if run.config is None and ((run.planned or {}).get("scale") == "smoke") == smoke]
        like = [key for key, row in rows.items() if row.smoke == smoke]
        if waiting and len(like) == 1:
            rows[like[0]] = _row(name, [*groups[like[0]], *waiting], table.shown, published)
        elif waiting:
            rows[f"waiting {smoke}"] = _row(name, waiting, table.shown, published)
    return list(rows.values()) or [_row(name, [], table.shown, published)]


def _row(name: str, runs: list[Run], shown: Sequence[str], published: dict[str, float]) -> Row:
    config = next((run.config for run in runs if run.config is not None), None)
    # A seed that was run twice, in two folders, is one value all the same.
    finished = {str(run.config["seed"]): run.result for run in runs if run.config and run.result}
    results = [result["metrics"] for result in finished.values()]
    notes = []
    planned = next((run.planned for run in runs if run.planned is not None), None)
    if (config or planned or {}).get("scale") == "smoke":
        notes.append(SMOKE)
    elif config is not None:
        notes += _departures(name, config)
    cells = [
        Cell(metric, tuple(result[metric] for result in results if metric in result), published.get(metric))
        for metric in shown
        if metric in published or not results or any(metric in result for result in results)
    ]
    data = _data(config["data"]) if config is not None else ""
    return Row(name, tuple(cells), _state(runs), data, tuple(notes), tuple(runs))


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


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what makes a run comparable with another: all that decides its numbers, but seeds and machine."""
    kept = {"scale": "full"} | flat(decisive(config))  # what a run is that does not say
    return {key: value for key, value in kept.items() if not key.startswith(_BESIDE)}


_BESIDE = (
    "seed.", "compute.", "data.seed", "data.order_seed", "data.steps_per_block", "data.eval_batch_size",
    "trainer.accelerator", "trainer.devices", "trainer.check_val_every_n_epoch", "trainer.enable_",
    "trainer.num_sanity_val_steps", "trainer.use_distributed_sampler",
)  # fmt: skip


def _departures(name: str, config: dict[str, Any]) -> list[str]:
    """Returns the settings in which a run is not the experiment of its name, but for where its images come from."""
    own = _experiment(name)
    if own is None:
        return []
    given = _settings(config)
    keys = sorted(key for key in own.keys() | given.keys() if not key.startswith(_SOURCE))
    return [
        f"{key}={given.get(key)}, not {own.get(key)}"
        for key in keys
        if own.get(key) != given.get(key) and not _is_default(key, given)
    ]


_SOURCE = (
    "data._target_", "data.classes", "data.train_set.", "data.test_set.", "data.root", "data.held_out_share",
)  # fmt: skip


def _is_default(key: str, given: dict[str, Any]) -> bool:
    """Whether a setting that only some data sets have is as if it were not there."""
    defaults: dict[str, Any] = {"data.image_size": None, "data.color": True, "data.views": {}}
    return key in defaults and given.get(key, defaults[key]) == defaults[key]


@cache
def _experiment(name: str) -> dict[str, Any] | None:
    register()
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = compose("train", [f"experiment={name}", "run_dir=RUN_DIR"])
    except (HydraException, OmegaConfBaseException):  # no experiment of ours
        return None
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return _settings(plain)


def _data(data: dict[str, Any]) -> str:
    if "root" in data:
        return f"images in {data['root']}"
    source = data.get("train_set")
    target = source["_target_"] if isinstance(source, dict) else data["_target_"]
    return str(target).rpartition(".")[2]
