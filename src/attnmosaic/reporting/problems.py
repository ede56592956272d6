"""Problems that a report lists instead of ending with them."""

from collections.abc import Callable
from typing import Any, TypeVar

from attnmosaic.core.errors import one_line
from attnmosaic.core.text import cut

T = TypeVar("T")


class Problems(list[str]):
    """What could not be read or shown, a line each."""

    def attempt(self, what: object, instead: T, make: Callable[..., T], *given: Any) -> T:
        """Returns what is made, or something else if that fails: one odd file is not worth a report."""
        try:
            return make(*given)
        except Exception as error:
            said = error.strerror if isinstance(error, OSError) else error
            self.append(f"{what}: {cut(one_line(f'{type(error).__name__}: {said}'), 300)}")
            return instead
