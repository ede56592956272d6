"""Other processes of a run, forked from a server that has the imports: fresh, and ten times as soon."""

import multiprocessing

import pytest

from attnmosaic.core.processes import RankInfo
from attnmosaic.training import ranks


class Forked:
    """Has the methods of `subprocess.Popen` that `Ranks` calls."""

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
    """Has runs in this process fork their other processes."""
    monkeypatch.setattr(ranks, "_start", Forked)
