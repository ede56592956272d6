"""Decides which networks train in an epoch.

The stage is a pure function of the epoch, so a resumed run needs no saved state for it.

Imports no torch, because the config check uses this module first.
"""

from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """Stage of an epoch; its number is the ``stage`` scalar in the logs."""

    WHAT = 0
    WHERE = 1
    JOINT = 2

    @property
    def training_networks(self) -> tuple[str, ...]:
        """Names of the networks that train."""
        return ("what", "where") if self is Stage.JOINT else (self.name.lower(),)


ORDERS: dict[str, tuple[Stage, ...]] = {
    "what_then_where": (Stage.WHAT, Stage.WHERE),
    "where_then_what": (Stage.WHERE, Stage.WHAT),
    "joint": (Stage.JOINT,),
    "what_only": (Stage.WHAT,),
}


@dataclass(frozen=True)
class Schedule:
    """Sequence of stages of k epochs each, repeated until the last epoch.

    With ``what_then_where``, What trains if ``epoch % 2k < k``, otherwise Where (stage-wise study, docs/sources.md).
    The script of the mosaic studies' authors trains no network if ``epoch % 2k == k``; here Where trains then.

    Attributes:
        order: a key of `ORDERS`.
        k: number of epochs in a stage.
        epochs: number of epochs of the run; the last stage can be shorter than k.
    """

    order: str
    k: int
    epochs: int

    def stage(self, epoch: int) -> Stage:
        """Returns the stage of an epoch; the first epoch is 0."""
        stages = ORDERS[self.order]
        return stages[epoch // self.k % len(stages)]

    @property
    def cycle(self) -> int:
        """Number of epochs in a cycle: one stage of each kind."""
        return self.k * len(ORDERS[self.order])
