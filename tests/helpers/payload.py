"""Stand-in for untrusted code named in a checkpoint; tests check that this module is not imported."""

from typing import Any

from attnmosaic.nn.networks import MLP
from attnmosaic.nn.two_outputs import SumNet

CALLED: list[str] = []


class Network(MLP):
    """An MLP that records its instantiation in `CALLED`."""

    def __init__(self, in_shape: Any, outputs: int, hidden: Any) -> None:
        CALLED.append("Network")
        super().__init__(in_shape, outputs, hidden)


class Numbers(SumNet):
    """A SumNet that records its instantiation in `CALLED`."""

    def __init__(self, in_shape: Any, outputs: int, dropout: float) -> None:
        CALLED.append("Numbers")
        super().__init__(in_shape, outputs, dropout)
