"""Operations that combine a digit and a number. Imports no torch, because the config check uses this module first."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Operation:
    """Function of two digits whose values are classes.

    Attributes:
        name: "sum" or "product".
        apply: computes the value from a digit and a number, each from 0 to 9.
    """

    name: str
    apply: Callable[[int, int], int]

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All possible values, sorted; the index of a value is its class."""
        return tuple(sorted({self.apply(digit, number) for digit in range(10) for number in range(10)}))

    @cached_property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """Table of classes, 10 x 10: one row for each digit, one column for each number."""
        return tuple(tuple(self.values.index(self.apply(d, n)) for n in range(10)) for d in range(10))


OPERATIONS = {
    "sum": Operation("sum", operator.add),  # 0 to 18: the 19 classes of the digit-and-sum exercise
    "product": Operation("product", operator.mul),  # 37 values from 0 to 81; the digit-and-product exercise lists none
}
