"""States and progress of a sweep's jobs, and the estimated time left of the sweep."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attnmosaic.config.schedule import Schedule
from attnmosaic.runs.run import CONFIG, METRICS_CSV, RESULT
from attnmosaic.sweeps.monitor import FAILED, LEFT_RUNNING, Job, Monitor

STAGES = Schedule("what_then_where", 5, 20)
JOINT = Schedule("joint", 5, 20)
METRICS = {"train/accuracy": 0.96, "test/accuracy": 0.8341, "held_out/accuracy": 0.9999}


class Sweep:
    """Folders of a sweep's jobs, a clock, and the lines that the monitor reported."""

    def __init__(self, folder: Path, *jobs: tuple[str, Schedule]) -> None:
        self.now = 1000.0
        self.reported: list[str] = []
        self.folder = folder
        self.jobs = [Job(name, f"{name} seed 0", folder / name, schedule) for name, schedule in jobs]
        for job in self.jobs:
            job.folder.mkdir(parents=True, exist_ok=True)

    def monitor(self) -> Monitor:
        return Monitor(
            self.jobs, lambda job, text: self.reported.append(f"{job.state} {job.label}: {text}"), lambda: self.now
        )

    def epochs(self, name: str, epochs: int, at: float, evaluated: str = ",") -> None:
        """Writes a table of ``epochs`` epochs, of which the last is evaluated, with the file time ``at``."""
        head = "epoch,stage,test/accuracy,test/focus\n"
        rows = [f"{epoch},what,," for epoch in range(1, epochs)] + [f"{epochs},what,{evaluated}"] * (epochs > 0)
        file = self.folder / name / METRICS_CSV
        file.write_text(head + "\n".join(rows))
        os.utime(file, (at, at))

    def starts(self, name: str, at: float) -> None:
        """Writes the config of a run with the file time ``at``."""
        config = self.folder / name / CONFIG
        config.touch()
        os.utime(config, (at, at))

    def finishes(self, name: str) -> None:
        (self.folder / name / RESULT).write_text(json.dumps({"metrics": METRICS, "seconds": 720.4}))


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Sweep]:
    return lambda *jobs: Sweep(tmp_path, *jobs)


def test_states_of_jobs(sweep: Callable[..., Sweep]) -> None:
    """Each end of a job is reported once, in the order of the ends."""
    jobs = sweep(*((name, STAGES) for name in ("a", "b", "c", "d", "e")))
    jobs.finishes("a")
    jobs.epochs("c", 7, at=10)
    monitor = jobs.monitor()
    assert jobs.reported == ["done before a seed 0: accuracy train .960 test .834 held_out 1.00"]
    assert [job.completed for job in jobs.jobs] == [20, 0, 7, 0, 0]
    assert not monitor.begun
    for number in range(4):
        monitor.began(number)
    assert monitor.begun
    monitor.ended(0, None)
    jobs.finishes("b")
    monitor.poll()
    assert monitor.counts == {"done before": 1, "running": 3, "waiting": 1}
    monitor.ended(1, None)
    monitor.ended(3, "its process was killed")
    monitor.skipped(4)
    jobs.epochs("c", 9, at=1100, evaluated="0.5,0.25")
    monitor.close()
    assert jobs.reported[1:] == [
        "done b seed 0: accuracy train .960 test .834 held_out 1.00, 12 min",
        "failed d seed 0: its process was killed",
        "skipped e seed 0: another process is running it",
        "stopped c seed 0: after epoch 9 of 20",
    ]
    assert jobs.jobs[2].evaluated == {"accuracy": 0.5, "focus": 0.25}


def test_result_of_earlier_run_does_not_hide_a_failure(sweep: Callable[..., Sweep]) -> None:
    """For example when the folder holds a run with other settings."""
    jobs = sweep(("a", STAGES))
    jobs.finishes("a")
    monitor = jobs.monitor()
    monitor.began(0)
    monitor.ended(0, "holds a run with other settings")
    assert jobs.reported[1:] == ["failed a seed 0: holds a run with other settings"]


def test_jobs_that_continue_without_this_process(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", JOINT), ("b", JOINT))
    monitor = jobs.monitor()
    monitor.began(0)
    monitor.close(LEFT_RUNNING)
    monitor.close()
    assert jobs.reported == ["left running a seed 0: after epoch 0 of 20"]


def test_failed_trial_can_begin_again(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", JOINT))
    jobs.jobs[0].state = FAILED
    monitor = jobs.monitor()
    monitor.began(0)
    monitor.ended(0, None)
    assert jobs.reported == ["done a seed 0: "]


def test_activity_of_a_job(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", STAGES), ("b", JOINT))
    (job, joint), monitor = jobs.jobs, jobs.monitor()
    monitor.began(0)
    monitor.began(1)
    assert job.activity == "preparing"
    for epochs, activity in ((0, "what"), (4, "what"), (5, "where"), (10, "what"), (20, "measuring")):
        jobs.epochs("a", epochs, at=1000 + epochs)
        monitor.poll()
        assert (job.epochs, job.activity) == (epochs, activity)
    jobs.epochs("b", 1, at=1000)
    monitor.poll()
    assert joint.activity == "what+where"
    joint.network = True
    assert joint.activity == "network"


def test_incomplete_row_is_ignored(sweep: Callable[..., Sweep]) -> None:
    jobs = sweep(("a", STAGES))
    monitor = jobs.monitor()
    monitor.began(0)
    jobs.epochs("a", 5, at=1000, evaluated="0.5,0.25")
    with (jobs.folder / "a" / METRICS_CSV).open("a") as file:
        file.write("\n6,where,0.9")
    monitor.poll()
    assert jobs.jobs[0].evaluated == {"accuracy": 0.5, "focus": 0.25}


def test_time_left(sweep: Callable[..., Sweep]) -> None:
    """Unknown until each stage was timed; then it follows from the stages' times and is at least the slowest job's."""
    jobs = sweep(("a", STAGES), ("b", STAGES), ("c", STAGES))
    monitor = jobs.monitor()
    assert monitor.seconds_left is None
    monitor.began(0)
    for epochs, at in ((0, 2000), (2, 2002), (4, 2004), (5, 2005)):  # an epoch of What takes one second
        jobs.epochs("a", epochs, at=at)
        monitor.poll()
    assert monitor.seconds_left is None  # no epoch of Where was timed
    jobs.epochs("a", 7, at=2025)  # an epoch of Where takes ten seconds
    monitor.poll()
    # Job a still has 3 Where, 5 What and 5 Where; the other jobs have 10 of each.
    assert monitor.seconds_left == pytest.approx(85 + 2 * 110)
    monitor.began(1)
    monitor.poll()
    assert monitor.seconds_left == pytest.approx((85 + 2 * 110) / 2)
    monitor.began(2)
    monitor.poll()
    assert monitor.seconds_left == pytest.approx(110)  # three jobs run in parallel, but each needs this time
    monitor.ended(1, "it failed")
    monitor.ended(2, "it failed")
    assert monitor.seconds_left == pytest.approx(85)
    monitor.ended(0, None)
    assert monitor.seconds_left == 0


def test_time_left_includes_work_outside_epochs(sweep: Callable[..., Sweep]) -> None:
    """It is measured on jobs that have ended, and added for jobs that have not begun."""
    jobs = sweep(("a", JOINT), ("b", JOINT))
    monitor = jobs.monitor()
    monitor.began(0)
    for epochs, at in ((0, 1010), (20, 1030)):
        jobs.epochs("a", epochs, at=at)
        monitor.poll()
    assert monitor.seconds_left == pytest.approx(20)
    jobs.now = 1035
    monitor.ended(0, None)
    assert monitor.seconds_left == pytest.approx(20 + 15)


def test_time_between_two_starts_does_not_count_as_epochs(sweep: Callable[..., Sweep]) -> None:
    """A job resumes an old run; then it is requeued, and an epoch ends before the next poll."""
    jobs = sweep(("a", JOINT))
    jobs.epochs("a", 4, at=10)
    monitor = jobs.monitor()
    monitor.began(0)
    jobs.starts("a", at=900)
    monitor.poll()
    assert (monitor.seconds_left, jobs.jobs[0].activity) == (None, "preparing")
    for started, epochs, at in ((900, 4, 1000), (900, 6, 1006), (90_000, 8, 90_006), (90_000, 10, 90_012)):
        jobs.starts("a", at=started)
        jobs.epochs("a", epochs, at=at)
        monitor.poll()
    assert monitor.seconds_left == pytest.approx(10 * 3)
