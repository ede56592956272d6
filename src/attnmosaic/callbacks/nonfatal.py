"""Keeps errors of callbacks that only observe from ending a run."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import disk_message

log = logging.getLogger(__name__)


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Makes a callback's hook log what it raises; from then on the callback does nothing.

    Errors of the disk do end the run: otherwise nobody would notice what is missing, and it resumes when they are gone.
    """

    @functools.wraps(hook)
    def guarded(self: Any, *arguments: Any, **named: Any) -> None:
        if getattr(self, "_failed", False):
            return
        try:
            hook(self, *arguments, **named)
        except Exception as error:
            if disk_message(error) is not None:
                raise
            self._failed = True
            log.warning("%s failed and is left out from now on", type(self).__name__, exc_info=True)

    return guarded


def check_count(key: str, value: Any) -> None:
    """Raises a `UserError` unless an argument of a callback is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"callbacks.{key}: got {value}, needs a whole number of at least 1; type callbacks.{key}=8")
