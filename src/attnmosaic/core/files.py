"""Writes files atomically, holds lock files, and describes disk errors in one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from attnmosaic.core.errors import BusyError, UserError


@contextlib.contextmanager
def locked(path: Path, key: str, timeout: float = -1) -> Iterator[None]:
    """Holds a lock file until the block or the process ends; a file left by an ended process does not block.

    Args:
        path: the lock file; its folder is created.
        key: the config key with which the user can choose another folder, for error messages.
        timeout: seconds to wait for the lock; -1 waits without a limit.

    Raises:
        BusyError: another process holds the lock.
        UserError: the folder is not writable.
    """
    lock, folder = FileLock(path), path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout as error:
        message = f"{key}: another process is running in '{folder}'; wait until it ends, or type {key}=DIR"
        raise BusyError(message) from error
    except OSError as error:
        raise UserError(f"{key}: cannot write to '{folder}' ({error.strerror}); type {key}=DIR") from error
    try:
        yield
    finally:
        lock.release()


UNFINISHED = ".tmp"
"""Suffix of the hidden temporary file that gets the new content before it is renamed."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: after a crash, ``path`` has either its old content or all of its new content.

    Writes a temporary file in the same folder, syncs it to the disk, renames it to ``path`` and syncs the folder.

    Args:
        path: the file.
        content: bytes are written unchanged; text is written as UTF-8 with a line end after it.

    Raises:
        OSError: the write failed; the old file is unchanged.
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
        if isinstance(error, OSError) and error.filename is None:  # errors of write() and fsync() do not have it
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Syncs a folder's list of file names to the disk; syncing a file does not include its name."""
    _sync(folder)


def sync_files(folder: Path) -> None:
    """Syncs a folder and all its files that are not hidden to the disk."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does not support fsync
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes temporary files that a crash left in a folder; call it only while no process writes there."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_INACCESSIBLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


def disk_message(error: BaseException) -> str | None:
    """Returns the message for a disk error, or None for other errors."""
    if not isinstance(error, OSError) or error.errno not in (*_FULL, *_INACCESSIBLE):
        return None
    path = "a file" if error.filename is None else f"'{error.filename}'"
    where = f"{path} ({error.strerror})"
    if error.errno in _FULL:
        return f"disk full while writing {where}; earlier files are intact: free space and run the same command again"
    return f"cannot read or write {where}; restore access and run the same command again, or type hydra.run.dir=DIR"
