"""Commands as forks of one process that has imported everything: each starts in a moment, and can be hit at any.

``python forked_commands.py`` reads a line of JSON for each command and answers with its exit status; see `Forks`.
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
"""Of writing a file whole: when it is empty, half full, full, on the disk, has its name, and its folder knows that."""


class Forks:
    """The process that forks, for as long as the ``with`` block."""

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
        """Trains with a command's arguments in a folder.

        Args:
            folder: the working directory.
            *arguments: the command line's.
            moment: the name of one of the functions below that choose a moment, and its arguments.

        Returns:
            The exit code, negative if a signal killed it, and what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"arguments": arguments, "folder": str(folder), "moment": moment, "environ": dict(os.environ)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, (folder / "printed.txt").read_text()


# ---- in the fork


def act(action: str) -> None:
    """Sends this process a signal, or raises an OSError of a name."""
    if action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def at_epoch(epoch: int, action: str) -> None:
    """Acts when an epoch, counted from 1, begins."""
    at_place("attnmosaic.callbacks.csv_tables.RunTables.on_train_epoch_start", 1, action, epoch)


def at_place(place: str, nth: int, action: str, epoch: int | None = None) -> None:
    """Acts at the n-th call of a function or method, which is then made unless the action ends it."""
    owner, _, name = place.rpartition(".")
    try:
        holder: Any = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, cls = owner.rpartition(".")
        holder = getattr(importlib.import_module(module), cls)
    original, seen = getattr(holder, name), 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        if epoch is None or arguments[1].current_epoch + 1 == epoch:
            seen += 1
            if seen == nth:
                act(action)
        return original(*arguments, **named)

    setattr(holder, name, called)


def vanishing(epoch: int, folder: str) -> None:
    """Removes a folder when an epoch begins."""
    global act
    act = shutil.rmtree
    at_epoch(epoch, folder)


def in_writing(file: str, step: str, nth: int, action: str) -> None:
    """Acts at one of `STEPS` of writing a file for the n-th time."""
    from attnmosaic.core import files

    seen, opened, original = 0, None, pathlib.Path.open

    def begin(path: Path, *arguments: Any, **named: Any) -> Any:
        nonlocal seen, opened
        made = original(path, *arguments, **named)
        if path.name.startswith(f".{file}.") and path.name.endswith(files.UNFINISHED):
            seen += 1
            if seen == nth:
                opened = made.fileno()
                if step == "begun":
                    act(action)
                return Half(made) if step == "half" else made
        return made

    class Half:
        def __init__(self, made: Any) -> None:
            self.made = made

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.made.close()

        def write(self, content: bytes) -> None:
            self.made.write(content[: len(content) // 2])
            self.made.flush()
            act(action)

    class System:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, number: int) -> None:
            nonlocal opened
            if step == "written" and number == opened:
                opened = None  # the next file may get the same number
                act(action)
            os.fsync(number)

        def replace(self, one: Path, other: Path) -> None:
            ours = other.name == file and seen == nth
            if step == "synced" and ours:
                act(action)
            os.replace(one, other)
            if step == "renamed" and ours:
                act(action)

    synced = files.sync_folder

    def sync_folder(folder: Path) -> None:
        nonlocal opened
        synced(folder)
        if step == "kept" and opened is not None:
            opened = None
            act(action)

    pathlib.Path.open = begin  # type: ignore[method-assign]
    files.os = System()  # type: ignore[assignment]
    files.sync_folder = sync_folder


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    from attnmosaic.sweeps.fork_server import PRELOAD

    for module in PRELOAD:
        importlib.import_module(module)
    from attnmosaic.core.signals import SIGNALS, listen

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the fork listens
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            listen()
            _run(**asked)
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
