"""The states of a sweep's jobs, how far they are by their folders, and how long the sweep will take."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attnmosaic.config.schedule import Schedule
from attnmosaic.runs.run import CONFIG, METRICS_CSV, RESULT
from attnmosaic.sweeps.monitor import FAILED, LEFT, Job, Monitor

STAGES = Schedule("what_then_where", 5, 20)
JOINT = Schedule("joint", 5, 20)
METRICS = {"train/accuracy": 0.96, "test/accuracy": 0.8341, "held_out/accuracy": 0.9999}


class Sweep:
    """Folders as a sweep's jobs leave them, a clock, and what was reported."""

    def __init__(self, folder: Path, *jobs: tuple[str, Schedule]) -> None:
        self.now = 1000.0
        self.reported: list[str] = []
        self.folder = folder
        self.jobs = [Job(name, f"{name} seed 0", folder / name, schedule) for name, schedule in jobs]
        for job in self.jobs:
            job.folder.mkdir(parents=True, exist_ok=True)

    def watch(self) -> Monitor:
        return Monitor(
            self.jobs, lambda job, text: self.reported.append(f"{job.state} {job.label}: {text}"), lambda: self.now
        )

    def epochs(self, name: str, epochs: int, at: float, evaluated: str = ",") -> None:
        """Writes a table of so many epochs, as if at that time; the last one evaluated."""
        head = "epoch,stage,test/accuracy,test/focus\n"
        rows = [f"{epoch},what,," for epoch in range(1, epochs)] + [f"{epochs},what,{evaluated}"] * (epochs > 0)
        file = self.folder / name / METRICS_CSV
        file.write_text(head + "\n".join(rows))
        os.utime(file, (at, at))

    def starts(self, name: str, at: float) -> None:
        """Writes the config of a run, as if at that time."""
        config = self.folder / name / CONFIG
        config.touch()
        os.utime(config, (at, at))

    def finishes(self, name: str) -> None:
        (self.folder / name / RESULT).write_text(json.dumps({"metrics": METRICS, "seconds": 720.4}))


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Sweep]:
    return lambda *jobs: Sweep(tmp_path, *jobs)


def test_the_states_of_jobs(sweep: Callable[..., Sweep]) -> None:
    """As their launcher reports them; each end is reported once, in order."""
    jobs = sweep(*((name, STAGES) for name in ("a", "b", "c", "d", "e")))
    jobs.finishes("a")
    jobs.epochs("c", 7, at=10)
    watch = jobs.watch()
    assert jobs.reported == ["done before a seed 0: accuracy train .960 test .834 held_out 1.00"]
    assert [job.completed for job in jobs.jobs] == [20, 0, 7, 0, 0]
    assert not watch.begun
    for number in range(4):
        watch.began(number)
    assert watch.begun
    watch.ended(0, None)
    jobs.finishes("b")
    watch.poll()
    assert watch.counts == {"done before": 1, "running": 3, "waiting": 1}
    watch.ended(1, None)
    watch.ended(3, "its process was killed")
    watch.skipped(4)
    jobs.epochs("c", 9, at=1100, evaluated="0.5,0.25")
    watch.close()
    assert jobs.reported[1:] == [
        "done b seed 0: accuracy train .960 test .834 held_out 1.00, 12 min",
        "failed d seed 0: its process was killed",
        "skipped e seed 0: another process is running it",
        "stopped c seed 0: after epoch 9 of 20",
    ]
    assert jobs.jobs[2].evaluated == {"accuracy": 0.5, "focus": 0.25}


def test_a_result_does_not_hide_a_failure(sweep: Callable[..., Sweep]) -> None:
    """As where the folder holds a run with other settings."""
    jobs = sweep(("a", STAGES))
    jobs.finishes("a")
    watch = jobs.watch()
    watch.began(0)
    watch.ended(0, "holds a run with other settings")
    assert jobs.reported[1:] == ["failed a seed 0: holds a run with other settings"]


def test_jobs_that_continue_without_this_process(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", JOINT), ("b", JOINT))
    watch = jobs.watch()
    watch.began(0)
    watch.close(LEFT)
    watch.close()
    assert jobs.reported == ["left at work a seed 0: after epoch 0 of 20"]


def test_a_trial_that_failed_before(sweep: Callable[..., Sweep]) -> None:
    """A search begins it again."""
    jobs = sweep(("a", JOINT))
    jobs.jobs[0].state = FAILED
    watch = jobs.watch()
    watch.began(0)
    watch.ended(0, None)
    assert jobs.reported == ["done a seed 0: "]


def test_what_a_job_does(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", STAGES), ("b", JOINT))
    (job, joint), watch = jobs.jobs, jobs.watch()
    watch.began(0)
    watch.began(1)
    assert job.doing == "preparing"
    for epochs, doing in ((0, "what"), (4, "what"), (5, "where"), (10, "what"), (20, "measuring")):
        jobs.epochs("a", epochs, at=1000 + epochs)
        watch.poll()
        assert (job.epochs, job.doing) == (epochs, doing)
    jobs.epochs("b", 1, at=1000)
    watch.poll()
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
    watch.poll()
    assert jobs.jobs[0].evaluated == {"accuracy": 0.5, "focus": 0.25}


def test_the_time_left(sweep: Callable[..., Sweep]) -> None:
    """Unknown until every kind of stage was seen; then by each kind's pace, and no less than the slowest job."""
    jobs = sweep(("a", STAGES), ("b", STAGES), ("c", STAGES))
    watch = jobs.watch()
    assert watch.left is None
    watch.began(0)
    for epochs, at in ((0, 2000), (2, 2002), (4, 2004), (5, 2005)):  # What: a second
        jobs.epochs("a", epochs, at=at)
        watch.poll()
    assert watch.left is None  # Where was not seen
    jobs.epochs("a", 7, at=2025)  # ten seconds
    watch.poll()
    # a: 3 Where, 5 What, 5 Where; the others: 10 of each.
    assert watch.left == pytest.approx(85 + 2 * 110)
    watch.began(1)
    watch.poll()
    assert watch.left == pytest.approx((85 + 2 * 110) / 2)
    watch.began(2)
    watch.poll()
    assert watch.left == pytest.approx(110)  # three at once, but none of them faster
    watch.ended(1, "it failed")
    watch.ended(2, "it failed")
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
        watch.poll()
    assert watch.left == pytest.approx(20)
    jobs.now = 1035
    watch.ended(0, None)
    assert watch.left == pytest.approx(20 + 15)


def test_the_time_between_two_starts_is_no_epochs(sweep: Callable[..., Sweep]) -> None:
    """A job resumes a run of a day ago; then it is put back into a queue, and an epoch ends before the next poll."""
    jobs = sweep(("a", JOINT))
    jobs.epochs("a", 4, at=10)
    watch = jobs.watch()
    watch.began(0)
    jobs.starts("a", at=900)
    watch.poll()
    assert (watch.left, jobs.jobs[0].doing) == (None, "preparing")
    for started, epochs, at in ((900, 4, 1000), (900, 6, 1006), (90_000, 8, 90_006), (90_000, 10, 90_012)):
        jobs.starts("a", at=started)
        jobs.epochs("a", epochs, at=at)
        watch.poll()
    assert watch.left == pytest.approx(10 * 3)
