"""Searches with trials that take no time: a launcher that does not train, and searches that use it."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.search import search
from attnmosaic.search.options import Options
from attnmosaic.search.study import open_storage
from attnmosaic.sweeps.hydra_callback import end_sweep

SPACE = ("lr.what=tag(log,interval(0.001,1))", "lr.where=tag(log,interval(0.001,1))", "schedule.k=choice(1,2,5)")


def study_of(folder: Path | str, name: str = "search") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(Path(folder) / search.JOURNAL)))


def states_of(folder: Path | str) -> list[str]:
    return [trial.state.name for trial in study_of(folder).trials]


def outcomes(folder: Path | str) -> list[tuple[Any, ...]]:
    """Returns number, parameters, state and value of each trial; equal searches have equal outcomes."""
    return [(t.number, t.params, t.state.name, t.value) for t in study_of(folder).trials]


def recorded(folder: Path | str) -> list[int]:
    """Returns the numbers of ended trials as often as the journal has a line for their end."""
    lines = map(json.loads, (Path(folder) / search.JOURNAL).read_text().splitlines())
    return [line["trial_id"] for line in lines if line["op_code"] == 6 and line["state"] != 0]


def values_of(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.partition("=")[::2] for override in overrides)


def accuracy(overrides: Sequence[str]) -> float:
    """Returns a made-up accuracy; its maximum is at lr.what=0.1, lr.where=0.01 and k=2."""
    values = values_of(overrides)
    distance = abs(math.log10(float(values["lr.what"])) + 1) + abs(math.log10(float(values["lr.where"])) + 2)
    return 1 - 0.1 * distance - 0.05 * abs(int(values["schedule.k"]) - 2)


class Runs:
    """A launcher whose runs immediately have a result.

    Args:
        folder: folder of the sweep.
        before: called with the number and folder of each trial. If it raises an `Exception`, the run fails with it; if
            it returns True, the run ends without a result.
    """

    def __init__(self, folder: Path, before: Callable[[int, Path], Any] = lambda number, folder: None) -> None:
        self.folder = folder
        self.before = before
        self.batches: list[list[int]] = []
        self.jobs: list[Sequence[str]] = []

    @property
    def ran(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append([*range(initial_job_idx, initial_job_idx + len(jobs))])
        self.jobs.extend(jobs)
        return [self._run(number, job) for number, job in zip(self.batches[-1], jobs, strict=True)]

    def _run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        assert values_of(overrides)["hydra.sweep.subdir"] == str(number)
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        job_return = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        try:
            if not self.before(number, folder):
                job_return.return_value = accuracy(overrides)
                metrics = {"test/accuracy": job_return.return_value, "train/accuracy": 1.0, "held_out/accuracy": 0.5}
                metrics |= {f"test/{name}": 1 - job_return.return_value for name in ("loss", "ffpf", "entropy")}
                (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
        except Exception as error:
            job_return.status, job_return.return_value = JobStatus.FAILED, error
        return job_return


planned_job = search.planned_job
_composed: dict[tuple[str, ...], Any] = {}
"""Configs and planned jobs by their overrides; they are kept because composing one takes longer than a search."""


def _planned_once(config: Any, number: int, overrides: Sequence[str]) -> Any:
    """Plans a job, but composes only once for all learning rates: each config has the rates of the first."""
    named = (override.partition("=")[0] if override.startswith("lr.wh") else override for override in overrides)
    key = tuple(override for override in named if not override.startswith("hydra."))
    if key not in _composed:
        _composed[key] = planned_job(config, number, overrides)
    return dataclasses.replace(_composed[key], folder=str(number), overrides=tuple(overrides))


def _composed_once(*overrides: str) -> Any:
    if overrides not in _composed:
        _composed[overrides] = compose("train", [*overrides], return_hydra_config=True)
    return _composed[overrides].copy()


class Searches:
    """Runs searches in the current folder."""

    def new(self, *overrides: str, folder: str = "search", launcher: Any = None, **options: Any) -> search.Search:
        """Returns a new search.

        Args:
            *overrides: overrides of the command, in addition to ``hydra/sweeper=optuna`` and ``hydra.sweep.dir``.
            folder: ``hydra.sweep.dir``.
            launcher: launcher of the trials; None for `Runs` without failures.
            **options: keys of ``hydra.sweeper``.
        """
        config = _composed_once("hydra/sweeper=optuna")
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")
        plain: Any = OmegaConf.to_container(config.hydra.sweeper)
        all_options = {key: value for key, value in plain.items() if not key.startswith("_")} | options
        loader: Any = GlobalHydra.instance().config_loader()
        return search.Search(Options(**all_options), config, loader, launcher or Runs(Path(folder)), overrides)

    def run(self, *overrides: str, **options: Any) -> search.Search:
        """Runs a new search to its end and prints its summary."""
        return self.finish(self.new(*overrides, **options))

    def again(self, before: search.Search, folder: str, launcher: Any, **options: Any) -> search.Search:
        """Runs a search with the configs of an earlier one, so that they are not composed and checked again."""
        new = copy.copy(before)
        new.folder, new.launcher = Path(folder), launcher
        new.storage = str(new.folder.absolute() / search.JOURNAL)
        new.options = dataclasses.replace(before.options, **options)
        return self.finish(new)

    def finish(self, new: search.Search) -> search.Search:
        try:
            new.run()
        finally:
            end_sweep()
        return new


@contextmanager
def instant_searches(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Searches]:
    """Yields an object that runs searches in a folder without starting commands."""
    register()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(search, "planned_job", _planned_once)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        yield Searches()


def replace_basic_launcher(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    """Replaces Hydra's basic launcher, so that commands run searches without training."""
    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    monkeypatch.setattr(basic, "launch", lambda launcher, jobs, initial_job_idx: runs.launch(jobs, initial_job_idx))


def instantiate_callback(override: str) -> Any:
    """Returns the callback that an override of a command adds."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return instantiate(OverridesParser.create().parse_override(override).value())
