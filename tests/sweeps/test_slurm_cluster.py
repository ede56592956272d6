"""A sweep on a real Slurm cluster of one node, with kills, requeues and preemption."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.commands import Cli, check_line
from helpers.finished_runs import check_same
from helpers.settings import ALL_CHECKPOINTS, ROOT, SMALL
from helpers.slurm_cluster import Cluster, slurm, wait_for

from attnmosaic.runs.run import Run

LAUNCHER = "hydra/launcher=submitit_slurm"
FATES = ("works", "holds1", "holds2", "holds3", "bug", "killed")
ROWS = (
    *SMALL,
    "schedule.k=2",
    "schedule.epochs=5",
    "callbacks.pictures=null",
    "hydra.sweep.dir=sweep",
    *ALL_CHECKPOINTS,
    "+callbacks.fate._target_=helpers.user_code.Holds",
    "+callbacks.fate.folder=${run_dir}",
    "+callbacks.fate.until=go",
    f"+callbacks.fate.fate={','.join(FATES)}",
)


@pytest.mark.faults
def test_sweep_on_a_cluster(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitting command is killed, repeated, interrupted and repeated; jobs are requeued, signalled, preempted."""
    with slurm(cpus=len(FATES)) as cluster:
        for name, value in cluster.environ.items():
            monkeypatch.setenv(name, value)
        path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        monkeypatch.setenv("PYTHONPATH", path)
        options = (LAUNCHER, "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null")
        code, _, err = cli("train", *ROWS, *options, "hydra.launcher.partition=nope", "-m")
        check_line(code, err, r"hydra\.launcher: .* invalid partition specified: nope")
        _check_sweep(cluster, [sys.executable, "-m", "attnmosaic.train", *ROWS, *options, "-m"])
        submitted = set(cluster.jobs())
        code, out, err = cli("train", *ROWS[:-1], f"+callbacks.fate.fate={','.join(FATES[:4])}", *options, "-m")
        assert code == 0, err
        assert set(cluster.jobs()) <= submitted  # finished jobs are not submitted again
        assert err.count("done before") == err.count("\n") == 4
        assert re.search(r"^ gaussian +[\d. ]+ 1 +4 finished", out, flags=re.M)
        _check_experiments(cli, options)
    run_overrides = [override for override in ROWS if not override.startswith(("hydra.sweep", "+callbacks.fate.fate"))]
    code, _, err = cli("train", *run_overrides, "+callbacks.fate.fate=works", "hydra.run.dir=uninterrupted")
    assert code == 0, err
    for number in range(4):
        check_same(Path("uninterrupted"), Path("sweep", str(number)))
        assert Path("uninterrupted/gradients.csv").read_bytes() == Path(f"sweep/{number}/gradients.csv").read_bytes()


def _check_experiments(cli: Cli, options: tuple[str, ...]) -> None:
    """Checks a sweep over experiments: its folder's name has no experiment, and its jobs plot their own figures."""
    sweep = ("experiment=gaussian,gaussian_type1", "scale=smoke", "trainer.accelerator=cpu")
    code, _, err = cli("train", *sweep, *options, "-m")
    assert code == 0, err
    assert "plot" not in err
    (plan,) = Path("outputs").rglob("sweep.json")
    assert plan.parent.parent == Path("outputs/smoke/sweeps")
    assert {*Path("outputs").rglob("result.json")} == {plan.parent / job / "result.json" for job in ("0", "1")}
    assert {*Path("outputs").rglob("mosaics.png")} == {plan.parent / job / "mosaics.png" for job in ("0", "1")}


def _check_sweep(cluster: Cluster, command: list[str]) -> None:
    rows = [Path("sweep", str(number)) for number in range(len(FATES))]
    held = rows[1:4]
    states = lambda: [cluster.jobs().get(f"{array}_{n}", "missing") for n in range(len(FATES))]  # noqa: E731

    with _command(command, "first") as first:
        wait_for(lambda: "logs: sweep/slurm" in Path("first.err").read_text(encoding="utf-8"))
        err = Path("first.err").read_text(encoding="utf-8")
        array = re.findall(r"^Slurm has 6 jobs: (\d+); logs: sweep/slurm$", err, flags=re.M)[0]
        plan = json.loads(Path("sweep/sweep.json").read_text(encoding="utf-8"))
        assert len(plan["jobs"]) == 6  # before any job begins
        wait_for(lambda: all((row / "held").exists() for row in held))
        wait_for(lambda: [state for state in states() if state != "RUNNING"] == ["COMPLETED", "FAILED", "FAILED"])
        first.kill()
    assert [Run(row).state for row in rows[:5]] == ["finished", "running", "running", "running", "failed"]

    # Three jobs still run, one has finished, and the others are submitted again.
    with _command(command, "second") as second:
        wait_for(lambda: "logs: sweep/slurm" in Path("second.err").read_text(encoding="utf-8"))
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 130
    err = Path("second.err").read_text(encoding="utf-8")
    arrays = re.findall(r"^Slurm has 5 jobs, 3 of them submitted before: (\d+ \d+); logs:", err, flags=re.M)[0]
    assert f"scancel {arrays}\n" in err
    assert re.match(r"error: interrupted|stopped by SIGINT", err.splitlines()[-1])

    with _command(command, "third") as third:
        wait_for(lambda: "submitted before" in Path("third.err").read_text(encoding="utf-8"))
        cluster.run("scontrol", "requeue", f"{array}_1")
        cluster.run("scancel", "--signal=USR2", f"{array}_2")
        urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--wrap", "sleep 1").strip()
        wait_for(lambda: cluster.jobs()[urgent] == "COMPLETED")
        assert third.poll() is None
        Path("go").touch()
        assert third.wait(300) == 1

    for number, word in ((1, None), (2, "Caught signal SIGUSR2"), (3, "SIGTERM from Slurm")):
        assert int(cluster.detail(f"{array}_{number}", "Restarts")) >= 1
        assert Path(f"sweep/{number}/held").read_text(encoding="utf-8").startswith("0\n1\n")
        assert "resuming after epoch" in (rows[number] / "train.log").read_text()
        if word is not None:
            assert word in Path(f"sweep/slurm/{array}_{number}_0_log.out").read_text(encoding="utf-8")
    assert [Run(row).state for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert "ZeroDivisionError: a bug of the user's" in (Run(rows[4]).error or "")
    assert re.search(
        r"Slurm job \S+ ended \(FAILED\); see sweep/slurm/\S+_log\.err$", (Run(rows[5]).error or "").strip()
    )
    err, out = Path("third.err").read_text(encoding="utf-8"), Path("third.out").read_text(encoding="utf-8")
    lines = [line for line in err.splitlines() if line.startswith(("done", "failed", "stopped", "left"))]
    # A job that failed in the second command can be reported twice.
    ends = [*{line.partition(":")[0]: line for line in lines}.values()]
    assert len(ends) == 6, err
    failures = sorted(line.split("fate=")[1] for line in ends if line.startswith("failed"))
    assert failures[0] == "bug: ZeroDivisionError: a bug of the user's"
    assert re.match(r"killed: Slurm job \S+ ended \(FAILED\); see sweep/slurm/", failures[1])
    assert [line.split(":")[0] for line in ends].count("done before  gaussian seed 0 callbacks.fate.fate=works") == 1
    assert sum(line.startswith("done") for line in ends) == 4
    submitted = json.loads(Path("sweep/slurm/submitted.json").read_text(encoding="utf-8"))
    assert [submitted[str(number)] for number in range(4)] == [f"{array}_{number}" for number in range(4)]
    assert "JobError: ZeroDivisionError: a bug of the user's" in err
    assert re.search(r"^ gaussian +[\d. ]+ 1 +4 finished, 2 failed", out, flags=re.M)


@contextmanager
def _command(command: list[str], name: str) -> Iterator[subprocess.Popen[str]]:
    with Path(f"{name}.out").open("w", encoding="utf-8") as out, Path(f"{name}.err").open("w", encoding="utf-8") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
