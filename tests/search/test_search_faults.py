"""Searches in separate processes that are killed."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.instant_searches import outcomes, recorded, states_of
from helpers.settings import ALL_CHECKPOINTS, SMALL

from attnmosaic.runs.run import RESULT
from attnmosaic.sweeps.fork_server import CONTEXT, start_server, stop_server

pytestmark = pytest.mark.faults

KILLS = 5
"""Number of times that a search is killed."""

GIVEN = (
    *SMALL, "callbacks.record=null", "callbacks.dashboards=null", "callbacks.gradients=null", "callbacks.pictures=null",
    "logger=none", "lr.where=tag(log,interval(0.001,1))", "schedule.k=choice(1,2)", "hydra/sweeper=optuna",
    "progress=quiet", *ALL_CHECKPOINTS,
)  # fmt: skip


def search(folder: str, *more: str) -> None:
    """Runs a search; called in a process forked from a server that has finished the imports."""
    from attnmosaic import train

    os.chdir(folder)
    sys.argv = ["attnmosaic.train", *GIVEN, *more, "-m"]
    train.main()


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    start_server()
    yield
    stop_server()


def run_search(folder: Path, *more: str, kill_at: int | None = None) -> int | None:
    """Runs a search to its end and returns the exit code.

    With `kill_at`, the process is killed when the folder ``killed`` has this number of lines, see `progress`.
    """
    process = CONTEXT.Process(target=search, args=(str(folder), *more))
    process.start()
    while kill_at is not None and process.is_alive() and progress(folder / "killed") < kill_at:
        time.sleep(0.002)
    if kill_at is not None:
        process.kill()
    process.join()
    return process.exitcode  # type: ignore[no-any-return]


def progress(folder: Path) -> int:
    """Returns the number of lines that the study and the runs of a search have written."""
    return sum(
        path.read_bytes().count(b"\n") for path in [*folder.glob("study.journal"), *folder.glob("*/metrics.csv")]
    )


def check_equal(folder: Path, trials: int) -> None:
    """Checks that the killed search has the same study and metrics as the uninterrupted search."""
    assert outcomes(folder / "killed") == outcomes(folder / "uninterrupted")
    assert sorted(recorded(folder / "killed")) == [*range(trials)]
    for number in range(trials):
        tables = [folder / name / str(number) / "metrics.csv" for name in ("uninterrupted", "killed")]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_search_killed_several_times_equals_uninterrupted_search(tmp_path: Path) -> None:
    """Trials of the search finish or are pruned, and no finished trial runs again."""
    more = (
        "lr.what=choice(1e-9,0.1)", "schedule.epochs=12", "trainer.check_val_every_n_epoch=1",
        "hydra/sweeper/pruner=median", "+hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.n_trials=5",
        "optimized_metric=test/loss",
    )  # fmt: skip
    assert run_search(tmp_path, *more, "hydra.sweep.dir=uninterrupted") == 0
    assert {*states_of(tmp_path / "uninterrupted")} == {"COMPLETE", "PRUNED"}
    kills, finished = 0, {}
    for lines in sorted(random.Random(0).sample(range(1, progress(tmp_path / "uninterrupted")), KILLS)):
        kills += run_search(tmp_path, *more, "hydra.sweep.dir=killed", kill_at=lines) == -signal.SIGKILL
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"killed/*/{RESULT}")}
        assert now.items() >= finished.items()
        finished = now
    assert run_search(tmp_path, *more, "hydra.sweep.dir=killed") == 0
    assert kills > KILLS // 2
    check_equal(tmp_path, 5)


def test_killed_search_with_parallel_jobs_equals_uninterrupted_search(tmp_path: Path) -> None:
    """The jobs end with the search and resume from their checkpoints."""
    more = (
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4",
        "lr.what=tag(log,interval(0.001,1))", "schedule.epochs=30",
    )  # fmt: skip
    assert run_search(tmp_path, *more, "hydra.sweep.dir=uninterrupted") == 0
    process = CONTEXT.Process(target=search, args=(str(tmp_path), *more, "hydra.sweep.dir=killed"))
    process.start()
    while not [*tmp_path.glob("killed/2/checkpoints/last.ckpt")]:  # Waits until the second round is running.
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert run_search(tmp_path, *more, "hydra.sweep.dir=killed") == 0
    check_equal(tmp_path, 4)
