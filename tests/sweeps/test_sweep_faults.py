"""Sweeps whose jobs are killed or have bugs, and two commands that run the same sweep."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from helpers.commands import Cli
from helpers.finished_runs import result
from helpers.settings import ROOT, SMALL

from attnmosaic.runs.run import Run
from attnmosaic.sweeps.hydra_callback import SKIPPED_JOBS

pytestmark = pytest.mark.faults

FATE = ("+callbacks.fate._target_=helpers.user_code.Fate", "+callbacks.fate.folder=${run_dir}")
TWO_ROWS = (
    "reproduce=gradients", "experiment=gradients/joint,gradients/type2", "scale=smoke", "trainer.accelerator=cpu",
)  # fmt: skip
FOLDER = Path("outputs") / "smoke" / "gradients"


def test_failed_and_killed_jobs_do_not_affect_others(cli: Cli, tmp_path: Path) -> None:
    """One of three jobs has a bug and one is killed; the third has the same results as without the launcher."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [environ.get("PYTHONPATH")])])
    environ |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "70,71"}
    overrides = [*SMALL, "schedule.k=1", "schedule.epochs=2", "seed.all=0", *FATE]
    sweep = ["+callbacks.fate.fate=bug,works,killed", "trainer.accelerator=auto", "hydra.sweep.dir=three"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", *overrides, *sweep, *launcher, "-m"],
        cwd=tmp_path, capture_output=True, text=True, env=environ,
    )  # fmt: skip
    threads = max(1, joblib.cpu_count() // 3)
    assert process.stderr.startswith(f"3 jobs, 2 at once, threads per process: {threads}\n"), process.stderr
    jobs = [tmp_path / "three" / str(job) for job in range(3)]
    bug, works, killed = jobs

    assert process.returncode == 1
    assert "JobError: ZeroDivisionError: a bug of the user's\nTraceback" in process.stderr
    assert "in on_train_start" in process.stderr
    assert "ZeroDivisionError: a bug of the user's" in (bug / "train.log").read_text()
    for file in (killed / "train.log", killed / "error.txt"):
        line = file.read_text().splitlines()[-1]
        assert re.match(r"job 2 \(.*\): its process was killed by SIGKILL: out of memory", line)
    assert [job for job in jobs if (job / "result.json").exists()] == [works]
    ends = [line for line in process.stderr.splitlines() if line.startswith(("done", "failed", "stopped"))]
    assert sorted(re.sub(r": .*", "", line) for line in ends) == [
        f"{state}  gaussian seed 0 callbacks.fate.fate={fate}"
        for state, fate in (("done", "works"), ("failed", "bug"), ("failed", "killed"))
    ]

    # Lines on the terminal have a prefix, because the jobs share it; lines in a job's log have none.
    assert re.search(r"^1 \| .*held_out", process.stdout, flags=re.M)
    assert not re.search(r"^1 \| ", (works / "train.log").read_text(), flags=re.M)

    facts = [json.loads((job / "facts.json").read_text()) for job in jobs]
    assert len({fact["process"] for fact in facts}) == 3
    assert {fact["parent's threads"] for fact in facts} <= {1, None}
    assert not any(fact["cuda is spoilt"] for fact in facts)
    assert [fact["CUDA_VISIBLE_DEVICES"] for fact in facts] == ["70", "71", "70"]
    assert {fact["OMP_NUM_THREADS"] for fact in facts} == {str(threads)}

    code, _, _ = cli(
        "train", *overrides, "+callbacks.fate.fate=works", f"compute.threads={threads}", "hydra.sweep.dir=two", "-m"
    )
    assert code == 0
    alone = tmp_path / "two" / "0"
    assert result(works)["threads"] == result(alone)["threads"] == threads
    assert result(works)["metrics"] == result(alone)["metrics"]


def test_two_commands_share_one_sweep(tmp_path: Path) -> None:
    """Both start at the same time; each row is trained exactly once, by one of them."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    record = (
        "+callbacks.record_process._target_=helpers.user_code.RecordProcess",
        f"+callbacks.record_process.file={tmp_path / 'processes.txt'}",
    )
    command = [
        sys.executable, "-m", "attnmosaic.train", *TWO_ROWS, "seed.all=0,1", "hydra/launcher=joblib", *record,
        "callbacks.pictures=null", "-m",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    codes = {process.returncode for process in processes}
    assert codes <= {0, SKIPPED_JOBS}, printed
    assert 0 in codes or all("skipped" in text for text in printed)
    rows = [tmp_path / FOLDER / row / f"seed{seed}" for row in ("joint", "type2") for seed in (0, 1)]
    assert {Run(row).state for row in rows} == {"finished"}
    begun = [line.split() for line in (tmp_path / "processes.txt").read_text().splitlines()]
    assert sorted(folder for _, folder in begun) == sorted(map(str, rows))
    assert not any("failed" in text for text in printed)
