"""What a digit and a number may be combined to. Light: the config check needs it before torch is imported."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Operation:
    """A function of two digits, its values numbered as classes.

    Attributes:
        name: "sum" or "product".
        apply: gives the value of a digit and a number, each 0 to 9.
    """

    name: str
    apply: Callable[[int, int], int]

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The values that occur, in order: value of each class."""
        return tuple(sorted({self.apply(digit, number) for digit in range(10) for number in range(10)}))

    @cached_property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """Class of each digit (rows) with each number (columns), 10 x 10."""
        return tuple(tuple(self.values.index(self.apply(d, n)) for n in range(10)) for d in range(10))


OPERATIONS = {
    "sum": Operation("sum", operator.add),  # 0 to 18: the 19 classes of document 003
    "product": Operation("product", operator.mul),  # 37 of the numbers 0 to 81 (document 004 names no classes)
}
