"""Processes of a run, forked from a server with all imports; they start ten times as fast as new processes."""

import multiprocessing

import pytest

from attnmosaic.core.processes import RankInfo
from attnmosaic.training import ranks


class Forked:
    """A forked process with the methods of `subprocess.Popen` that `Ranks` calls."""

    def __init__(self, info: RankInfo) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["attnmosaic.training.fit", "helpers.process_watchers"])
        self._process = context.Process(target=ranks.follow, args=(info,))
        self._process.start()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    communicate = wait


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process fork their other processes instead of starting new ones."""
    monkeypatch.setattr(ranks, "_start", Forked)
