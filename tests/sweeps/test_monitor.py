"""A sweep watched from outside: states from folders and from what is heard, and how long it will take."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.runs.run import CONFIG, ERROR, METRICS_CSV, RESULT, claimed
from attnmosaic.sweeps.eta import Paces, left
from attnmosaic.sweeps.monitor import Job, Watch

STAGES = Schedule("what_then_where", 5, 20)
JOINT = Schedule("joint", 5, 20)
METRICS = {"train/accuracy": 0.96, "test/accuracy": 0.8341, "held_out/accuracy": 0.9999}


class Sweep:
    """Folders as a sweep's jobs leave them, a clock, and what the watch told."""

    def __init__(self, folder: Path, *jobs: tuple[str, Schedule]) -> None:
        self.now = 1000.0
        self.told: list[str] = []
        self.folder = folder
        self.jobs = [Job(name, f"{name} seed 0", folder / name, schedule) for name, schedule in jobs]
        for job in self.jobs:
            job.folder.mkdir(parents=True, exist_ok=True)

    def watch(self) -> Watch:
        return Watch(
            self.jobs, lambda job, text: self.told.append(f"{job.state} {job.label}: {text}"), lambda: self.now
        )

    def epochs(self, name: str, epochs: int, at: float, evaluated: str = ",") -> None:
        """Writes a table of so many epochs, as if at that time; the last one evaluated."""
        head = "epoch,stage,test/accuracy,test/focus\n"
        rows = [f"{epoch},what,," for epoch in range(1, epochs)] + [f"{epochs},what,{evaluated}"] * (epochs > 0)
        file = self.folder / name / METRICS_CSV
        file.write_text(head + "\n".join(rows))
        os.utime(file, (at, at))

    def finishes(self, name: str) -> None:
        (self.folder / name / RESULT).write_text(json.dumps({"metrics": METRICS, "seconds": 720.4}))


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Sweep]:
    return lambda *jobs: Sweep(tmp_path, *jobs)


def test_what_folders_tell(sweep: Callable[..., Sweep]) -> None:
    """As of a launcher that runs jobs anywhere; each end is told once, in order."""
    jobs = sweep(*((name, STAGES) for name in ("a", "b", "c", "d", "e")))
    for name in ("b", "c", "d"):
        (jobs.folder / name / CONFIG).touch()
    jobs.finishes("a")
    (jobs.folder / "d" / ERROR).write_text("an earlier slip\n")
    jobs.epochs("c", 7, at=10)
    watch = jobs.watch()
    assert jobs.told == ["done before a seed 0: accuracy train .960 test .834 held_out 1.00"]
    assert [job.state for job in jobs.jobs] == ["done before", *["waiting"] * 4]
    assert [job.behind for job in jobs.jobs] == [20, 0, 7, 0, 0]
    watch.look()
    assert not watch.begun
    assert len(jobs.told) == 1
    with claimed(jobs.folder / "b"), claimed(jobs.folder / "d"):
        watch.look()
        assert watch.counts == {"done before": 1, "running": 2, "waiting": 2}
        assert watch.begun
        (jobs.folder / "d" / ERROR).write_text("Traceback\n  somewhere\nZeroDivisionError: a bug\n")
        jobs.finishes("b")
        watch.look()
    watch.look()
    assert jobs.told[1:] == [
        "done b seed 0: accuracy train .960 test .834 held_out 1.00, 12 min",
        "failed d seed 0: ZeroDivisionError: a bug",
    ]
    with claimed(jobs.folder / "c"):
        watch.look()
        jobs.epochs("c", 9, at=1100, evaluated="0.5,0.25")
        watch.close()
    assert jobs.told[3:] == ["stopped c seed 0: after epoch 9 of 20"]
    assert jobs.jobs[2].evaluated == {"accuracy": 0.5, "focus": 0.25}
    assert [job.state for job in jobs.jobs] == ["done before", "done", "stopped", "failed", "waiting"]


def test_what_is_heard_counts(sweep: Callable[..., Sweep]) -> None:
    """A job that this process was told of ends when this process hears so, even if its folder says more, or less."""
    jobs = sweep(("a", STAGES), ("b", STAGES), ("c", STAGES))
    jobs.finishes("a")
    watch = jobs.watch()
    for number in range(3):
        watch.began(number)
    watch.ended(0, "holds a run with other settings")
    jobs.finishes("c")
    watch.look()
    assert [job.state for job in jobs.jobs] == ["failed", "running", "running"]
    watch.ended(2, None)
    watch.ended(1, "its process was killed")
    watch.close()
    assert jobs.told[1:] == [
        "failed a seed 0: holds a run with other settings",
        "done c seed 0: accuracy train .960 test .834 held_out 1.00, 12 min",
        "failed b seed 0: its process was killed",
    ]


def test_what_a_job_does(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", STAGES), ("b", JOINT))
    (job, joint), watch = jobs.jobs, jobs.watch()
    watch.began(0)
    watch.began(1)
    assert job.doing == "preparing"
    for epochs, doing in ((0, "what"), (4, "what"), (5, "where"), (10, "what"), (20, "measuring")):
        jobs.epochs("a", epochs, at=1000 + epochs)
        watch.look()
        assert (job.epochs, job.doing) == (epochs, doing)
    jobs.epochs("b", 1, at=1000)
    watch.look()
    assert joint.doing == "what+where"
    joint.network = True
    assert joint.doing == "network"


def test_a_half_written_row_is_no_evaluation(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", STAGES))
    watch = jobs.watch()
    watch.began(0)
    jobs.epochs("a", 5, at=1000, evaluated="0.5,0.25")
    with (jobs.folder / "a" / METRICS_CSV).open("a") as file:
        file.write("\n6,where,0.9")
    watch.look()
    assert jobs.jobs[0].evaluated == {"accuracy": 0.5, "focus": 0.25}


def test_the_time_left(sweep: Callable[..., Sweep]) -> None:
    """Unknown until every kind of stage was seen; then by each kind's pace, and no less than the slowest job."""
    jobs = sweep(("a", STAGES), ("b", STAGES), ("c", STAGES))
    watch = jobs.watch()
    assert watch.left is None
    watch.began(0)
    for epochs, at in ((0, 2000), (2, 2002), (4, 2004), (5, 2005)):  # What: a second
        jobs.epochs("a", epochs, at=at)
        watch.look()
    assert watch.left is None  # Where was not seen
    jobs.epochs("a", 7, at=2025)  # ten seconds
    watch.look()
    # a: 3 Where, 5 What, 5 Where; the others: 10 of each.
    assert watch.left == pytest.approx(85 + 2 * 110)
    watch.began(1)
    watch.look()
    assert watch.left == pytest.approx((85 + 2 * 110) / 2)
    watch.began(2)
    watch.look()
    assert watch.left == pytest.approx(110)  # three at once, but none of them faster
    watch.ended(1, "a slip")
    watch.ended(2, "a slip")
    assert watch.left == pytest.approx(85)
    watch.ended(0, None)
    assert watch.left == 0


def test_the_time_that_jobs_take_beside_their_epochs(sweep: Callable[..., Sweep]) -> None:
    """Known from the jobs that have ended, and counted for those that have not begun."""
    jobs = sweep(("a", JOINT), ("b", JOINT))
    watch = jobs.watch()
    watch.began(0)
    for epochs, at in ((0, 1010), (20, 1030)):
        jobs.epochs("a", epochs, at=at)
        watch.look()
    assert watch.left == pytest.approx(20)
    jobs.now = 1035
    watch.ended(0, None)
    assert watch.left == pytest.approx(20 + 15)


def test_an_earlier_runs_epochs_cost_nothing(sweep: Callable[..., Sweep]) -> None:
    """A job that goes on wrote its table a day ago, and writes it again when it begins."""
    jobs = sweep(("a", JOINT))
    jobs.epochs("a", 10, at=10)
    watch = jobs.watch()
    watch.began(0)
    watch.look()
    assert (watch.left, jobs.jobs[0].doing) == (None, "preparing")
    jobs.epochs("a", 10, at=90_000)
    watch.look()
    jobs.epochs("a", 12, at=90_006)
    watch.look()
    assert watch.left == pytest.approx(8 * 3)


def test_the_time_between_two_starts_is_no_epochs(sweep: Callable[..., Sweep]) -> None:
    """A job that is put back into a queue, and whose first epoch is over before anybody looks again."""
    jobs = sweep(("a", JOINT))
    watch = jobs.watch()
    config = jobs.folder / "a" / CONFIG
    watch.began(0)
    for started, epochs, at in ((900, 2, 1000), (900, 4, 1006), (90_000, 6, 90_006), (90_000, 8, 90_012)):
        config.touch()
        os.utime(config, (started, started))
        jobs.epochs("a", epochs, at=at)
        watch.look()
    assert watch.left == pytest.approx(12 * 3)


def test_paces() -> None:
    """Of a kind of stage that was seen alone, that; of another, what was seen of it among others."""
    paces = Paces()
    assert left(STAGES, 0, [paces]) is None
    paces.saw(STAGES, 3, 7, 40)
    assert paces.of(Stage.WHERE) == paces.of(Stage.WHAT) == 10
    assert left(STAGES, 15, [paces]) == 50
    paces.saw(STAGES, 0, 2, 2)
    assert (paces.of(Stage.WHAT), paces.of(Stage.WHERE), paces.of(Stage.JOINT)) == (1, 10, None)
    assert left(STAGES, 0, [Paces(), paces]) == 10 * 1 + 10 * 10
    assert left(STAGES, 20, []) == 0
    both = Paces()
    both.add(paces)
    both.saw(STAGES, 10, 12, 6)
    assert (both.of(Stage.WHAT), both.total, paces.total) == (2, 48, 42)
