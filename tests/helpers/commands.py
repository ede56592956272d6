"""Runs commands in this process; a new process would need ten seconds for its imports."""

import importlib
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from attnmosaic.core.library_internals import forkserver_pid
from attnmosaic.core.signals import SIGNALS

HYDRA_HANDLERS = (logging.StreamHandler, logging.FileHandler)
"""Types of the log handlers that Hydra adds to the root logger."""
Cli = Callable[..., tuple[int, str, str]]


def make_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Returns a function that runs ``python -m attnmosaic.<command> <arguments>``: (exit code, stdout, stderr)."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"attnmosaic.{command}", *arguments])
        capfd.readouterr()
        code, server = 0, forkserver_pid()
        handlers, excepthook = {signum: signal.getsignal(signum) for signum in SIGNALS}, threading.excepthook
        try:
            importlib.import_module(f"attnmosaic.{command}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.alarm(0)
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            threading.excepthook, logging.raiseExceptions = excepthook, True
            # At the end of a command's own process, the following would not be needed.
            if forkserver_pid() != server:  # the command has started this server
                sys.modules["attnmosaic.sweeps.fork_server"].stop_server()
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            root = logging.getLogger()
            root.handlers = [handler for handler in root.handlers if type(handler) not in HYDRA_HANDLERS]
        out, err = capfd.readouterr()
        return code, out, err

    return run


def check_line(code: int, err: str, pattern: str) -> None:
    """Checks that a command has reported a user error: exit code 2, and one line that matches a pattern."""
    assert code == 2, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert re.search(pattern, err), err
