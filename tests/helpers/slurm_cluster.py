"""A real Slurm cluster of one node on this machine, with its own ports, folders and keys; it ends with the test."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "setpriv")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=usual Nodes={host} Default=YES PriorityTier=1 GraceTime=4 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=9 MaxTime=INFINITE State=UP
"""


class Cluster:
    """A running Slurm cluster.

    Attributes:
        folder: folder of the cluster's files.
        environ: environment variables of processes that use the cluster.
    """

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def run(self, *command: str) -> str:
        """Runs a Slurm command and returns its output."""
        process = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def jobs(self) -> dict[str, str]:
        """Returns the states of all jobs that Slurm knows."""
        output = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(line.split() for line in output.splitlines())

    def detail(self, job: str, field: str) -> str:
        """Returns a field of a job, as ``scontrol`` shows it."""
        match = re.search(rf"\b{field}=(\S*)", self.run("scontrol", "show", "job", job))
        assert match is not None
        return match[1]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until a condition is true; fails after some seconds, so that the test cannot hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still false after {seconds} s"
        time.sleep(0.1)


@contextmanager
def slurm(cpus: int = 2) -> Iterator[Cluster]:
    """Starts a cluster. Without Slurm or without root rights the test is skipped, or fails if ``CI`` is set.

    Args:
        cpus: number of CPUs in the node's configuration.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        reason = f"missing: {', '.join(missing)}" if missing else "needs root rights"
        message = f"cannot start Slurm ({reason}): on Debian, apt install slurm-wlm munge"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    # The path must be short, because it is part of a socket's address.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, _started(Path(folder), cpus) as cluster:
        yield cluster


@contextmanager
def _started(folder: Path, cpus: int) -> Iterator[Cluster]:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    conf = CONF.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=_free_ports(2), cpus=cpus)
    (folder / "slurm.conf").write_text(conf)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SUBMITIT"))
    }
    environ["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = Cluster(folder, environ)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    files["seed-file"] = "munge.seed"
    munged = ("munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_daemon(folder, environ, *munged))
        wait_for((folder / "munge.socket").exists)
        stack.enter_context(_daemon(folder, environ, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, environ, "slurmd", "-D"))
        stack.callback(_cancel_all, cluster)
        try:
            wait_for(lambda: "idle" in cluster.run("sinfo", "--noheader", "--format=%T"), 60)
        except AssertionError:
            pytest.fail(f"Slurm did not start:\n{cluster.logs()}")
        yield cluster


def _cancel_all(cluster: Cluster) -> None:
    """Ends all jobs; their processes are not children of slurmd and would continue after its end."""
    with contextlib.suppress(AssertionError):
        cluster.run("scancel", "--user=root")
        wait_for(lambda: not cluster.run("squeue", "--noheader"), 30)


@contextmanager
def _daemon(folder: Path, environ: dict[str, str], *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as out:
        # `setpriv` lets the daemon end with this process, even if this process is killed.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], env=environ, stdout=out, stderr=out, cwd=folder
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]
