"""Writes files atomically, holds lock files, and reports errors of the disk in one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from attnmosaic.core.errors import BusyError, UserError


@contextlib.contextmanager
def locked(path: Path, key: str, timeout: float = -1) -> Iterator[None]:
    """Holds a lock file until the block or the process ends; a lock file left by a process that ended is no obstacle.

    Args:
        path: the lock file; its folder is created.
        key: the config key that names another folder, for errors.
        timeout: seconds to wait for the process that holds it; -1 waits without a limit.

    Raises:
        BusyError: another process still holds it.
        UserError: the folder cannot be written to.
    """
    lock, folder = FileLock(path), path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise BusyError(f"{key}: another process is running in '{folder}'; wait for it, or type {key}=DIR") from error
    except OSError as error:
        raise UserError(f"{key}: cannot write to '{folder}' ({error.strerror}); type {key}=DIR") from error
    try:
        yield
    finally:
        lock.release()


UNFINISHED = ".tmp"
"""Suffix of the hidden file that content is written to before it is renamed."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: even if the machine stops meanwhile, ``path`` has the old content or the new, complete.

    The content is written under another name in the same folder, synced to the disk and renamed; then the folder is
    synced.

    Args:
        path: the file.
        content: bytes unchanged; text as UTF-8, with a line end after it.

    Raises:
        OSError: the content could not be written; the old file is unchanged.
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
        if isinstance(error, OSError) and error.filename is None:  # write() and fsync() report no file
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Syncs a folder's list of names to the disk, which syncing a file does not."""
    _sync(folder)


def sync_files(folder: Path) -> None:
    """Syncs the visible files of a folder to the disk."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has no fsync
            raise
    finally:
        os.close(opened)


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files that a crash left in a folder. No process may be writing there."""
    for abandoned in folder.glob(f".*{UNFINISHED}"):
        abandoned.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_INACCESSIBLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


def disk_message(error: BaseException) -> str | None:
    """Returns the line that reports an error of the disk, or None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (*_FULL, *_INACCESSIBLE):
        return None
    path = "a file" if error.filename is None else f"'{error.filename}'"
    where = f"{path} ({error.strerror})"
    if error.errno in _FULL:
        return f"disk full while writing {where}; earlier files are intact: free space, then run the same command again"
    return f"cannot read or write {where}; make it accessible and run the same command, or type hydra.run.dir=DIR"
