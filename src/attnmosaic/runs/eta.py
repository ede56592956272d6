"""Estimates a run's remaining time from the durations of its finished epochs."""

from collections import Counter, defaultdict
from functools import lru_cache

from attnmosaic.config.schedule import Schedule, Stage


@lru_cache(maxsize=1024)
def epochs_by_stage(schedule: Schedule, begin: int, end: int) -> Counter[Stage]:
    """Counts the epochs of each stage from ``begin`` up to, but not including, ``end``."""
    return Counter(schedule.stage(epoch) for epoch in range(begin, end))


class EpochTimes:
    """Number and total duration of finished epochs, by stage: epochs of What and of Where differ in duration."""

    def __init__(self) -> None:
        self.epochs: Counter[Stage] = Counter()
        self.seconds: defaultdict[Stage, float] = defaultdict(float)

    def add(self, schedule: Schedule, begin: int, end: int, seconds: float) -> None:
        """Adds the epochs from ``begin`` up to, but not including, ``end``.

        Args:
            schedule: the run's schedule.
            begin: index of the first epoch, from 0.
            end: index after the last epoch.
            seconds: duration of all these epochs together; it is divided equally among them, whatever their stage.
        """
        for stage, epochs in epochs_by_stage(schedule, begin, end).items():
            self.epochs[stage] += epochs
            self.seconds[stage] += seconds * epochs / (end - begin)

    def add_all(self, other: "EpochTimes") -> None:
        """Adds all epochs of another `EpochTimes`."""
        for stage, epochs in other.epochs.items():
            self.epochs[stage] += epochs
            self.seconds[stage] += other.seconds[stage]

    @property
    def total(self) -> float:
        """Duration of all epochs in seconds."""
        return sum(self.seconds.values())


def time_left(schedule: Schedule, done: int, *times: EpochTimes) -> tuple[float, set[Stage]]:
    """Estimates a run's remaining time in seconds.

    Args:
        schedule: the run's schedule.
        done: number of finished epochs.
        *times: measured durations by priority, for example the run's own, then those of other runs. A stage's epochs
            are estimated from the first of these that has measured the stage.

    Returns:
        The remaining seconds of all stages with a measured duration, and the remaining stages without one.
    """
    seconds, unknown = 0.0, set[Stage]()
    for stage, epochs in epochs_by_stage(schedule, done, schedule.epochs).items():
        known = next((each for each in times if each.epochs[stage]), None)
        if known is None:
            unknown.add(stage)
        else:
            seconds += epochs * known.seconds[stage] / known.epochs[stage]
    return seconds, unknown
