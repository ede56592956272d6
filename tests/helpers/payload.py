"""Stands in for what somebody hides in a checkpoint: tests look whether it was imported."""

from typing import Any

from attnmosaic.nn.networks import MLP
from attnmosaic.nn.two_outputs import SumNet

CALLED: list[str] = []


class Network(MLP):
    """Does what MLP does, and tells that it was made."""

    def __init__(self, in_shape: Any, outputs: int, hidden: Any) -> None:
        CALLED.append("Network")
        super().__init__(in_shape, outputs, hidden)


class Numbers(SumNet):
    """Does what SumNet does, and tells that it was made."""

    def __init__(self, in_shape: Any, outputs: int, dropout: float) -> None:
        CALLED.append("Numbers")
        super().__init__(in_shape, outputs, dropout)
