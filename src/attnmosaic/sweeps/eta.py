"""Estimates the time left from the seconds that epochs took."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from attnmosaic.config.schedule import Schedule, Stage


@lru_cache(maxsize=1024)
def epochs_by_stage(schedule: Schedule, begin: int, end: int) -> Counter[Stage]:
    """Returns how many of the epochs from ``begin`` up to and without ``end`` belong to each kind of stage."""
    return Counter(schedule.stage(epoch) for epoch in range(begin, end))


class Paces:
    """Seconds an epoch takes by who learns in it, as far as that was seen.

    Epochs are often seen several at a time. What was seen of one kind of stage alone is taken for that kind; of a kind
    that was only ever seen among others, the mean over all of these.
    """

    def __init__(self) -> None:
        self._seen: dict[frozenset[Stage], tuple[int, float]] = {}

    def saw(self, schedule: Schedule, begin: int, end: int, seconds: float) -> None:
        """Adds the epochs from ``begin`` up to and without ``end``, which took so many seconds in all."""
        kinds = frozenset(epochs_by_stage(schedule, begin, end))
        self._add(kinds, end - begin, seconds)

    def add(self, other: "Paces") -> None:
        """Adds all that another has seen."""
        for kinds, (epochs, seconds) in other._seen.items():
            self._add(kinds, epochs, seconds)

    def _add(self, kinds: frozenset[Stage], epochs: int, seconds: float) -> None:
        before = self._seen.get(kinds, (0, 0.0))
        self._seen[kinds] = (before[0] + epochs, before[1] + seconds)

    def of(self, stage: Stage) -> float | None:
        """Returns the seconds of an epoch of that kind; None if none was seen."""
        alone = self._seen.get(frozenset({stage}))
        seen = [alone] if alone else [held for kinds, held in self._seen.items() if stage in kinds]
        epochs = sum(n for n, _ in seen)
        return sum(seconds for _, seconds in seen) / epochs if epochs else None

    @property
    def total(self) -> float:
        """Seconds of all epochs that were seen."""
        return sum(seconds for _, seconds in self._seen.values())


def left(schedule: Schedule, done: int, paces: Iterable[Paces]) -> float | None:
    """Returns the seconds that a run still takes, or None while that cannot be told.

    Args:
        schedule: the run's.
        done: epochs it has done.
        paces: the first of these that knows a kind of stage is believed: the run's own, say, then those of others.
    """
    known = [*paces]
    seconds = 0.0
    for stage, epochs in epochs_by_stage(schedule, done, schedule.epochs).items():
        each = next((found for pace in known if (found := pace.of(stage)) is not None), None)
        if each is None:
            return None
        seconds += epochs * each
    return seconds
