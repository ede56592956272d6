"""Ctrl-C, SIGTERM and SIGHUP: one line, exit code 128 + signal, no remaining process, and the run can be resumed."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from helpers.settings import ALL_CHECKPOINTS, ROOT, SMALL

from attnmosaic.core import signals
from attnmosaic.core.quoting import command as command_line
from attnmosaic.core.quoting import in_hydra_grammar
from attnmosaic.runs.run import RESULT, Run

pytestmark = pytest.mark.faults

LONG = (
    *SMALL, "schedule.k=2", "schedule.epochs=100000", "trainer.check_val_every_n_epoch=1000", "logger=none",
    "callbacks.last.min_seconds=0.5",
)  # fmt: skip
SWEEP = (*LONG, "seed.all=0,1", "hydra.sweep.dir=sweep")
PATIENCE = 120
"""Seconds to wait for an event before a test fails."""


@contextmanager
def command(folder: Path, *arguments: str, **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command in a new session, and kills all processes of the session afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "attnmosaic.train", *arguments], cwd=folder, env=os.environ, start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": accept_signals, **popen},
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def accept_signals() -> None:
    """Resets all signal handlers, which are ignored if the tests run under nohup or in the background."""
    for signum in signals.SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def _session(leader: int) -> list[int]:
    """Returns the process ids of a session that have not ended."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return [int(pid) for pid, session, state in rows if int(session) == leader and state[0] != "Z"]


def wait_until(condition: Callable[[], Any], name: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, name
        time.sleep(0.05)


def printed(process: subprocess.Popen[bytes]) -> str:
    out: IO[bytes] | None = process.stdout
    assert out is not None
    return out.read().decode()


STOP_CALLBACK = """
import os, signal
from pytorch_lightning.callbacks import Callback
class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2 and "RESUME" not in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_advised_command_resumes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same folder, from its checkpoint, to its last epoch."""
    name = """it's [é]  {b} eq=1 quo"te, do$lar\\"""
    (tmp_path / "stopper.py").write_text(STOP_CALLBACK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    timed = f"paths.output={in_hydra_grammar(name)}"  # the folder's name ends with the time
    few = (*SMALL, "schedule.k=1", "schedule.epochs=4", "logger=none", "callbacks.pictures=null", *ALL_CHECKPOINTS)
    line = command_line("train", *few, "+callbacks.stop._target_=stopper.Stop", timed)
    stopped = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert stopped.returncode == 143, stopped.stderr
    advised = stopped.stderr.splitlines()[-1].partition(" the same command with ")[2]
    monkeypatch.setenv("RESUME", "1")
    resumed = subprocess.run(["bash", "-c", f"{line} {advised}"], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 2 of 4" in resumed.stdout
    (run,) = (tmp_path / name / "gaussian").iterdir()
    assert (run / RESULT).exists()


def test_signal_during_imports_ends_the_command(tmp_path: Path) -> None:
    """No run has begun. The first import, which the test replaces, does not end."""
    (tmp_path / "hydra.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(1000)")
    with command(tmp_path, *LONG) as process:
        wait_until((tmp_path / "begun").exists, "an import")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
        assert printed(process) == "stopped by SIGTERM\n"


LISTENS = """
import time
from attnmosaic.core.signals import listen
listen()
print("ready", flush=True)
time.sleep(60)
"""


def test_signals_ignored_by_nohup_stay_ignored() -> None:

    def nohup() -> None:
        accept_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with subprocess.Popen(
        [sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, preexec_fn=nohup
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == b"stopped by SIGTERM\n"
        assert process.wait() == 143


def test_signal_during_training_ends_the_run(tmp_path: Path) -> None:
    """The line names the run's folder, because the same command alone would use a folder with another time.

    The run hides the cursor of its terminal and shows it again at the end.
    """
    test_end, command_end = pty.openpty()
    with command(tmp_path, *LONG, "progress=live", stdout=command_end, stderr=command_end) as process:
        os.close(command_end)
        output = b""
        while b"\x1b[?25l" not in output or not [*tmp_path.glob("outputs/gaussian/*/checkpoints/last.ckpt")]:
            output += os.read(test_end, 1 << 16)
        process.send_signal(signal.SIGHUP)
        while True:
            try:
                output += os.read(test_end, 1 << 16)
            except OSError:  # the command's end is closed
                break
        assert process.wait(PATIENCE) == 129
        assert not _session(process.pid)
    os.close(test_end)
    (run,) = tmp_path.glob("outputs/gaussian/*")
    assert Run(run).state == "stopped"
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l")
    (line,) = re.findall(rb"\r\n\x1b\[\?25h(stopped by SIGHUP; [^\n]*)\r\n", output)
    assert f"hydra.run.dir={run.relative_to(tmp_path)}".encode() in line


def test_signal_to_a_sweep_ends_its_jobs_and_prints_its_table(tmp_path: Path) -> None:
    """Jobs ignore a SIGHUP of their own; a job that SIGTERM ends counts as stopped, not as failed."""
    with command(tmp_path, *SWEEP, "hydra/launcher=joblib", "-m") as process:
        jobs = [tmp_path / "sweep" / str(job) for job in range(2)]
        checkpoints = [job / "checkpoints" / "last.ckpt" for job in jobs]
        wait_until(lambda: all(last.exists() for last in checkpoints), "a checkpoint of each job")
        pids = _grandchildren(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        before = [last.stat().st_mtime_ns for last in checkpoints]
        pairs = [*zip(checkpoints, before, strict=True)]
        wait_until(lambda: all(last.stat().st_mtime_ns > time for last, time in pairs), "newer checkpoints")
        assert len(pids) == 2
        assert _grandchildren(process.pid) == pids
        os.kill(pids[0], signal.SIGTERM)
        wait_until(
            lambda: any("killed by SIGTERM" in (job / "train.log").read_text() for job in jobs), "the end of a job"
        )
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(PATIENCE) == 129
        text = printed(process)
        assert "Traceback" not in text
        assert text.splitlines()[-1].startswith("stopped by SIGHUP; to resume, ")
        assert [Run(job).state for job in jobs] == ["stopped"] * 2
        assert re.search(r"^ gaussian +0 +2 stopped", text, flags=re.M)
        wait_until(lambda: not _session(process.pid), "all processes have ended")


def _grandchildren(pid: int) -> list[int]:
    """Returns the process ids of a sweep's jobs, which are forks of its fork server."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    return sorted(child for child, parent in parents.items() if parents.get(parent) == pid)


def test_killed_sweep_leaves_no_job(tmp_path: Path) -> None:
    with command(tmp_path, *SWEEP, "hydra/launcher=joblib", "-m") as process:
        jobs = [tmp_path / "sweep" / str(job) for job in range(2)]
        wait_until(
            lambda: all((job / "checkpoints" / "last.ckpt").exists() for job in jobs), "a checkpoint of each job"
        )
        process.kill()
        wait_until(lambda: not _session(process.pid), "all processes have ended")
        assert [Run(job).state for job in jobs] == ["stopped"] * 2


def test_end_in_order_has_a_time_limit(tmp_path: Path) -> None:
    """A process that suppresses the first signal ends after the limit or at the second signal."""
    hangs = (
        "import sys, time, signal, os\nfrom attnmosaic.core import signals\nsignals.GRACE = int(sys.argv[1])\n"
        "signals.listen()\nsignals.end_in_order(True)\nline = 'ready'\n"
        "for _ in range(2):\n try:\n  print(line, flush=True)\n  time.sleep(30)\n"
        " except KeyboardInterrupt:\n  line = 'suppressed'\n"
    )
    for grace, second_signal in ((1, False), (1000, True)):
        with subprocess.Popen(
            [sys.executable, "-c", hangs, str(grace)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            preexec_fn=accept_signals,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == b"suppressed\n"
            if second_signal:
                process.send_signal(signal.SIGINT)
            assert process.stderr.read() == (b"stopped by SIGINT\n" if second_signal else b"stopped by SIGTERM\n")
            assert process.wait() == (130 if second_signal else 143)
    assert signals.GRACE == 10
