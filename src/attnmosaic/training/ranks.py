"""The other processes of a run that has several."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attnmosaic.core.errors import RunError

PATIENCE = 60
"""Seconds this process has to notice by itself that another one of its run is gone. (With NCCL it does not.)"""


@dataclass(frozen=True)
class Place:
    """Which of a run's processes one is.

    Attributes:
        rank: 0 to count - 1; rank 0 alone writes files.
        count: how many there are.
        meeting: a file, made by the first to come, through which they find each other.
    """

    rank: int
    count: int
    meeting: str


class Ranks:
    """Starts the processes 1 to n - 1 of a run, and ends them.

    Each is ``python -m attnmosaic.training.rank``: not this program's command again, which would be another run, or
    another sweep. They end with this process, however it ends.

    Args:
        count: how many processes train the run, n.

    Raises:
        RunError: on leaving, if one of them had failed.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.place: Place | None = None
        """Of this process; None if it trains the run alone."""
        self._processes: list[subprocess.Popen[str]] = []
        self._folder: str | None = None
        self._failed: str | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Ranks":
        for _ in range(1, self.count):
            process = subprocess.Popen(
                [sys.executable, "-m", "attnmosaic.training.rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8:backslashreplace"},
                start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )
            self._processes.append(process)
        return self

    def begin(self, config: dict[str, Any]) -> None:
        """Tells the others what to train.

        Args:
            config: the run's, as plain containers.
        """
        if self.count == 1:
            return
        self._folder = tempfile.mkdtemp(prefix="attnmosaic-")
        self.place = Place(0, self.count, str(Path(self._folder) / "meeting"))
        for rank, process in enumerate(self._processes, start=1):
            assert process.stdin is not None
            place = replace(self.place, rank=rank)
            try:
                process.stdin.write(json.dumps({"config": config, "place": asdict(place)}) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it is gone already, and `_watch` says why
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def _watch(self, rank: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        said = process.stdout.read().strip()  # until its end
        code = process.wait()
        if code == 0 or self._over.is_set():
            return
        self._failed = self._failed or said or f"process {rank} of {self.count} of this run ended with exit code {code}"
        if not self._over.wait(PATIENCE):
            print(f"error: {' '.join(self._failed.split())}", file=sys.stderr, flush=True)
            os._exit(1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.count == 1:
            return
        alone = _is_lost(error)
        if alone:
            self._wait_for_reason()
        self._over.set()
        for process in self._processes:
            if error is not None:
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        # The other's end is why this process could not go on; what it raised itself is only that nobody answers.
        if alone and self._failed is not None:
            raise RunError(self._failed) from error

    def _wait_for_reason(self) -> None:
        """Gives the watching threads a moment: this process may notice an end before they do."""
        for _ in range(500):
            if self._failed is not None or self._over.wait(0.01):
                return


def _is_lost(error: BaseException | None) -> bool:
    """Whether an error only says that another process does not answer; any other says by itself what is wrong."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "peer"))
