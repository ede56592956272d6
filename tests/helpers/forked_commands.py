"""Commands as forks of a process that has imported everything: they start fast and can be stopped at any moment.

``python forked_commands.py`` reads one line of JSON per command and prints the command's exit code; see `Forks`.
"""

import errno
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

MODULES = ("attnmosaic.train", "attnmosaic.callbacks.tensorboard", "attnmosaic.callbacks.attention_gradients",
           "attnmosaic.callbacks.snapshots", "attnmosaic.callbacks.eta", "attnmosaic.training.tensorboard")  # fmt: skip

STEPS = ("begun", "half", "written", "synced", "renamed", "kept")
"""Steps of writing a file atomically: it is empty, half written, written, synced, renamed, and its folder is synced."""


class Forks:
    """The process that forks; it runs during the ``with`` block."""

    def __enter__(self) -> "Forks":
        environ = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, folder: Path, *arguments: str, moment: tuple[Any, ...] = ()) -> tuple[int, str]:
        """Runs ``attnmosaic.train`` in a folder.

        Args:
            folder: working directory of the command.
            *arguments: arguments of the command.
            moment: name and arguments of a function below that determines the moment of an action; empty for none.

        Returns:
            The exit code, which is negative if a signal ended the command, and the command's output.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        request = {"arguments": arguments, "folder": str(folder), "moment": moment, "environ": dict(os.environ)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, (folder / "printed.txt").read_text()


# ---- in the fork


def act(action: str) -> None:
    """Sends a signal to this process, or raises an OSError with the given name."""
    if action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def at_epoch(epoch: int, action: str) -> None:
    """Acts at the beginning of an epoch, counted from 1."""
    at_place("attnmosaic.callbacks.csv_tables.RunTables.on_train_epoch_start", 1, action, epoch)


def at_place(place: str, nth: int, action: str, epoch: int | None = None) -> None:
    """Acts before the n-th call of a function or method."""
    owner_path, _, name = place.rpartition(".")
    try:
        owner: Any = importlib.import_module(owner_path)
    except ModuleNotFoundError:
        module, _, cls = owner_path.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    original, calls = getattr(owner, name), 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if epoch is None or arguments[1].current_epoch + 1 == epoch:
            calls += 1
            if calls == nth:
                act(action)
        return original(*arguments, **named)

    setattr(owner, name, called)


def folder_deleted(epoch: int, folder: str) -> None:
    """Deletes a folder at the beginning of an epoch."""
    global act
    act = shutil.rmtree
    at_epoch(epoch, folder)


def in_writing(file: str, step: str, nth: int, action: str) -> None:
    """Acts at one of `STEPS` when a file is written for the n-th time."""
    from attnmosaic.core import files

    times, opened, original = 0, None, pathlib.Path.open

    def open_file(path: Path, *arguments: Any, **named: Any) -> Any:
        nonlocal times, opened
        stream = original(path, *arguments, **named)
        if path.name.startswith(f".{file}.") and path.name.endswith(files.UNFINISHED):
            times += 1
            if times == nth:
                opened = stream.fileno()
                if step == "begun":
                    act(action)
                return Half(stream) if step == "half" else stream
        return stream

    class Half:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, content: bytes) -> None:
            self.stream.write(content[: len(content) // 2])
            self.stream.flush()
            act(action)

    class System:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, number: int) -> None:
            nonlocal opened
            if step == "written" and number == opened:
                opened = None  # the next file can get the same file descriptor
                act(action)
            os.fsync(number)

        def replace(self, one: Path, other: Path) -> None:
            is_nth = other.name == file and times == nth
            if step == "synced" and is_nth:
                act(action)
            os.replace(one, other)
            if step == "renamed" and is_nth:
                act(action)

    original_sync = files.sync_folder

    def sync_folder(folder: Path) -> None:
        nonlocal opened
        original_sync(folder)
        if step == "kept" and opened is not None:
            opened = None
            act(action)

    pathlib.Path.open = open_file  # type: ignore[method-assign]
    files.os = System()  # type: ignore[assignment]
    files.sync_folder = sync_folder


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    from attnmosaic.sweeps.fork_server import PRELOAD

    for module in PRELOAD:
        importlib.import_module(module)
    from attnmosaic.core.signals import SIGNALS, listen

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the forked process has its signal handlers
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            listen()
            _run(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(arguments: list[str], folder: str, moment: list[Any], environ: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.argv = ["attnmosaic.train", *arguments]
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    code = 0
    try:
        if moment:
            globals()[moment[0]](*moment[1:])
        importlib.import_module("attnmosaic.train").main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
