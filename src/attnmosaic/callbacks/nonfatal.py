"""Whoever only looks on costs no run."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import disk_trouble

log = logging.getLogger(__name__)


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Makes a callback's hook log what it raises and let the run go on; from then on the callback does nothing.

    Except of a disk that is full or gone: the run ends then, and goes on when there is room again.
    """

    @functools.wraps(hook)
    def guarded(self: Any, *arguments: Any, **named: Any) -> None:
        if getattr(self, "_failed", False):
            return
        try:
            hook(self, *arguments, **named)
        except Exception as error:
            if disk_trouble(error) is not None:  # what is missing then, nobody would find out
                raise
            self._failed = True
            log.warning("%s failed, and is left out from now on; the run goes on", type(self).__name__, exc_info=True)

    return guarded


def check_count(key: str, value: Any) -> None:
    """Checks that something can be counted.

    Raises:
        UserError: it is no whole number of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"callbacks.{key}: got {value}, needs a whole number of at least 1; type callbacks.{key}=8")
