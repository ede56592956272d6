"""The jobs of a sweep, watched from outside while they are at work: by what lies in their folders. Imports no torch."""

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
from attnmosaic.runs.run import CONFIG, METRICS_CSV, Run
from attnmosaic.sweeps.eta import Paces, left

WAITING, RUNNING = "waiting", "running"
BEFORE, DONE, FAILED, STOPPED = "done before", "done", "failed", "stopped"
PASSED, LEFT, PRUNED = "passed over", "left at work", "pruned"


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        name: its experiment.
        label: what tells it from the others: the experiment, the seed, and whatever else is varied.
        folder: its run's folder.
        schedule: its epochs.
        metric: what its result is told by.
        headline: what its progress is told by.
        network: whether it trains one network and no pair.
        state: `WAITING`, `RUNNING`, `BEFORE` (had finished when the sweep began), `DONE`, `FAILED`, `STOPPED`,
            `PASSED` (over to another process, which was running it), `LEFT` (goes on without this process) or
            `PRUNED` (ended early by a search).
        epochs: how many it has done.
        evaluated: its headline on the test split when it was last evaluated.
        paces: how long its epochs take.
        heard: whether this process was told that it began; then it will also be told how it ended.
        began: when it was first known to be at work.
        took: seconds from there to its end.
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
    paces: Paces = field(default_factory=Paces)
    heard: bool = False
    began: float | None = None
    took: float | None = None
    _written: float | None = None
    _since: tuple[float, int] | None = None

    @property
    def over(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    @property
    def behind(self) -> int:
        """Epochs that nobody waits for any more: all of them once it is over."""
        return self.schedule.epochs if self.over else min(self.epochs, self.schedule.epochs)

    @property
    def doing(self) -> str:
        """Which networks learn in the epoch it is in, or what it does before the first one and after the last."""
        if self._since is None:
            return "preparing"
        if self.epochs >= self.schedule.epochs:
            return "measuring"
        return "network" if self.network else "+".join(self.schedule.stage(self.epochs).learners)

    def read(self) -> None:
        """Reads how far it is."""
        run = Run(self.folder)
        try:
            written = (run.folder / METRICS_CSV).stat().st_mtime
        except OSError:  # it has not come so far
            return
        if written == self._written:
            return
        if self._since is not None and last_written(run.folder / CONFIG) > self._since[0]:
            self._since = None  # it was started again: what lay between was no epoch
        self._written, self.epochs = written, run.epochs_done
        row = run.latest(f"test/{self.headline[0]}")
        with contextlib.suppress(KeyError, ValueError):  # not a table of ours
            self.evaluated = {name: float(row[f"test/{name}"]) for name in self.headline}
        if self.began is None:  # an earlier run wrote it
            return
        if self._since is not None and self.epochs > self._since[1]:
            self.paces.saw(self.schedule, self._since[1], self.epochs, written - self._since[0])
        self._since = written, self.epochs


class Watch:
    """What becomes of a sweep's jobs. Its methods may be called from any thread.

    Args:
        jobs: in the order of their numbers.
        tell: is given each job that has ended, and what to say of it beside its state; in the order in which they end.
        clock: gives the time.

    Attributes:
        begun: whether any job has begun since, be it one that had finished before.
    """

    def __init__(
        self, jobs: Sequence[Job], tell: Callable[[Job, str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.jobs = jobs
        self.begun = False
        self._tell = tell
        self._clock = clock
        self._lock = threading.RLock()
        self._start = clock()
        self._at_once = 1
        for job in jobs:
            job.read()
            if not job.over and Run(job.folder).state == "finished":
                self._end(job, BEFORE, _result(job))

    def look(self) -> None:
        """Looks at the folders of all jobs that have not ended."""
        with self._lock:
            for job in self.jobs:
                if not job.over and not job.heard:
                    self._look_unheard(job)
                if job.state == RUNNING:
                    job.read()
            self._at_once = max(self._at_once, self.counts[RUNNING])

    def _look_unheard(self, job: Job) -> None:
        """Tells from the folder alone what becomes of a job: a launcher may run it anywhere."""
        run = Run(job.folder)
        if run.state == "running":
            self._begin(job)
        elif run.state == "finished":
            self._end(job, DONE, _result(job))
        elif job.state == RUNNING and run.state == "pruned":
            self._end(job, PRUNED, _epochs(job))
        elif job.state == RUNNING and run.state == "failed":  # and not what an earlier run failed with
            self._end(job, FAILED, " ".join((run.error or "").strip().splitlines()[-1:]))

    def began(self, number: int) -> None:
        """Notes that a job begins."""
        with self._lock:
            job = self.jobs[number]
            job.heard = self.begun = True
            if job.state not in (BEFORE, DONE):  # that it failed was another process's try
                self._begin(job)

    def ended(self, number: int, reason: str | None) -> None:
        """Notes that a job has ended.

        Args:
            number: its number.
            reason: what it failed with; None if it did not.
        """
        with self._lock:
            job = self.jobs[number]
            if reason is not None:
                self._end(job, FAILED, reason)
            elif not job.over:
                job.read()
                pruned = Run(job.folder).state == "pruned"
                self._end(job, *((PRUNED, _epochs(job)) if pruned else (DONE, _result(job))))

    def passed_over(self, number: int) -> None:
        """Notes that a job was left to another process."""
        with self._lock:
            job = self.jobs[number]
            if not job.over:
                self._end(job, PASSED, "another process is running it")

    def close(self) -> None:
        """Looks a last time; jobs that had begun and not ended are stopped ones."""
        with self._lock:
            self.look()
            self._let_go(STOPPED)

    def leave(self) -> None:
        """Notes that the jobs that are at work go on without this process."""
        with self._lock:
            self.look()
            self._let_go(LEFT)

    def _let_go(self, state: str) -> None:
        for job in self.jobs:
            if job.state == RUNNING:
                self._end(job, state, _epochs(job))

    def _begin(self, job: Job) -> None:
        self.begun = True
        if job.state != RUNNING:
            job.state, job.began = RUNNING, self._clock()

    def _end(self, job: Job, state: str, text: str) -> None:
        job.state = state
        job.took = None if job.began is None else self._clock() - job.began
        self._tell(job, text)

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
        """Seconds that the sweep will still take, or None while that cannot be told.

        A job's pace is its own as soon as it is known, then that of the same experiment's others, then that of all.
        """
        with self._lock:
            everyone, alike = Paces(), {job.name: Paces() for job in self.jobs}
            for job in self.jobs:
                everyone.add(job.paces)
                alike[job.name].add(job.paces)
            seconds = []
            for job in self.jobs:
                if job.over:
                    continue
                more = left(job.schedule, job.epochs, (job.paces, alike[job.name], everyone))
                if more is None:
                    return None
                seconds.append(more + (self._beside if job.state == WAITING else 0))
            return max([*seconds, sum(seconds) / self._at_once], default=0.0)

    @property
    def _beside(self) -> float:
        """Seconds a job takes beside its epochs: those of the jobs that have ended, on average."""
        return statistics.fmean([max(0.0, job.took - job.paces.total) for job in self.jobs if job.took] or [0.0])


def _epochs(job: Job) -> str:
    return f"after epoch {job.epochs} of {job.schedule.epochs}"


def _result(job: Job) -> str:
    """Returns what to tell of a finished job: its metric on the three splits and, if it trained now, for how long."""
    result = Run(job.folder).result or {}
    found = {split: result.get("metrics", {}).get(f"{split}/{job.metric}") for split in ("train", "test", "held_out")}
    told = [f"{split} {format_fraction(value)}" for split, value in found.items() if isinstance(value, (int, float))]
    seconds = result.get("seconds")
    took = [f", {format_duration(seconds)}"] if seconds is not None and job.began is not None else []
    return " ".join([without_accuracy(job.metric), *told]) + "".join(took) if told else ""
