"""The commands, run in this process: starting a new one costs ten seconds of imports."""

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

HYDRAS = (logging.StreamHandler, logging.FileHandler)
Cli = Callable[..., tuple[int, str, str]]


def make_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Returns a function that runs ``python -m attnmosaic.<command> <arguments>``: (exit code, stdout, stderr)."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"attnmosaic.{command}", *arguments])
        capfd.readouterr()
        code, server = 0, forkserver_pid()
        heard, hooks = {signum: signal.getsignal(signum) for signum in SIGNALS}, threading.excepthook
        try:
            importlib.import_module(f"attnmosaic.{command}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.alarm(0)
            for signum, handler in heard.items():
                signal.signal(signum, handler)
            threading.excepthook, logging.raiseExceptions = hooks, True
            if forkserver_pid() != server:  # it is the command's own
                sys.modules["attnmosaic.sweeps.fork_server"].stop_server()  # as at the end of a process
            GlobalHydra.instance().clear()  # likewise
            HydraConfig.instance().cfg = None
            root = logging.getLogger()
            root.handlers = [handler for handler in root.handlers if type(handler) not in HYDRAS]
        out, err = capfd.readouterr()
        return code, out, err

    return run


def check_line(code: int, err: str, wanted: str) -> None:
    """Checks that a command has reported a user error: exit code 2, and one line that has a pattern."""
    assert code == 2, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert re.search(wanted, err), err
