"""One run's folder: its config, its state, its result, and the lock of the process at work there."""

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from attnmosaic.config.identity import decisive
from attnmosaic.config.paths import located
from attnmosaic.config.resolution import flat
from attnmosaic.config.trusted import NotPlainError, check_plain
from attnmosaic.core.errors import BusyError, UserError, one_line
from attnmosaic.core.files import remove_unfinished

RESULT, CONFIG, ERROR, LOCK, SWEEP = "result.json", "config.yaml", "error.txt", ".lock", "sweep.json"
METRICS_CSV, CHECKPOINTS, LAST, PRUNED = "metrics.csv", "checkpoints", "last.ckpt", "pruned.txt"

HYDRA = Path(".hydra")
"""Where Hydra writes, in a run's folder, what it composed the run from."""

AT_ONCE = "ATTNMOSAIC_JOBS_AT_ONCE"
"""The environment variable that tells a job how many of its sweep run at once."""


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked.

    Attributes:
        folder: the folder.
        planned: what a sweep's plan says of it, if it is a job of one.
    """

    folder: Path
    planned: dict[str, Any] | None = None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved config; None before the run has begun, or if it cannot be read."""
        loaded = self._yaml(CONFIG)
        try:
            check_plain(loaded)  # aliases of YAML can make more of a page than any memory holds
            decisive(loaded)
            return (
                loaded if isinstance(loaded["name"], str) and loaded["seed"] and loaded["schedule"]["epochs"] else None
            )
        except (NotPlainError, KeyError, TypeError, ValueError, AttributeError):  # not the whole of a config
            return None

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """``result.json``; None unless the run has finished, or if it cannot be read."""
        try:
            loaded = json.loads(self._read(RESULT) or "null")
            whole = all(isinstance(value, (int, float)) for value in loaded["metrics"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not the whole of a result
            return None
        return loaded if whole else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a finished run did not learn, a line each; see `attnmosaic.runs.diagnosis`."""
        found = (self.result or {}).get("warnings")
        return tuple(one_line(str(line)) for line in found) if isinstance(found, list) else ()

    @cached_property
    def error(self) -> str | None:
        """What the run failed with; None unless it failed."""
        return self._read(ERROR)

    @cached_property
    def overrides(self) -> list[str] | None:
        """The overrides of the command that started it, or is to start it; None if no command is known."""
        typed = self._yaml(HYDRA / "overrides.yaml")
        found = typed if isinstance(typed, list) else self.from_plan("overrides")
        return [str(text) for text in found] if isinstance(found, list) else None

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The option that Hydra composed it from, by config group; empty if no command is known."""
        try:
            choices = dict(self._yaml(HYDRA / "hydra.yaml")["hydra"]["runtime"]["choices"])
        except (KeyError, TypeError, ValueError):
            choices = self.from_plan("choices") or {}
        return {str(group): option for group, option in choices.items() if not str(group).startswith("hydra")}

    def from_plan(self, key: str) -> Any:
        """Returns what its sweep's plan has of it under a key; None if it has nothing."""
        return self.planned.get(key) if isinstance(self.planned, dict) else None

    @property
    def own_files(self) -> list[Path]:
        """What it writes from its beginning to its end; not what others may add to its folder later."""
        return [self.folder / name for name in (CONFIG, "train.log", "metrics.csv", RESULT, ERROR)]

    @cached_property
    def epochs_done(self) -> int:
        """Epochs that ``metrics.csv`` has, 0 to those of the schedule."""
        return max(0, len(self._metrics) - 1)

    def latest(self, column: str) -> dict[str, str]:
        """Returns the newest whole row of ``metrics.csv`` that has a value in a column; empty before there is one."""
        lines = csv.reader(self._metrics[:1] + self._metrics[:0:-1])
        names = next(lines, [])
        rows = (dict(zip(names, line, strict=True)) for line in lines if len(line) == len(names))
        return next((row for row in rows if row.get(column)), {})

    @cached_property
    def _metrics(self) -> list[str]:
        return (self._read(METRICS_CSV) or "").splitlines()

    @cached_property
    def state(self) -> str:
        """``finished``, ``running``, ``pruned`` (a search ended it early), ``failed``, ``stopped`` or ``missing``.

        A stopped run has begun and is not at work.
        """
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
            with FileLock(self.folder / LOCK, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that may only be read
            return False

    def _yaml(self, name: str | Path) -> Any:
        """Returns what a YAML file of its folder holds; None if it cannot be read."""
        try:
            return yaml.load(self._read(name) or "", Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, RecursionError, ValueError):
            return None

    def _read(self, name: str | Path) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError):  # what is no text, a name that no file can have
            return None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from running there; the lock ends with the process.

    What an earlier process left half written is removed.

    Raises:
        BusyError: another process is at work there.
        UserError: the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=2)  # whoever only looks whether a run is at work holds it for an instant
    except Timeout as error:
        raise BusyError(f"run_dir: another process is running in '{folder}'; wait for it, or choose another") from error
    except OSError as error:
        raise UserError(f"run_dir: cannot write to '{folder}' ({error.strerror}); choose another") from error
    try:
        (folder / ERROR).unlink(missing_ok=True)
        (folder / PRUNED).unlink(missing_ok=True)
        for written in (folder, folder / CHECKPOINTS):
            remove_unfinished(written)
        yield
    finally:
        lock.release()


def earlier_result(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result of a run that has finished in a folder with the same settings, or None.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    run = Run(folder)
    before = {} if run.config is None else flat(decisive(located(run.config, folder)))
    now = flat(decisive(config))
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


def seed_name(seed: Any) -> str:
    """Returns a run's seed in short: one number if all its streams have the same one."""
    streams = {name: str(seed.get(name))[:20] for name in ("data", "init", "order")}
    if len(set(streams.values())) == 1:
        return streams["data"]
    return ", ".join(f"{name} {value}" for name, value in streams.items())
