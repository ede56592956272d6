"""Reads one run's folder, and locks it while a process trains the run."""

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
from attnmosaic.runs.rows import Confusion, Rows, Span, nested_value, number, parse_confusion, parse_rows, spans

if TYPE_CHECKING:
    from attnmosaic.runs.snapshots import Record

T = TypeVar("T")

RESULT, CONFIG, ERROR, LOCK, SWEEP = "result.json", "config.yaml", "error.txt", ".lock", "sweep.json"
METRICS_CSV, CHECKPOINTS, LAST, PRUNED = "metrics.csv", "checkpoints", "last.ckpt", "pruned.txt"

STATES = ("finished", "running", "stopped", "pruned", "failed", "missing")
"""The possible states of a run.

A stopped run has started, has not finished and is not running; a pruned run was ended early by a search; a missing run
is planned and has not started.
"""

HYDRA = Path(".hydra")
"""The folder in a run's folder where Hydra writes the run's overrides and chosen options."""


@dataclass(frozen=True)
class Run:
    """A run's folder. Each file is read at the first access; an unreadable file counts as missing.

    Attributes:
        folder: path of the folder.
        planned: the run's entry in a sweep's plan, if it is a job of a sweep.
        problems: by file name, the reason why an accessed file could not be read, or not completely.
    """

    folder: Path
    planned: dict[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    # ---- settings and state

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved config; None if the run has not started or the file cannot be read."""
        return self._read(CONFIG, _parse_config, "config")

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """``result.json``; None if the run has not finished or the file cannot be read."""
        return self._read(RESULT, _parse_result, "result")

    @property
    def name(self) -> str:
        """The experiment's name; the folder's name if neither a config nor a plan has it."""
        return str(nested_value(self.config or self.planned, "name") or self.folder.name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings of a finished run, one line each; see `attnmosaic.runs.diagnosis`."""
        return tuple((self.result or {}).get("warnings", ()))

    @cached_property
    def error(self) -> str | None:
        """The text of the error that ended the run; None if there was no error."""
        return self._read(ERROR, _text)

    @cached_property
    def overrides(self) -> list[str] | None:
        """The overrides of the command that started or planned the run; None if no command is known."""
        overrides = self._read(HYDRA / "overrides.yaml", _yaml)
        return self.from_plan("overrides") if overrides is None else overrides

    @property
    def command(self) -> str | None:
        """The command that starts the run, rebuilt from its overrides; None if the overrides are not known."""
        return None if self.overrides is None else command("train", *self.overrides)

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The chosen option of each config group; empty if no command is known."""
        composed = nested_value(self._read(HYDRA / "hydra.yaml", _yaml), "hydra", "runtime", "choices")
        choices = composed or self.from_plan("choices") or {}
        return {group: option for group, option in choices.items() if not group.startswith("hydra")}

    def from_plan(self, key: str) -> Any:
        """Returns a value from the run's entry in the sweep's plan; None if the plan does not have it."""
        return nested_value(self.planned, key)

    @property
    def smoke(self) -> bool:
        return nested_value(self.config or self.planned or self.result, "scale") == "smoke"

    @property
    def own_files(self) -> list[Path]:
        """The files that the run itself writes; other commands can add files to the folder later."""
        return [self.folder / name for name in (CONFIG, "train.log", METRICS_CSV, RESULT, ERROR)]

    @cached_property
    def state(self) -> str:
        """The state of the run, one of `STATES`: finished, running, stopped, pruned, failed or missing."""
        if self.result is not None:
            return "finished"
        if not (self.folder / CONFIG).exists() and self.error is None:
            return "missing"
        if self._is_running():
            return "running"
        if (self.folder / PRUNED).exists():
            return "pruned"
        return "failed" if self.error is not None else "stopped"

    def _is_running(self) -> bool:
        if not (self.folder / LOCK).exists():
            return False
        try:
            with locked(self.folder / LOCK, "hydra.run.dir", timeout=0):
                return False
        except BusyError:
            return True
        except UserError:  # The folder is read-only.
            return False

    # ---- measurements

    def rows(self, table: str) -> Rows:
        """Returns the complete rows of ``<table>.csv``, for example ``gradients``; empty if the file is missing."""
        rows, count = parse_rows(self.text(f"{table}.csv"))
        if len(rows) < count:
            self.problems[f"{table}.csv"] = f"skipped {count - len(rows)} of {count} rows, which are incomplete"
        return rows

    @cached_property
    def metrics(self) -> Rows:
        """The rows of ``metrics.csv``, one per epoch."""
        return self.rows("metrics")

    @cached_property
    def stages(self) -> list[Span]:
        """The stages so far; empty for a run without stages."""
        pairs = ((number(row.get("epoch")), row.get("stage")) for row in self.metrics)
        return spans([(int(epoch), stage) for epoch, stage in pairs if epoch is not None and stage])

    @cached_property
    def epochs_done(self) -> int:
        """The number of the last epoch in ``metrics.csv``; 0 if no epoch has finished."""
        return int(number(self.latest("epoch").get("epoch")) or 0)

    def latest(self, column: str) -> dict[str, str]:
        """Returns the newest complete row of ``metrics.csv`` with a value in a column; empty if there is none.

        Parses only the rows that it needs, as a sweep's display calls it twice a second.
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
        """The outputs of a two-output network: ``digit``, and ``sum`` or ``product``; empty for a where/what pair."""
        if not nested_value(self.config, "model", "network"):
            return ()
        return "digit", str(nested_value(self.config, "data", "operation") or "sum")

    def confusion(self, output: str, split: str) -> Confusion | None:
        """Returns an output's confusion matrix on a split; None if it was not measured."""
        return self._read(f"confusion_{output}_{split}.csv", lambda file: parse_confusion(_text(file), output, split))

    @cached_property
    def snapshots(self) -> "Record | None":
        """``mosaics.npz``; None if it is missing or cannot be read."""
        from attnmosaic.runs.snapshots import RECORD, read_record  # imports numpy

        return self._read(RECORD, read_record)

    # ---- files

    def text(self, name: str) -> str:
        """Returns the text of a file in the run's folder; empty if the file is missing or cannot be read."""
        return self._read(name, _text) or ""

    def _read(self, name: str | Path, parse: Callable[[Path], T], what: str = "") -> T | None:
        """Returns the parsed content of a file in the run's folder; None if it is missing or cannot be read.

        An unreadable file gets an entry in `problems`.

        Args:
            name: name of the file.
            parse: returns a file's content; any exception that it raises marks the file as unreadable.
            what: kind of the file, for the entry "not a complete <what>"; empty for an entry without it.
        """
        file = self.folder / name
        try:
            return parse(file) if file.exists() else None
        except Exception as error:  # Which exception an incomplete file raises depends on its parser.
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
        raise ValueError("the value of a metric is not a number")
    return result


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Creates a run's folder and locks it against other processes; the lock ends with this process.

    Removes temporary files and the error of an earlier process.

    Raises:
        BusyError: another process is running there.
        UserError: the folder cannot be written to.
    """
    # Two seconds, as a process that only checks whether a run is running holds the lock for an instant.
    with locked(folder / LOCK, "hydra.run.dir", timeout=2):
        (folder / ERROR).unlink(missing_ok=True)
        (folder / PRUNED).unlink(missing_ok=True)
        for written in (folder, folder / CHECKPOINTS):
            remove_unfinished(written)
        yield


def earlier_result(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result in a folder if a run with the same settings has finished there, otherwise None.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    run = Run(folder)
    before = {} if run.config is None else flat(identity_settings(relocate_images(run.config, folder)))
    now = flat(identity_settings(config))
    if before == now:
        return run.result
    if run.result is None and not any((folder / CHECKPOINTS).glob("*.ckpt")):
        return None  # There is no result and no checkpoint that the new run would overwrite.
    absent = object()
    keys = sorted(before.keys() | now.keys())
    key = next(key for key in keys if before.get(key, absent) != now.get(key, absent))
    how = f"{key} was {before.get(key)}, now {now.get(key)}" if before else f"its {CONFIG} cannot be read"
    raise UserError(
        f"run_dir: '{folder}' holds a run with other settings ({how}); choose another folder or delete this one"
    )


def seed_name(seed: dict[str, Any]) -> str:
    """Returns a run's seeds as text: one number if all random streams have the same seed, otherwise each stream's."""
    streams = {name: str(seed.get(name)) for name in ("data", "init", "order")}
    if len(set(streams.values())) == 1:
        return streams["data"]
    return ", ".join(f"{name} {value}" for name, value in streams.items())
