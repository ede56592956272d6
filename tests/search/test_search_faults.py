"""Searches that are killed again and again, and several processes at one study."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.instant_searches import facts, study_of, told
from helpers.settings import SMALL

from attnmosaic.runs.run import RESULT
from attnmosaic.sweeps.server import CONTEXT, start_server, stop_server

pytestmark = pytest.mark.faults

KILLS = 8
"""How often a search is killed."""

TRIALS, WRITERS, REPORTS = 6, 4, 25

GIVEN = (
    *SMALL, "callbacks.record=null", "callbacks.dashboards=null", "callbacks.gradients=null", "callbacks.pictures=null",
    "logger=none", "schedule.epochs=30", "lr.what=tag(log,interval(0.001,1))", "lr.where=0.01",
    "schedule.k=choice(1,2)", f"hydra.sweeper.n_trials={TRIALS}", "hydra/sweeper=optuna", "progress=quiet",
)  # fmt: skip


def search(folder: str, *more: str) -> None:
    """Searches in a process of its own, whose imports are done."""
    import os
    import sys

    from attnmosaic import train

    os.chdir(folder)
    sys.argv = ["attnmosaic.train", *GIVEN, *more, "-m"]
    train.main()


def write(path: str, trial: int) -> None:
    """Reports to a study, as the run of a trial does."""
    import optuna

    from attnmosaic.search.study import open_study

    study = open_study(path, "search", "maximize", None)
    for step in range(REPORTS):
        optuna.Trial(study, study.get_trials(deepcopy=False)[trial]._trial_id).report(trial + step / 100, step)


@pytest.fixture(autouse=True)
def _server() -> Any:
    start_server()
    yield
    stop_server()


def ran(folder: Path, *more: str, kill_at: int | None = None) -> int | None:
    """Searches in ``killed``, or elsewhere, to its end or until it has come so far; returns the exit code."""
    process = CONTEXT.Process(target=search, args=(str(folder), *more))
    process.start()
    while kill_at is not None and process.is_alive() and progress(folder / "killed") < kill_at:
        time.sleep(0.002)
    if kill_at is not None:
        process.kill()
    process.join()
    return process.exitcode  # type: ignore[no-any-return]


def progress(folder: Path) -> int:
    """Returns how many lines the study and the runs of a search have written."""
    return sum(
        path.read_bytes().count(b"\n") for path in [*folder.glob("study.journal"), *folder.glob("*/metrics.csv")]
    )


@pytest.mark.parametrize(
    "more",
    [(), ("hydra/sweeper/pruner=median", "+hydra.sweeper.pruner.n_startup_trials=2")],
    ids=["plain", "pruned"],
)
def test_killed_again_and_again(tmp_path: Path, more: tuple[str, ...]) -> None:
    """The study is that of a search that nobody killed, trial by trial, and so are the results."""
    assert ran(tmp_path, *more, "hydra.sweep.dir=whole") == 0
    marks = random.Random(0).sample(range(1, progress(tmp_path / "whole")), KILLS)
    kills, finished = 0, {}
    for mark in sorted(marks):
        kills += ran(tmp_path, *more, "hydra.sweep.dir=killed", kill_at=mark) == -signal.SIGKILL
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"killed/*/{RESULT}")}
        assert now.items() >= finished.items()  # none is run again
        finished = now
    assert ran(tmp_path, *more, "hydra.sweep.dir=killed") == 0
    print(f"{kills} kills, {len(finished)} trials finished before the last start")
    assert kills > KILLS // 2
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")
    assert sorted(told(tmp_path / "killed")) == [*range(TRIALS)]
    states = {trial.state.name for trial in study_of(tmp_path / "killed").trials}
    assert states == ({"COMPLETE", "PRUNED"} if more else {"COMPLETE"})
    for trial in study_of(tmp_path / "whole").trials:
        files = [tmp_path / folder / str(trial.number) / "metrics.csv" for folder in ("whole", "killed")]
        assert files[0].read_text() == files[1].read_text()


def test_killed_with_several_at_once(tmp_path: Path) -> None:
    """The jobs end with their search, and go on where they were."""
    several = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
    assert ran(tmp_path, *several, "hydra.sweep.dir=whole") == 0
    process = CONTEXT.Process(target=search, args=(str(tmp_path), *several, "hydra.sweep.dir=killed"))
    process.start()
    while not [*tmp_path.glob("killed/2/checkpoints/last.ckpt")]:  # the second round is at work
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert ran(tmp_path, *several, "hydra.sweep.dir=killed") == 0
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")
    assert sorted(told(tmp_path / "killed")) == [*range(TRIALS)]


def test_several_processes_at_one_study(tmp_path: Path) -> None:
    """What each reports is there, once."""
    import optuna
    from optuna.trial import TrialState

    from attnmosaic.search.study import open_study

    path = str(tmp_path / "study.journal")
    study = open_study(path, "search", "maximize", None)
    for _ in range(WRITERS):
        study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    processes = [CONTEXT.Process(target=write, args=(path, trial)) for trial in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    for trial in open_study(path, "search", "maximize", None).trials:
        assert trial.intermediate_values == {step: trial.number + step / 100 for step in range(REPORTS)}
