"""Estimates the time that a run still takes from the seconds that its epochs took."""

from collections import Counter, defaultdict
from functools import lru_cache

from attnmosaic.config.schedule import Schedule, Stage


@lru_cache(maxsize=1024)
def epochs_by_stage(schedule: Schedule, begin: int, end: int) -> Counter[Stage]:
    """Returns how many of the epochs from ``begin`` up to and without ``end`` belong to each stage."""
    return Counter(schedule.stage(epoch) for epoch in range(begin, end))


class EpochTimes:
    """Seconds per epoch of each stage, that is by the networks that learn in it."""

    def __init__(self) -> None:
        self.epochs: Counter[Stage] = Counter()
        self.seconds: defaultdict[Stage, float] = defaultdict(float)

    def add(self, schedule: Schedule, begin: int, end: int, seconds: float) -> None:
        """Adds the epochs from ``begin`` up to and without ``end``, which took so many seconds together.

        Where they are of several stages, each is taken to have lasted as long as the others.
        """
        for stage, epochs in epochs_by_stage(schedule, begin, end).items():
            self.epochs[stage] += epochs
            self.seconds[stage] += seconds * epochs / (end - begin)

    def add_all(self, other: "EpochTimes") -> None:
        """Adds all epochs that another has."""
        for stage, epochs in other.epochs.items():
            self.epochs[stage] += epochs
            self.seconds[stage] += other.seconds[stage]

    @property
    def total(self) -> float:
        """Seconds of all epochs."""
        return sum(self.seconds.values())


def time_left(schedule: Schedule, done: int, *times: EpochTimes) -> tuple[float, set[Stage]]:
    """Estimates the seconds that a run still takes.

    Args:
        schedule: the run's.
        done: epochs it has done.
        *times: for each stage the first that has epochs of it counts: the run's own, say, then those of other runs.

    Returns:
        The seconds of all epochs left whose stage is known, and the stages that are not.
    """
    seconds, unknown = 0.0, set[Stage]()
    for stage, epochs in epochs_by_stage(schedule, done, schedule.epochs).items():
        known = next((each for each in times if each.epochs[stage]), None)
        if known is None:
            unknown.add(stage)
        else:
            seconds += epochs * known.seconds[stage] / known.epochs[stage]
    return seconds, unknown
