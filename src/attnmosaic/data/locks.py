"""One job at a time, among all that run on a machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from attnmosaic.errors import UserError


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock ``folder/name.lock``, waiting for the job that has it.

    Raises:
        UserError: the folder cannot be written to.
    """
    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(f"paths.cache: cannot write to '{folder}' ({error.strerror}); type paths.cache=DIR") from error
    try:
        yield
    finally:
        lock.release()
