"""Processes of a run, started by the run, torchrun or srun: if one ends, all end, and the run reports the reason."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.commands import Cli
from helpers.forked_ranks import Forked, forked  # noqa: F401
from helpers.settings import ALL_CHECKPOINTS, SMALL

from attnmosaic.core.errors import Pruned, RunError, UserError
from attnmosaic.core.processes import RankInfo
from attnmosaic.training.ranks import Ranks

pytestmark = pytest.mark.runs

Train = Callable[..., dict[str, float]]

TWO = ("trainer=ddp", "trainer.accelerator=cpu")
SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=3", "logger=none", "callbacks.pictures=null", *ALL_CHECKPOINTS)
TWO_PROCESSES = {"trainer": {"strategy": "ddp", "devices": 2}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def ends(rank: int, how: str) -> tuple[str, ...]:
    """Returns the override that ends a process of a run in its third epoch."""
    node = f"_target_: helpers.process_watchers.Ends, epoch: 2, rank: {rank}, how: {how}"
    return (f"+callbacks.ends={{{node}}}",)


# ---- started by a launcher


def test_torchrun_on_two_nodes_equals_two_devices(train: Train, tmp_path: Path) -> None:
    """Results and settings equal those of ``trainer.devices=2`` on one machine; the second node writes no files."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    address = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    nodes = []
    for rank in (1, 0):
        (tmp_path / f"node{rank}").mkdir()
        command = [*launch, *address, f"--node-rank={rank}", "-m", "attnmosaic.train", *SHORT, "trainer=ddp"]
        nodes.append(subprocess.Popen(command, cwd=tmp_path / f"node{rank}", stderr=subprocess.PIPE, text=True))
    for node in nodes:
        _, err = node.communicate(timeout=200)
        assert node.returncode == 0, err
    assert not list((tmp_path / "node1").iterdir())
    (result,) = (tmp_path / "node0").rglob("result.json")
    assert json.loads(result.read_text())["metrics"] == train(*SHORT, *TWO)
    for file in ("metrics.csv", "gradients.csv", "focus_vs_pred_test.csv"):
        assert result.with_name(file).read_bytes() == (tmp_path / "run" / file).read_bytes()
    local_result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(result.read_text())["config_hash"] == local_result["config_hash"]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> RankInfo:
    """Makes this process rank 0 of two processes that srun has started on two nodes; returns the other one's rank."""
    port = free_port()
    environ = {
        "SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost,other", "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return RankInfo(1, 2, 0, 1, "localhost", port)


def test_run_started_by_srun_on_two_nodes(cli: Cli, slurm: RankInfo, tmp_path: Path) -> None:
    other = Forked(slurm)
    code, _, err = cli("train", *SHORT, "trainer=ddp", "hydra.run.dir=run")
    assert (code, other.wait()) == (0, 0), err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("overrides", "code", "word"),
    [
        (("lr.typo=1",), 2, "lr.typo"),
        (("-m", "seed.all=0,1"), 2, "MULTIRUN"),
        (("trainer.devices=4",), 2, "started 2 processes"),
        (("--cfg", "job"), 0, ""),
        (ends(0, "error"), 1, "a bug in one process"),
        (ends(1, "error"), 1, "a bug in one process"),
    ],
    ids=["config", "sweep", "devices", "no run", "rank 0", "rank 1"],
)
@pytest.mark.faults
def test_all_processes_end_with_the_same_exit_code(
    cli: Cli, slurm: RankInfo, overrides: Sequence[str], code: int, word: str
) -> None:
    other = Forked(slurm)
    try:
        exit_code, _, err = cli("train", *overrides, *SHORT, "trainer=ddp")
    except ValueError as bug:
        exit_code, err = 1, str(bug)
    assert (exit_code, other.wait()) == (code, code)
    assert word in err


def test_custom_script_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun would start the script several times, and all processes would use the same run folder."""
    for name, value in RankInfo(1, 2, 1, 2, "localhost", 1).environ().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"torchrun -m attnmosaic\.train"), Ranks(TWO_PROCESSES):
        pass


# ---- ended


@pytest.mark.faults
@pytest.mark.usefixtures("forked")
def test_end_of_another_process_ends_the_run_with_its_reason(train: Train, tmp_path: Path) -> None:
    """The run ends in one line, keeps its last checkpoint, and the same command resumes it."""
    reference = train(*SHORT, *TWO, run_dir="whole")
    for how, reason in (("error", "a bug in one process"), ("killed", "process 1 of 2 .* ended with exit code")):
        with pytest.raises(RunError, match=reason):
            train(*SHORT, *TWO, *ends(1, how), run_dir=how)
        assert re.search(reason, (tmp_path / how / "error.txt").read_text())
        assert not (tmp_path / how / "result.json").exists()
    assert train(*SHORT, *TWO, run_dir="killed") == reference


@pytest.mark.faults
@pytest.mark.usefixtures("forked")
def test_pruned_trial_is_not_a_failure(train: Train, tmp_path: Path) -> None:
    """The search ends rank 0 only; the lost connection of the other process is not reported as a failure."""
    with pytest.raises(Pruned, match="pruned by the test"):
        train(*SHORT, *TWO, *ends(0, "pruned"))
    assert not (tmp_path / "run" / "error.txt").exists()


@pytest.mark.faults
@pytest.mark.usefixtures("forked")
def test_infinite_loss_in_one_shard_ends_all_processes(train: Train) -> None:
    """Only the other process's shard has the infinite loss. Both find it in the same epoch, and none waits."""
    objective = ("objective._target_=helpers.process_watchers.InfiniteElsewhere", "~objective.entropy")
    with pytest.raises(RunError, match=r"loss .*inf.* epoch 1, step 1 of 3") as error:
        train(*SHORT, *TWO, *objective)
    assert error.value.__cause__ is None, "rank 0 found the loss itself, not through a lost connection"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("signum", "code", "last_line"),
    [(signal.SIGKILL, -signal.SIGKILL, ""), (signal.SIGINT, 130, "stopped by SIGINT; to resume, ")],
    ids=["KILL", "INT"],
)
def test_other_processes_end_with_rank_0(tmp_path: Path, signum: int, code: int, last_line: str) -> None:
    """The other process ends soon after rank 0 and prints nothing."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "attnmosaic.train", *SHORT, *TWO, "schedule.epochs=100000", "progress=quiet"]
    process = subprocess.Popen([*command, f"hydra.run.dir={run}"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (other,) = children(process.pid)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip().rpartition("\n")[2].startswith(last_line)
    assert last_line or not err
    while alive(other) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(other)


@pytest.mark.faults
def test_other_process_ends_if_rank_0_ends_before_it_serves_the_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        info = RankInfo(1, 2, 1, 2, *listener.getsockname())
        process = subprocess.Popen(
            [sys.executable, "-m", "attnmosaic.training.ranks"],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | info.environ(),
        )  # fmt: skip
        listener.settimeout(100)
        listener.accept()
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.faults
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_jobs_of_a_sweep_with_two_processes(
    cli: Cli, tmp_path: Path, train: Train, launcher: str, request: pytest.FixtureRequest
) -> None:
    """Two processes train each job, and the sweep has no other jobs."""
    # Jobs of joblib are separate processes, and do not use the fork server of the tests for their other processes.
    seeds = ["0", "1"] if launcher == "basic" else ["1"]
    settings = (*SHORT, *TWO, f"seed.all={','.join(seeds)}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    code, _, err = cli("train", "-m", f"hydra/launcher={launcher}", *settings)
    assert code == 0, err
    results = [json.loads(file.read_text()) for file in sorted((tmp_path / "sweep").rglob("result.json"))]
    assert [(result["processes"], result["seed"]["data"]) for result in results] == [(2, int(seed)) for seed in seeds]
    assert results[-1]["metrics"] == train(*SHORT, *TWO, "seed.all=1")
