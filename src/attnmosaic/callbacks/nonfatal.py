"""Keeps errors of observing callbacks from ending a run."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import disk_message

log = logging.getLogger(__name__)


def log_errors(hook: Callable[..., None]) -> Callable[..., None]:
    """Decorates a hook so that errors are logged, and the callback does nothing after the first error.

    Disk errors still end the run, because files would be missing otherwise. The run resumes once the disk works again.
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
            log.warning("%s failed and is disabled for the rest of the run", type(self).__name__, exc_info=True)

    return guarded


def check_count(key: str, value: Any) -> None:
    """Raises a `UserError` unless an argument of a callback is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"callbacks.{key}: got {value}, needs a whole number of at least 1; type callbacks.{key}=8")
