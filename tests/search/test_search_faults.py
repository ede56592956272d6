"""Searches in processes of their own that are killed."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.instant_searches import outcomes, recorded, states_of
from helpers.settings import SMALL

from attnmosaic.runs.run import RESULT
from attnmosaic.sweeps.fork_server import CONTEXT, start_server, stop_server

pytestmark = pytest.mark.faults

KILLS = 5
"""How often a search is killed."""

GIVEN = (
    *SMALL, "callbacks.record=null", "callbacks.dashboards=null", "callbacks.gradients=null", "callbacks.pictures=null",
    "logger=none", "lr.where=tag(log,interval(0.001,1))", "schedule.k=choice(1,2)", "hydra/sweeper=optuna",
    "progress=quiet",
)  # fmt: skip


def search(folder: str, *more: str) -> None:
    """Searches in a process of its own, whose imports are done."""
    from attnmosaic import train

    os.chdir(folder)
    sys.argv = ["attnmosaic.train", *GIVEN, *more, "-m"]
    train.main()


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    start_server()
    yield
    stop_server()


def ran(folder: Path, *more: str, kill_at: int | None = None) -> int | None:
    """Searches to the end, or in ``killed`` until so many lines are written; returns the exit code."""
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


def check_equal(folder: Path, trials: int) -> None:
    """Checks that the killed search has the study and the metrics of the other, trial by trial."""
    assert outcomes(folder / "killed") == outcomes(folder / "whole")
    assert sorted(recorded(folder / "killed")) == [*range(trials)]
    for number in range(trials):
        whole, killed = (folder / name / str(number) / "metrics.csv" for name in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


def test_killed_again_and_again(tmp_path: Path) -> None:
    """A search whose trials finish or are pruned; no finished trial runs again."""
    more = (
        "lr.what=choice(1e-9,0.1)", "schedule.epochs=12", "trainer.check_val_every_n_epoch=1",
        "hydra/sweeper/pruner=median", "+hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.n_trials=5",
        "optimized_metric=test/loss",
    )  # fmt: skip
    assert ran(tmp_path, *more, "hydra.sweep.dir=whole") == 0
    assert {*states_of(tmp_path / "whole")} == {"COMPLETE", "PRUNED"}
    kills, finished = 0, {}
    for mark in sorted(random.Random(0).sample(range(1, progress(tmp_path / "whole")), KILLS)):
        kills += ran(tmp_path, *more, "hydra.sweep.dir=killed", kill_at=mark) == -signal.SIGKILL
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"killed/*/{RESULT}")}
        assert now.items() >= finished.items()
        finished = now
    assert ran(tmp_path, *more, "hydra.sweep.dir=killed") == 0
    assert kills > KILLS // 2
    check_equal(tmp_path, 5)


def test_killed_with_several_at_once(tmp_path: Path) -> None:
    """The jobs end with their search, and resume from their checkpoints."""
    more = (
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4",
        "lr.what=tag(log,interval(0.001,1))", "schedule.epochs=30",
    )  # fmt: skip
    assert ran(tmp_path, *more, "hydra.sweep.dir=whole") == 0
    process = CONTEXT.Process(target=search, args=(str(tmp_path), *more, "hydra.sweep.dir=killed"))
    process.start()
    while not [*tmp_path.glob("killed/2/checkpoints/last.ckpt")]:  # the second round is at work
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert ran(tmp_path, *more, "hydra.sweep.dir=killed") == 0
    check_equal(tmp_path, 4)
