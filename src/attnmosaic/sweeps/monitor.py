"""Follows the jobs of a sweep: their launcher reports their begins and ends, their folders how far they are."""

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnmosaic.config.schedule import Schedule
from attnmosaic.core.text import format_duration, format_fraction, without_accuracy
from attnmosaic.runs.discovery import last_written
from attnmosaic.runs.eta import EpochTimes, time_left
from attnmosaic.runs.run import CONFIG, METRICS_CSV, Run

WAITING, RUNNING = "waiting", "running"
BEFORE, DONE, FAILED, STOPPED = "done before", "done", "failed", "stopped"
SKIPPED, LEFT, PRUNED = "skipped", "left at work", "pruned"


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        name: its experiment.
        label: its name in the display: the experiment, the seed, and whatever else is varied.
        folder: its run's folder.
        schedule: its epochs.
        metric: the metric that its result is reported with.
        headline: the metrics that its progress is reported with.
        network: whether it trains one network and no pair.
        state: `WAITING`, `RUNNING`, `BEFORE` (had finished when the sweep began), `DONE`, `FAILED`, `STOPPED`,
            `SKIPPED` (another process was running it), `LEFT` (continues without this process) or `PRUNED` (ended
            early by a search).
        epochs: how many it has done.
        evaluated: its headline metrics on the test split when it was last evaluated.
        preparing: whether its present start has not written ``metrics.csv`` yet.
        times: how long its epochs take.
        began, took: when it began, and seconds from there to its end.
    """

    name: str
    label: str
    folder: Path
    schedule: Schedule
    metric: str = "accuracy"
    headline: tuple[str, ...] = ("accuracy", "focus")
    network: bool = False
    state: str = WAITING
    epochs: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    preparing: bool = True
    times: EpochTimes = field(default_factory=EpochTimes)
    began: float | None = None
    took: float | None = None
    _written: float = 0

    @property
    def over(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    @property
    def completed(self) -> int:
        """Epochs that count as completed: all of them once the job is over."""
        return self.schedule.epochs if self.over else min(self.epochs, self.schedule.epochs)

    @property
    def doing(self) -> str:
        """The networks that learn in its present epoch, or its work before the first and after the last epoch."""
        if self.preparing:
            return "preparing"
        if self.epochs >= self.schedule.epochs:
            return "measuring"
        return "network" if self.network else "+".join(self.schedule.stage(self.epochs).learners)

    def read(self) -> None:
        """Reads its progress from its folder."""
        started, written = last_written(self.folder / CONFIG), last_written(self.folder / METRICS_CSV)
        self.preparing = written <= started
        if written == self._written:
            return
        run = Run(self.folder)
        if self._written > started and run.epochs_done > self.epochs:  # else the time between two starts would count
            self.times.add(self.schedule, self.epochs, run.epochs_done, written - self._written)
        self._written, self.epochs = written, run.epochs_done
        row = run.latest(f"test/{self.headline[0]}")
        with contextlib.suppress(KeyError, ValueError):  # not yet evaluated, or not our table
            self.evaluated = {name: float(row[f"test/{name}"]) for name in self.headline}


class Monitor:
    """Keeps the states of a sweep's jobs. Its methods may be called from any thread.

    Args:
        jobs: in the order of their numbers.
        report: is given each job that has ended and what to report beside its state, in the order of their ends.
        clock: returns the time.

    Attributes:
        begun: whether any job was begun, one that had finished before included.
    """

    def __init__(
        self, jobs: Sequence[Job], report: Callable[[Job, str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.jobs = jobs
        self.begun = False
        self._report = report
        self._clock = clock
        self._lock = threading.RLock()
        self._start = clock()
        self._at_once = 1
        for job in jobs:
            job.read()
            if not job.over and Run(job.folder).state == "finished":
                self._end(job, BEFORE, _result(job))

    def poll(self) -> None:
        """Reads the folders of the jobs at work."""
        with self._lock:
            for job in self.jobs:
                if job.state == RUNNING:
                    job.read()

    def began(self, number: int) -> None:
        """Records that a job has begun."""
        with self._lock:
            self.begun = True
            job = self.jobs[number]
            if job.state not in (BEFORE, DONE, RUNNING):  # a search begins its failed trials again
                job.state, job.began = RUNNING, self._clock()
                self._at_once = max(self._at_once, self.counts[RUNNING])

    def ended(self, number: int, reason: str | None) -> None:
        """Records that a job has ended.

        Args:
            number: its number.
            reason: why it failed; None if it did not.
        """
        with self._lock:
            job = self.jobs[number]
            if reason is not None:
                self._end(job, FAILED, reason)
            elif not job.over:
                job.read()
                pruned = Run(job.folder).state == "pruned"
                self._end(job, *((PRUNED, _epochs(job)) if pruned else (DONE, _result(job))))

    def skipped(self, number: int) -> None:
        """Records that a job was left to another process."""
        with self._lock:
            if not self.jobs[number].over:
                self._end(self.jobs[number], SKIPPED, "another process is running it")

    def close(self, state: str = STOPPED) -> None:
        """Gives the jobs at work a last state: `STOPPED`, or `LEFT` where they continue without this process."""
        with self._lock:
            self.poll()
            for job in self.jobs:
                if job.state == RUNNING:
                    self._end(job, state, _epochs(job))

    def _end(self, job: Job, state: str, text: str) -> None:
        job.state = state
        job.took = None if job.began is None else self._clock() - job.began
        self._report(job, text)

    @property
    def counts(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(job.state for job in self.jobs)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began."""
        return self._clock() - self._start

    @property
    def left(self) -> float | None:
        """Seconds that the sweep still takes; None while the epochs of some stage have not been observed.

        A job's own epochs count first, then those of the same experiment, then those of all jobs.
        """
        with self._lock:
            everyone, alike = EpochTimes(), {job.name: EpochTimes() for job in self.jobs}
            for job in self.jobs:
                everyone.add_all(job.times)
                alike[job.name].add_all(job.times)
            took = [max(0.0, job.took - job.times.total) for job in self.jobs if job.took]
            overhead = statistics.fmean(took or [0.0])  # beside the epochs, of jobs that have ended
            seconds = []
            for job in (job for job in self.jobs if not job.over):
                more, unknown = time_left(job.schedule, job.epochs, job.times, alike[job.name], everyone)
                if unknown:
                    return None
                seconds.append(more + overhead * (job.state == WAITING))
            return max([*seconds, sum(seconds) / self._at_once], default=0.0)


def _epochs(job: Job) -> str:
    return f"after epoch {job.epochs} of {job.schedule.epochs}"


def _result(job: Job) -> str:
    """Returns the report of a finished job: its metric on each split and, if it trained now, its duration."""
    result = Run(job.folder).result or {}
    found = {split: result.get("metrics", {}).get(f"{split}/{job.metric}") for split in ("train", "test", "held_out")}
    values = [f"{split} {format_fraction(value)}" for split, value in found.items() if value is not None]
    seconds = result.get("seconds")
    duration = f", {format_duration(seconds)}" if seconds is not None and job.began is not None else ""
    return " ".join([without_accuracy(job.metric), *values]) + duration if values else ""
