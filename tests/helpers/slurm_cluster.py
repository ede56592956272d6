"""A real Slurm of one node on this machine, for tests: its own ports, folders and keys, gone when the test ends."""

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
    """A running Slurm.

    Attributes:
        environ: what a process needs in its environment to talk to it.
    """

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def tell(self, *command: str) -> str:
        """Runs one of Slurm's commands and returns what it prints."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Returns the states of all jobs that Slurm knows of."""
        told = self.tell("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(line.split() for line in told.splitlines())

    def detail(self, job: str, field: str) -> str:
        """Returns a field of what ``scontrol`` shows of a job."""
        found = re.search(rf"\b{field}=(\S*)", self.tell("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    """Waits until something is true; the limit is there to end a test that hangs."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@contextmanager
def slurm(cpus: int = 2) -> Iterator[Cluster]:
    """Starts a cluster. Skips where there is no Slurm or no root, and fails there if ``CI`` is set.

    Args:
        cpus: how many the node pretends to have.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        message = f"Slurm is absent ({', '.join(missing) or 'and needs root'}): on Debian, apt install slurm-wlm munge"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    # A short path, as sockets lie there.
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
    own = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    own["seed-file"] = "munge.seed"
    munged = ("munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in own.items()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_daemon(folder, environ, *munged))
        wait_for((folder / "munge.socket").exists)
        stack.enter_context(_daemon(folder, environ, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, environ, "slurmd", "-D"))
        stack.callback(_cancel_all, cluster)
        try:
            wait_for(lambda: "idle" in cluster.tell("sinfo", "--noheader", "--format=%T"), 60)
        except AssertionError:
            pytest.fail(f"Slurm did not start:\n{cluster.logs()}")
        yield cluster


def _cancel_all(cluster: Cluster) -> None:
    """Ends all jobs: their processes are not slurmd's children, and would outlive it."""
    with contextlib.suppress(AssertionError):
        cluster.tell("scancel", "--user=root")
        wait_for(lambda: not cluster.tell("squeue", "--noheader"), 30)


@contextmanager
def _daemon(folder: Path, environ: dict[str, str], *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as out:
        # Ends with this process, however that ends.
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
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
