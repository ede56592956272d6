"""Searches whose runs take no time: what is kept on disk, and what a kill leaves of it, is all that they are for."""

import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import pytorch_lightning as pl
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from attnmosaic.search import search
from attnmosaic.search.study import open_storage

SPACE = ("lr.what=tag(log,interval(0.001,1))", "lr.where=tag(log,interval(0.001,1))", "schedule.k=choice(1,2,5)")
SEARCH = ("hydra/sweeper=optuna", "progress=quiet", "-m")


def plugin(name: str) -> Any:
    """Returns a plugin as Hydra has it: it executes their modules itself."""
    return Plugins.instance().class_name_to_class[name]


def study_of(folder: Path | str, name: str = "search") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(Path(folder) / search.JOURNAL)))


def facts(folder: Path | str) -> list[tuple[Any, ...]]:
    """Returns what makes searches equal: what was drawn and told, in order."""
    return [(t.number, t.params, t.state.name, t.value) for t in study_of(folder).trials]


def told(folder: Path | str) -> list[int]:
    """Returns the trials of which the journal says that they ended, as often as it does."""
    lines = map(json.loads, (Path(folder) / search.JOURNAL).read_text().splitlines())
    return [line["trial_id"] for line in lines if line["op_code"] == 6 and line["state"] != 0]


def drawn(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.partition("=")[::2] for override in overrides)


def worth(overrides: Sequence[str]) -> float:
    """Returns an accuracy that is best at lr.what=0.1, lr.where=0.01 and k=2."""
    of = drawn(overrides)
    off = abs(math.log10(float(of["lr.what"])) + 1) + abs(math.log10(float(of["lr.where"])) + 2)
    return 1 - 0.1 * off - 0.05 * abs(int(of["schedule.k"]) - 2)


class Runs:
    """Stands in for runs.

    Args:
        before: called with a trial's number before its run leaves a result.
    """

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.before = before
        self.ran: list[int] = []

    def launch(self, launcher: Any, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for number, overrides in enumerate(jobs, start=initial_job_idx):
            assert drawn(overrides)["hydra.sweep.subdir"] == str(number)
            folder = Path(launcher.config.hydra.sweep.dir) / str(number)
            folder.mkdir(exist_ok=True)
            self.before(number)
            self.ran.append(number)
            metrics = {"test/accuracy": worth(overrides), "train/accuracy": 1.0, "held_out/accuracy": 0.5}
            metrics |= {f"test/{name}": 1 - worth(overrides) for name in ("loss", "ffpf", "entropy")}
            (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
            done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            done.return_value = worth(overrides)
            returns.append(done)
        return returns


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Replaces runs, and the composition of their configs, which takes as long."""
    runs = Runs()
    basic = plugin("hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    monkeypatch.setattr(basic, "launch", lambda launcher, *args, **named: runs.launch(launcher, *args, **named))
    original, cache = search.planned_job, {}

    def planned(config: Any, number: int, overrides: Sequence[str]) -> Any:
        of = drawn(overrides)
        key = tuple(of.get(name, "") for name in ("schedule.k", "optimized_metric", "schedule.epochs"))
        if key not in cache or not re.match(r"lr\.wh", " ".join(of)):
            cache[key] = original(config, number, overrides)
        return dataclasses.replace(cache[key], folder=str(number), overrides=tuple(overrides))

    monkeypatch.setattr(search, "planned_job", planned)
    return runs


class FullDisk(pl.Callback):
    """There is no room, in the second epoch, until there is a file."""

    def __init__(self, until: str) -> None:
        self.until = Path(until)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and not self.until.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")
