"""Ctrl-C, SIGTERM and SIGHUP: one line, 128 + signal, no process left behind, and the same command goes on."""

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
from helpers.settings import ROOT, SMALL

from attnmosaic.core import signals
from attnmosaic.core.quoting import command as command_line
from attnmosaic.core.quoting import in_grammar
from attnmosaic.runs.run import RESULT, Run

pytestmark = pytest.mark.faults

LONG = (*SMALL, "schedule.k=2", "schedule.epochs=100000", "trainer.check_val_every_n_epoch=1000", "logger=none")
SWEEP = (*LONG, "seed.all=0,1", "hydra.sweep.dir=sweep")
PATIENCE = 120
"""Seconds after which nothing will come any more."""


@contextmanager
def command(folder: Path, *arguments: str, **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a real command in a session of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "attnmosaic.train", *arguments], cwd=folder, env=os.environ, start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": hear, **popen},
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def hear() -> None:
    """Lets a process hear all signals, also where these tests run under nohup or in the background."""
    for signum in signals.SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def _session(leader: int) -> list[int]:
    """Returns the processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return [int(pid) for pid, session, state in rows if int(session) == leader and state[0] != "Z"]


def wait_until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def printed(process: subprocess.Popen[bytes]) -> str:
    out: IO[bytes] | None = process.stdout
    assert out is not None
    return out.read().decode()


STOPPER = """
import os, signal
from pytorch_lightning.callbacks import Callback
class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2 and "GO_ON" not in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_the_command_that_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted into a shell, it resumes the run: in the same folder, from its checkpoint, to its end."""
    name = """it's [é]  {b} eq=1 quo"te, do$lar\\"""
    (tmp_path / "stopper.py").write_text(STOPPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    timed = f"paths.output={in_grammar(name)}"  # the folder's name ends with the time
    few = (*SMALL, "schedule.k=1", "schedule.epochs=4", "logger=none", "callbacks.pictures=null")
    line = command_line("train", *few, "+callbacks.stop._target_=stopper.Stop", timed)
    stopped = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert stopped.returncode == 143, stopped.stderr
    offered = stopped.stderr.splitlines()[-1].partition(" the same command with ")[2].removesuffix(" resumes")
    monkeypatch.setenv("GO_ON", "1")
    resumed = subprocess.run(["bash", "-c", f"{line} {offered}"], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 2 of 4" in resumed.stdout
    (run,) = (tmp_path / name / "gaussian").iterdir()
    assert (run / RESULT).exists()


def test_while_it_imports(tmp_path: Path) -> None:
    """Before there is anything to go on with: in the first import, here one that does not come to its end."""
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


def test_nohup() -> None:
    """What a process was started to ignore, it ignores."""

    def nohup() -> None:
        hear()
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


def test_a_run(tmp_path: Path) -> None:
    """While it trains; the same command has a folder of another time, so the line names this one's.

    On a terminal, which gets its cursor back.
    """
    ours, theirs = pty.openpty()
    with command(tmp_path, *LONG, "progress=live", stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"\x1b[?25l" not in seen or not [*tmp_path.glob("outputs/gaussian/*/checkpoints/last.ckpt")]:
            seen += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGHUP)
        while True:
            try:
                seen += os.read(ours, 1 << 16)
            except OSError:  # its other end is closed
                break
        assert process.wait(PATIENCE) == 129
        assert not _session(process.pid)
    os.close(ours)
    (run,) = tmp_path.glob("outputs/gaussian/*")
    assert Run(run).state == "stopped"
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    (line,) = re.findall(rb"\r\n\x1b\[\?25h(stopped by SIGHUP; [^\n]*)\r\n", seen)
    assert f"hydra.run.dir={run.relative_to(tmp_path)}".encode() in line


def test_a_sweep(tmp_path: Path) -> None:
    """Its jobs end with it, none has failed, and its table is shown.

    Jobs that get a signal alone leave SIGHUP to the sweep; a job that SIGTERM ends has stopped, and has not failed.
    """
    with command(tmp_path, *SWEEP, "hydra/launcher=joblib", "-m") as process:
        jobs = [tmp_path / "sweep" / str(job) for job in range(2)]
        written = [job / "checkpoints" / "last.ckpt" for job in jobs]
        wait_until(lambda: all(last.exists() for last in written), "a checkpoint of each")
        pids = _grandchildren(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        before = [last.stat().st_mtime_ns for last in written]
        wait_until(lambda: all(last.stat().st_mtime_ns > at for last, at in zip(written, before, strict=True)), "more")
        assert len(pids) == 2
        assert _grandchildren(process.pid) == pids
        os.kill(pids[0], signal.SIGTERM)
        wait_until(lambda: any("killed by SIGTERM" in (job / "train.log").read_text() for job in jobs), "its end")
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(PATIENCE) == 129
        text = printed(process)
        assert "Traceback" not in text
        assert text.splitlines()[-1].startswith("stopped by SIGHUP; the same command ")
        assert [Run(job).state for job in jobs] == ["stopped"] * 2
        assert re.search(r"^ gaussian +0 +2 stopped", text, flags=re.M)
        wait_until(lambda: not _session(process.pid), "all processes have ended")


def _grandchildren(pid: int) -> list[int]:
    """Returns the jobs of a sweep: forks of the server that it has started."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    return sorted(child for child, parent in parents.items() if parents.get(parent) == pid)


def test_a_killed_sweep_leaves_no_job(tmp_path: Path) -> None:
    with command(tmp_path, *SWEEP, "hydra/launcher=joblib", "-m") as process:
        jobs = [tmp_path / "sweep" / str(job) for job in range(2)]
        wait_until(lambda: all((job / "checkpoints" / "last.ckpt").exists() for job in jobs), "a checkpoint of each")
        process.kill()
        wait_until(lambda: not _session(process.pid), "all processes have ended")
        assert [Run(job).state for job in jobs] == ["stopped"] * 2


def test_an_end_in_order_has_a_limit(tmp_path: Path) -> None:
    """Whoever swallows the first signal is ended by time, or by the second."""
    hangs = (
        "import sys, time, signal, os\nfrom attnmosaic.core import signals\nsignals.GRACE = int(sys.argv[1])\n"
        "signals.listen()\nsignals.in_order(True)\nsaid = 'ready'\n"
        "for _ in range(2):\n try:\n  print(said, flush=True)\n  time.sleep(30)\n"
        " except KeyboardInterrupt:\n  said = 'swallowed'\n"
    )
    for grace, again in ((1, False), (1000, True)):
        with subprocess.Popen(
            [sys.executable, "-c", hangs, str(grace)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            preexec_fn=hear,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == b"swallowed\n"
            if again:
                process.send_signal(signal.SIGINT)
            assert process.stderr.read() == (b"stopped by SIGINT\n" if again else b"stopped by SIGTERM\n")
            assert process.wait() == (130 if again else 143)
    assert signals.GRACE == 10
