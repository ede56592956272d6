"""Reads one run's folder, and keeps other processes from running there."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from attnmosaic.config.identity import identity_settings
from attnmosaic.config.paths import relocate_images
from attnmosaic.config.resolution import flat
from attnmosaic.core.errors import BusyError, UserError, one_line
from attnmosaic.core.files import locked, remove_unfinished
from attnmosaic.core.quoting import command
from attnmosaic.runs.rows import Confusion, Rows, Span, dig, number, parse_confusion, parse_rows, spans

if TYPE_CHECKING:
    from attnmosaic.runs.snapshots import Record

T = TypeVar("T")

RESULT, CONFIG, ERROR, LOCK, SWEEP = "result.json", "config.yaml", "error.txt", ".lock", "sweep.json"
METRICS_CSV, CHECKPOINTS, LAST, PRUNED = "metrics.csv", "checkpoints", "last.ckpt", "pruned.txt"

STATES = ("finished", "running", "stopped", "pruned", "failed", "missing")
"""What a run may have come to: a search ended a pruned one early; a stopped one has begun and is not at work."""

HYDRA = Path(".hydra")
"""The folder in a run's folder where Hydra writes what it composed the run from."""


@dataclass(frozen=True)
class Run:
    """A run's folder; its files are read when asked for, and one that cannot be read counts as missing.

    Attributes:
        folder: the folder.
        planned: the run's entry in a sweep's plan, if it is a job of a sweep.
        problems: by file name why a file that was asked for could not be read, or not completely.
    """

    folder: Path
    planned: dict[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    # ---- settings and state

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved config; None before the run has begun, or if it cannot be read."""
        return self._read(CONFIG, _parse_config, "config")

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """``result.json``; None unless the run has finished, or if it cannot be read."""
        return self._read(RESULT, _parse_result, "result")

    @property
    def name(self) -> str:
        """The experiment; the folder's name where neither config nor plan is known."""
        return str(dig(self.config or self.planned, "name") or self.folder.name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a finished run did not learn, a line each; see `attnmosaic.runs.diagnosis`."""
        return tuple((self.result or {}).get("warnings", ()))

    @cached_property
    def error(self) -> str | None:
        """The error that a failed run ended with; None unless it failed."""
        return self._read(ERROR, _text)

    @cached_property
    def overrides(self) -> list[str] | None:
        """The overrides of the command that started the run, or is to start it; None if no command is known."""
        typed = self._read(HYDRA / "overrides.yaml", _yaml)
        return self.from_plan("overrides") if typed is None else typed

    @property
    def command(self) -> str | None:
        """The command that started the run, rebuilt from its overrides; None if they are not known."""
        return None if self.overrides is None else command("train", *self.overrides)

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The option that Hydra composed the run from, by config group; empty if no command is known."""
        composed = dig(self._read(HYDRA / "hydra.yaml", _yaml), "hydra", "runtime", "choices")
        choices = composed or self.from_plan("choices") or {}
        return {group: option for group, option in choices.items() if not group.startswith("hydra")}

    def from_plan(self, key: str) -> Any:
        """Returns what the sweep's plan has of the run under a key; None if it has nothing."""
        return dig(self.planned, key)

    @property
    def smoke(self) -> bool:
        return dig(self.config or self.planned or self.result, "scale") == "smoke"

    @property
    def own_files(self) -> list[Path]:
        """The files that the run writes from its beginning to its end; others may add to its folder later."""
        return [self.folder / name for name in (CONFIG, "train.log", METRICS_CSV, RESULT, ERROR)]

    @cached_property
    def state(self) -> str:
        """One of `STATES`."""
        if self.result is not None:
            return "finished"
        if not (self.folder / CONFIG).exists() and self.error is None:
            return "missing"
        if self._at_work():
            return "running"
        if (self.folder / PRUNED).exists():
            return "pruned"
        return "failed" if self.error is not None else "stopped"

    def _at_work(self) -> bool:
        if not (self.folder / LOCK).exists():
            return False
        try:
            with locked(self.folder / LOCK, "hydra.run.dir", timeout=0):
                return False
        except BusyError:
            return True
        except UserError:  # a folder that may only be read
            return False

    # ---- measurements

    def rows(self, table: str) -> Rows:
        """Returns the complete rows of ``<table>.csv``: ``gradients``, ``focus_vs_pred_<split>``; none without it."""
        rows, count = parse_rows(self.text(f"{table}.csv"))
        if len(rows) < count:
            self.problems[f"{table}.csv"] = f"{count - len(rows)} of {count} rows are cut short or too long, left out"
        return rows

    @cached_property
    def metrics(self) -> Rows:
        """The rows of ``metrics.csv``, one an epoch."""
        return self.rows("metrics")

    @cached_property
    def stages(self) -> list[Span]:
        """The stages so far; none of a run without stages."""
        known = ((number(row.get("epoch")), row.get("stage")) for row in self.metrics)
        return spans([(int(epoch), stage) for epoch, stage in known if epoch is not None and stage])

    @cached_property
    def epochs_done(self) -> int:
        """The last epoch in ``metrics.csv``, 0 before the first one."""
        return int(number(self.latest("epoch").get("epoch")) or 0)

    def latest(self, column: str) -> dict[str, str]:
        """Returns the newest complete row of ``metrics.csv`` with a value in a column; empty before there is one.

        It parses no more rows than needed: whoever watches a run calls it twice a second.
        """
        lines = csv.reader(self._lines[:1] + self._lines[:0:-1])
        names = next(lines, [])
        rows = (dict(zip(names, line, strict=True)) for line in lines if len(line) == len(names))
        return next((row for row in rows if row.get(column)), {})

    @cached_property
    def _lines(self) -> list[str]:
        return self.text(METRICS_CSV).splitlines()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of a network with two: ``digit`` and ``sum`` or ``product``; none of a pair."""
        if not dig(self.config, "model", "network"):
            return ()
        return "digit", str(dig(self.config, "data", "operation") or "sum")

    def confusion(self, output: str, split: str) -> Confusion | None:
        """Returns what an output took for what on a split; None if it was not measured."""
        return self._read(f"confusion_{output}_{split}.csv", lambda file: parse_confusion(_text(file), output, split))

    @cached_property
    def snapshots(self) -> "Record | None":
        """``mosaics.npz``; None if it is missing or cannot be read."""
        from attnmosaic.runs.snapshots import RECORD, read_record  # imports numpy

        return self._read(RECORD, read_record)

    # ---- files

    def text(self, name: str) -> str:
        """Returns a text file of its folder; empty if it is missing or cannot be read."""
        return self._read(name, _text) or ""

    def _read(self, name: str | Path, parse: Callable[[Path], T], what: str = "") -> T | None:
        """Returns a parsed file of its folder; None if it is missing or, with a line in `problems`, unreadable.

        Args:
            name: of the file.
            parse: returns what a file holds, or raises anything.
            what: the file is to be a complete one of.
        """
        file = self.folder / name
        try:
            return parse(file) if file.exists() else None
        except Exception as error:  # a torn file fails in whatever reads it
            reason = one_line(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            self.problems[str(name)] = f"not a complete {what} ({reason})" if what else reason
            return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _yaml(file: Path) -> Any:
    return yaml.load(_text(file), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _parse_config(file: Path) -> dict[str, Any]:
    config = _yaml(file)
    identity_settings(config)
    if not (isinstance(config["name"], str) and config["seed"] and config["schedule"]["epochs"]):
        raise ValueError("name, seed or schedule.epochs is empty")
    return config


def _parse_result(file: Path) -> dict[str, Any]:
    result = json.loads(_text(file))
    if not all(isinstance(value, (int, float)) for value in result["metrics"].values()):
        raise ValueError("a metric is no number")
    return result


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from running there; the lock ends with the process.

    Unfinished files of an earlier process are removed.

    Raises:
        BusyError: another process is at work there.
        UserError: the folder cannot be written to.
    """
    # Two seconds: a process that only asks whether a run is at work holds the lock for an instant.
    with locked(folder / LOCK, "hydra.run.dir", timeout=2):
        (folder / ERROR).unlink(missing_ok=True)
        (folder / PRUNED).unlink(missing_ok=True)
        for written in (folder, folder / CHECKPOINTS):
            remove_unfinished(written)
        yield


def earlier_result(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result of a run that has finished in a folder with the same settings, or None.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    run = Run(folder)
    before = {} if run.config is None else flat(identity_settings(relocate_images(run.config, folder)))
    now = flat(identity_settings(config))
    if before == now:
        return run.result
    if run.result is None and not any((folder / CHECKPOINTS).glob("*.ckpt")):
        return None  # there is nothing to lose
    absent = object()
    keys = sorted(before.keys() | now.keys())
    key = next(key for key in keys if before.get(key, absent) != now.get(key, absent))
    how = f"{key} was {before.get(key)}, now {now.get(key)}" if before else f"its {CONFIG} cannot be read"
    raise UserError(
        f"run_dir: '{folder}' holds a run with other settings ({how}); choose another folder, or remove this one"
    )


def seed_name(seed: dict[str, Any]) -> str:
    """Returns a run's seed in short: one number if all its streams have the same one."""
    streams = {name: str(seed.get(name)) for name in ("data", "init", "order")}
    if len(set(streams.values())) == 1:
        return streams["data"]
    return ", ".join(f"{name} {value}" for name, value in streams.items())
