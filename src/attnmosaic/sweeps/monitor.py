"""Monitors the jobs of a sweep: their launcher reports begins and ends, their runs' folders show the progress."""

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
DONE_BEFORE, DONE, FAILED, STOPPED = "done before", "done", "failed", "stopped"
SKIPPED, LEFT_RUNNING, PRUNED = "skipped", "left running", "pruned"


@dataclass
class Job:
    """The state and the progress of one job of a sweep.

    Attributes:
        name: name of the experiment.
        label: the job's name in the display: its experiment, its seed and its values of the other swept keys.
        folder: folder of the job's run.
        schedule: the run's schedule.
        metric: name of the metric in the line that reports the job's result.
        headline: names of the metrics that are displayed while the job runs.
        network: whether the job trains a single network instead of a pair.
        state: `WAITING`, `RUNNING`, `DONE_BEFORE` (finished before the sweep began), `DONE`, `FAILED`, `STOPPED`,
            `SKIPPED` (another process was running it), `LEFT_RUNNING` (continues without this process) or `PRUNED`
            (ended early by a search).
        epochs: number of epochs done.
        evaluated: values of the headline metrics on the test split, from the last evaluation.
        preparing: whether the job has not yet written ``metrics.csv`` since its last start.
        times: durations of the job's epochs.
        began: time when the job began.
        duration: seconds from the job's begin to its end.
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
    duration: float | None = None
    _written: float = 0

    @property
    def over(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    @property
    def completed(self) -> int:
        """Number of epochs that the display counts as completed: all of them once the job is over."""
        return self.schedule.epochs if self.over else min(self.epochs, self.schedule.epochs)

    @property
    def activity(self) -> str:
        """The networks that train in the current epoch; before the first epoch and after the last: the job's work."""
        if self.preparing:
            return "preparing"
        if self.epochs >= self.schedule.epochs:
            return "measuring"
        return "network" if self.network else "+".join(self.schedule.stage(self.epochs).training_networks)

    def read(self) -> None:
        """Reads the job's progress from its folder."""
        started, written = last_written(self.folder / CONFIG), last_written(self.folder / METRICS_CSV)
        self.preparing = written <= started
        if written == self._written:
            return
        run = Run(self.folder)
        # Otherwise the times of epochs would include the time between two starts of the job.
        if self._written > started and run.epochs_done > self.epochs:
            self.times.add(self.schedule, self.epochs, run.epochs_done, written - self._written)
        self._written, self.epochs = written, run.epochs_done
        row = run.latest(f"test/{self.headline[0]}")
        with contextlib.suppress(KeyError, ValueError):  # not yet evaluated, or a table from another program
            self.evaluated = {name: float(row[f"test/{name}"]) for name in self.headline}


class Monitor:
    """Keeps the states of a sweep's jobs. Its methods can be called from any thread.

    Args:
        jobs: the jobs, in the order of their numbers.
        report: called when a job ends, with the job and the text that follows its state and label.
        clock: returns the current time in seconds.

    Attributes:
        begun: whether any job has begun, including jobs that had finished before the sweep.
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
        self._most_running = 1
        for job in jobs:
            job.read()
            if not job.over and Run(job.folder).state == "finished":
                self._end(job, DONE_BEFORE, _result(job))

    def poll(self) -> None:
        """Updates the progress of all running jobs from the files in their folders."""
        with self._lock:
            for job in self.jobs:
                if job.state == RUNNING:
                    job.read()

    def began(self, number: int) -> None:
        """Records that a job has begun."""
        with self._lock:
            self.begun = True
            job = self.jobs[number]
            if job.state not in (DONE_BEFORE, DONE, RUNNING):  # a search begins its failed trials again
                job.state, job.began = RUNNING, self._clock()
                self._most_running = max(self._most_running, self.counts[RUNNING])

    def ended(self, number: int, reason: str | None) -> None:
        """Records that a job has ended.

        Args:
            number: number of the job.
            reason: why the job failed; None if it did not fail.
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
        """Records that a job was skipped because another process is running it."""
        with self._lock:
            if not self.jobs[number].over:
                self._end(self.jobs[number], SKIPPED, "another process is running it")

    def close(self, state: str = STOPPED) -> None:
        """Sets the final state of running jobs: `STOPPED`, or `LEFT_RUNNING` if they continue without this process."""
        with self._lock:
            self.poll()
            for job in self.jobs:
                if job.state == RUNNING:
                    self._end(job, state, _epochs(job))

    def _end(self, job: Job, state: str, text: str) -> None:
        job.state = state
        job.duration = None if job.began is None else self._clock() - job.began
        self._report(job, text)

    @property
    def counts(self) -> Counter[str]:
        """Number of jobs in each state."""
        return Counter(job.state for job in self.jobs)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began."""
        return self._clock() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the sweep ends; None as long as no epoch of some stage has been timed.

        The estimate for a job uses the times of the job's own epochs; if they do not include a stage, the times of the
        same experiment's jobs; then the times of all jobs.
        """
        with self._lock:
            all_times, times_by_name = EpochTimes(), {job.name: EpochTimes() for job in self.jobs}
            for job in self.jobs:
                all_times.add_all(job.times)
                times_by_name[job.name].add_all(job.times)
            # Time that ended jobs spent outside their epochs, for example on imports and figures.
            overheads = [max(0.0, job.duration - job.times.total) for job in self.jobs if job.duration]
            overhead = statistics.fmean(overheads or [0.0])
            seconds = []
            for job in (job for job in self.jobs if not job.over):
                training, unknown = time_left(job.schedule, job.epochs, job.times, times_by_name[job.name], all_times)
                if unknown:
                    return None
                seconds.append(training + overhead * (job.state == WAITING))
            return max([*seconds, sum(seconds) / self._most_running], default=0.0)


def _epochs(job: Job) -> str:
    return f"after epoch {job.epochs} of {job.schedule.epochs}"


def _result(job: Job) -> str:
    """Returns a finished job's report: its metric on each split and, if the job ran in this sweep, its duration."""
    result = Run(job.folder).result or {}
    metrics = {split: result.get("metrics", {}).get(f"{split}/{job.metric}") for split in ("train", "test", "held_out")}
    values = [f"{split} {format_fraction(value)}" for split, value in metrics.items() if value is not None]
    seconds = result.get("seconds")
    duration = f", {format_duration(seconds)}" if seconds is not None and job.began is not None else ""
    return " ".join([without_accuracy(job.metric), *values]) + duration if values else ""
