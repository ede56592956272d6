"""Which network learns in which epoch: a pure function of the epoch, so a resumed run cannot get it wrong.

Light: the config check uses it before torch is imported.
"""

from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """Who learns; the numbers are those of the ``stage`` scalar in the logs."""

    WHAT = 0
    WHERE = 1
    JOINT = 2

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the networks that learn."""
        return ("what", "where") if self is Stage.JOINT else (self.name.lower(),)


ORDERS: dict[str, tuple[Stage, ...]] = {
    "what_then_where": (Stage.WHAT, Stage.WHERE),
    "where_then_what": (Stage.WHERE, Stage.WHAT),
    "joint": (Stage.JOINT,),
    "what_only": (Stage.WHAT,),
}


@dataclass(frozen=True)
class Schedule:
    """Stages of k epochs each, repeated in order until the epochs are used up.

    With ``what_then_where`` What learns while ``epoch % 2k < k``, else Where (``protocol.md``; the authors'
    script idled at ``epoch % 2k == k``, this one does not).

    Attributes:
        order: a key of `ORDERS`.
        k: epochs a stage.
        epochs: epochs in all; the last stage is cut short where they end.
    """

    order: str
    k: int
    epochs: int

    def stage(self, epoch: int) -> Stage:
        """Returns the stage of an epoch, counted from 0."""
        stages = ORDERS[self.order]
        return stages[epoch // self.k % len(stages)]

    @property
    def cycle(self) -> int:
        """Epochs until the order starts over."""
        return self.k * len(ORDERS[self.order])
