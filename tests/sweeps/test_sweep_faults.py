"""Sweeps whose jobs are killed or hit bugs, and two commands at work on one sweep."""

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


def test_jobs_that_fail_and_jobs_that_are_killed(cli: Cli, tmp_path: Path) -> None:
    """One of three jobs hits a bug and one is killed; the other has the numbers that it has without the launcher."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [environ.get("PYTHONPATH")])])
    environ |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "70,71"}
    overrides = [*SMALL, "schedule.k=1", "schedule.epochs=2", "seed.all=0", *FATE]
    own = ["+callbacks.fate.fate=bug,works,killed", "trainer.accelerator=auto", "hydra.sweep.dir=three"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", *overrides, *own, *launcher, "-m"],
        cwd=tmp_path, capture_output=True, text=True, env=environ,
    )  # fmt: skip
    threads = max(1, joblib.cpu_count() // 3)
    assert done.stderr.startswith(f"3 jobs, 2 at once, threads of each: {threads}\n"), done.stderr
    jobs = [tmp_path / "three" / str(job) for job in range(3)]
    bug, works, killed = jobs

    assert done.returncode == 1
    assert "JobError: ZeroDivisionError: a bug of the user's\nTraceback" in done.stderr
    assert "in on_train_start" in done.stderr
    assert "ZeroDivisionError: a bug of the user's" in (bug / "train.log").read_text()
    for file in (killed / "train.log", killed / "error.txt"):
        line = file.read_text().splitlines()[-1]
        assert re.match(r"job 2 \(.*\): its process was killed by SIGKILL: out of memory", line)
    assert [job for job in jobs if (job / "result.json").exists()] == [works]
    ends = [line for line in done.stderr.splitlines() if line.startswith(("done", "failed", "stopped"))]
    assert sorted(re.sub(r": .*", "", line) for line in ends) == [
        f"{state}  gaussian seed 0 callbacks.fate.fate={fate}"
        for state, fate in (("done", "works"), ("failed", "bug"), ("failed", "killed"))
    ]

    # The terminal is shared, the log is not.
    assert re.search(r"^1 \| .*held_out", done.stdout, flags=re.M)
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


def test_two_processes_in_one_sweep(tmp_path: Path) -> None:
    """Started at once: each row is trained once, by one of them, and together they are all."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    noted = ("+callbacks.noted._target_=helpers.user_code.Noted", f"+callbacks.noted.file={tmp_path / 'noted.txt'}")
    command = [
        sys.executable, "-m", "attnmosaic.train", *TWO_ROWS, "seed.all=0,1", "hydra/launcher=joblib", *noted,
        "callbacks.pictures=null", "-m",
    ]  # fmt: skip
    started = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    codes = {process.returncode for process in started}
    assert codes <= {0, SKIPPED_JOBS}, printed
    assert 0 in codes or all("skipped" in text for text in printed)
    rows = [tmp_path / FOLDER / row / f"seed{seed}" for row in ("joint", "type2") for seed in (0, 1)]
    assert {Run(row).state for row in rows} == {"finished"}
    begun = [line.split() for line in (tmp_path / "noted.txt").read_text().splitlines()]
    assert sorted(folder for _, folder in begun) == sorted(map(str, rows))
    assert not any("failed" in text for text in printed)
