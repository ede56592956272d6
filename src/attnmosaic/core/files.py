"""Writes files atomically, holds locks, and reports errors of the disk in one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from attnmosaic.core.errors import UserError


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


UNFINISHED = ".tmp"
"""How the hidden names of files end that are being written; what a crash leaves of them, the next run removes."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is either whole or not there, even if the machine stops meanwhile.

    It is written under another name in the same folder, synced to the disk and renamed, and then the folder is synced.

    Args:
        path: the file; its predecessor stays until it is replaced.
        content: bytes as they are; text as UTF-8, with a line end after it.

    Raises:
        OSError: it could not be written; its predecessor is as it was.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content if isinstance(content, bytes) else f"{content}\n".encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a write the system does not tell what it was of
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Has the disk keep a folder's list of names, which syncing a file does not."""
    if os.name == "nt":  # folders cannot be opened there
        return
    _sync(folder)


def sync_files(folder: Path) -> None:
    """Has the disk keep the visible files of a folder, however they were written."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(opened)


def remove_unfinished(folder: Path) -> None:
    """Removes what a crash left of files that were being written. Nobody may be writing there."""
    for abandoned in folder.glob(f".*{UNFINISHED}"):
        abandoned.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)


def disk_trouble(error: BaseException) -> str | None:
    """Returns what to say of an error that the disk is to blame for, or None for any other error."""
    if not isinstance(error, OSError):
        return None
    where = "" if error.filename is None else f" '{error.filename}'"
    if error.errno in _FULL:
        return (
            f"no room on the disk for{where or ' a file'} ({error.strerror}); what was written before is whole: make "
            "room, and the same command goes on"
        )
    if error.errno in _FORBIDDEN:
        return f"no right to write or read{where} ({error.strerror}); give that right, or type hydra.run.dir=DIR"
    if error.errno in _GONE:
        return (
            f"the disk does not answer for{where or ' a file'} ({error.strerror}); what was written before is whole: "
            "bring it back, and the same command goes on"
        )
    return None
