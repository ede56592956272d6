"""Sweeps with ``hydra/launcher=joblib``: how many jobs at once, and each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from helpers.commands import Cli
from helpers.finished_runs import result
from helpers.settings import ROOT, SMALL
from helpers.terminal import Screen
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

import hydra_plugins.attnmosaic_launcher as attnmosaic_launcher
from attnmosaic.core.errors import UserError
from attnmosaic.core.resources import asked_threads, free_gb, visible_gpus
from attnmosaic.sweeps import server
from attnmosaic.sweeps.allocation import devices, environment, groups, plan
from attnmosaic.training.runtime import job_globals

pytestmark = pytest.mark.runs

Plugins.instance()  # executes the modules of plugins again, so first of all
FATE = ("+callbacks.fate._target_=helpers.user_code.Fate", "+callbacks.fate.folder=${run_dir}")


@pytest.mark.parametrize(
    ("jobs", "cores", "given", "at_once", "threads"),
    [
        (10, 2, {}, 2, 1),
        (2, 16, {}, 2, 8),
        (3, 16, {}, 3, 5),
        (100, 16, {}, 16, 1),
        (1, 16, {}, 1, None),
        (10, 1, {}, 1, 1),
        # Threads are the same whatever is free, and however many run at once.
        (8, 16, {"free_gb": 6.2}, 4, 2),
        (8, 16, {"free_gb": 6.2, "gb_per_job": 3}, 2, 2),
        (8, 16, {"free_gb": 0.1}, 1, 2),
        (8, 16, {"n_jobs": 1}, 1, 2),
        (8, 16, {"n_jobs": 8}, 8, 2),
        (5, 16, {"gpus": 1}, 4, 3),
        (10, 16, {"gpus": 2}, 8, 1),
        (10, 2, {"gpus": 8}, 2, 1),
        (10, 16, {"gpus": 8, "jobs_per_gpu": 1}, 8, 1),
        (10, 16, {"threads": 4}, 4, 4),
        (10, 2, {"threads": 4}, 1, 4),
        (1, 16, {"n_jobs": 1, "free_gb": 0.1}, 1, None),
        (10, 2, {"n_jobs": 5, "free_gb": 1, "gpus": 1, "jobs_per_gpu": 1}, 5, 1),
        (3, 16, {"n_jobs": 5, "threads": 2}, 3, 2),
        # Each of two processes has its own threads and memory.
        (10, 16, {"processes": 2}, 8, 1),
        (2, 16, {"processes": 2}, 2, 4),
        (8, 16, {"processes": 2, "free_gb": 6.2}, 2, 1),
    ],
)
def test_how_many_jobs_at_once(jobs: int, cores: int, given: dict[str, Any], at_once: int, threads: int | None) -> None:
    assert plan(jobs, cores, **given) == (at_once, threads)


@pytest.mark.parametrize("bad", [{"n_jobs": 0}, {"n_jobs": "two"}, {"gb_per_job": 0}, {"jobs_per_gpu": 0.5}])
def test_numbers_that_will_not_do(bad: dict[str, Any]) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=rf"hydra\.launcher\.{key}: got {bad[key]}, needs a"):
        plan(2, 2, **bad)


@pytest.mark.parametrize(
    ("compute_threads", "environ", "asked"),
    [
        (None, {}, None),
        (None, {"OMP_NUM_THREADS": "3"}, 3),
        (None, {"OMP_NUM_THREADS": "4,2"}, 4),
        (None, {"OMP_NUM_THREADS": "many"}, None),
        (2, {"OMP_NUM_THREADS": "3"}, 2),
        (0, {}, None),
    ],
)
def test_threads_the_user_asks_for(compute_threads: object, environ: Mapping[str, str], asked: int | None) -> None:
    assert asked_threads(compute_threads, environ) == asked


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "3"}, ["3"]),
        ({"CUDA_VISIBLE_DEVICES": "7, GPU-8b5e,9"}, ["7", "GPU-8b5e", "9"]),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ["1"]),
    ],
)
def test_visible_gpus(tmp_path: Path, environ: Mapping[str, str], gpus: list[str]) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus(environ, tmp_path) == gpus


def test_jobs_take_turns_at_gpus() -> None:
    assert environment(0, None, []) == {}
    assert environment(5, 2, []) == {"OMP_NUM_THREADS": "2"}
    turns = [environment(job, None, ["4", "6", "7"])["CUDA_VISIBLE_DEVICES"] for job in range(5)]
    assert turns == ["4", "6", "7", "4", "6"]


@pytest.mark.parametrize(
    ("trainer", "takes"),
    [
        ({}, 1),
        ({"accelerator": "auto", "devices": 1}, 1),
        ({"accelerator": "gpu", "devices": 2}, 2),
        ({"devices": "2"}, 2),
        ({"devices": [3]}, 1),
        ({"devices": [0, 1, 2]}, 3),
        ({"devices": "0,1"}, 2),
        ({"devices": "auto"}, None),
        ({"devices": -1}, None),
        ({"devices": "-1"}, None),
        ({"devices": "many"}, 1),
        ({"accelerator": "cpu", "devices": 2}, 0),
    ],
)
def test_gpus_that_a_run_takes(trainer: dict[str, Any], takes: int | None) -> None:
    assert devices(OmegaConf.create(trainer)) == takes


@pytest.mark.parametrize(
    ("takes", "turns"),
    [
        (0, []),
        (1, ["4", "6", "7", "8", "9"]),
        (2, ["4,6", "7,8"]),
        (3, ["4,6,7"]),
        (5, ["4,6,7,8,9"]),
        (9, ["4,6,7,8,9"]),
        (None, ["4,6,7,8,9"]),
    ],
)
def test_runs_on_several_gpus_take_turns(takes: int | None, turns: list[str]) -> None:
    """No GPU is in two groups."""
    gpus = ["4", "6", "7", "8", "9"]
    assert [",".join(group) for group in groups(gpus, takes)] == turns
    assert groups([], takes) == []
    seen = [environment(job, None, gpus, takes).get("CUDA_VISIBLE_DEVICES") for job in range(7)]
    assert seen == ([turns[job % len(turns)] for job in range(7)] if turns else [None] * 7)


def test_jobs_on_several_gpus(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job gets as many as its own trainer.devices says, and there are no more jobs at once than groups of them."""
    monkeypatch.setattr(server, "PRELOAD", ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(attnmosaic_launcher.AttnmosaicLauncher, "_task", lambda self: ("helpers.light_jobs", "gpus"))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    monkeypatch.setattr("attnmosaic.core.resources.free_gb", lambda: None)
    returned: list[JobReturn] = []
    launch = attnmosaic_launcher.AttnmosaicLauncher.launch

    def keep(*args: Any, **kwargs: Any) -> list[JobReturn]:
        returned.extend(launch(*args, **kwargs))
        return returned

    monkeypatch.setattr(attnmosaic_launcher.AttnmosaicLauncher, "launch", keep)
    launcher = ("hydra/launcher=joblib", "hydra.launcher.jobs_per_gpu=1", "trainer.devices=2")
    code, _, err = cli("train", "seed.all=0,1,2", *launcher, "-m")
    assert code == 0, err
    assert err.startswith("3 jobs, 2 at once, threads of each: 5\n")
    assert [job.return_value for job in returned] == ["3,4", "5,6", "3,4"]
    returned.clear()
    code, _, err = cli("train", "trainer.devices=1,4", "hydra/launcher=joblib", "-m")
    assert code == 0, err
    assert [job.return_value for job in returned] == ["3", "3,4,5,6"]


GB = 10**9


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/", {}, 8.192),
        # Version 2: the limit above the group counts, too, and what is cached can be given back.
        (
            "0::/slice/job",
            {
                **{"fs/cgroup/slice/memory.max": 5 * GB, "fs/cgroup/slice/memory.current": 4 * GB},
                "fs/cgroup/slice/memory.stat": f"anon 7\ninactive_file {2 * GB}\n",
                **{"fs/cgroup/slice/job/memory.max": "max", "fs/cgroup/slice/job/memory.current": GB},
                "fs/cgroup/slice/job/memory.stat": "inactive_file 0\n",
            },
            3.0,
        ),
        # Version 1, in a container that does not see the path it has outside.
        (
            "3:cpu:/outside\n4:memory:/outside/123\n0::/\n",
            {
                "fs/cgroup/memory/memory.limit_in_bytes": 4 * GB,
                "fs/cgroup/memory/memory.usage_in_bytes": GB,
                "fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 2}\n",
            },
            3.5,
        ),
    ],
)
def test_free_memory(tmp_path: Path, groups: str, files: dict[str, object], free: float) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(f"{content}")
    assert free_gb(tmp_path) == pytest.approx(free)
    assert free_gb(tmp_path / "no linux") is None


def test_threads_of_a_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own number, unless this process may use fewer cores than the machine has."""
    own = torch.get_num_threads()
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    try:
        torch.set_num_threads(4)
        for omp, threads, used in ((None, None, 3), (None, 5, 5), ("4", None, 4), ("4", 2, 2)):
            if omp is None:
                monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            else:
                monkeypatch.setenv("OMP_NUM_THREADS", omp)
            with job_globals(0, threads, "highest"):
                assert torch.get_num_threads() == used
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(own)


def test_without_the_package(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attnmosaic_launcher, "find_spec", lambda name: None)
    code, _, err = cli("train", "hydra/launcher=joblib", "seed.all=0,1", "-m")
    assert code == 2
    assert err.startswith("error: hydra/launcher=joblib: needs packages")
    assert f"{sys.executable} -m pip install 'cloudpickle>=3'\n" in err
    assert not (tmp_path / "outputs").exists()


def test_a_slip_in_a_job(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one line of the basic launcher, and in the job's log."""
    monkeypatch.setattr(server, "PRELOAD", ())  # a slip is told before anything heavy is imported
    code, _, err = cli("train", *SMALL, "data.patches=1", "hydra/launcher=joblib", "-m")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: data.patches: got 1, needs")
    assert "Traceback" not in err
    (log,) = tmp_path.glob("outputs/sweeps/gaussian/*/0/train.log")
    assert "data.patches: got 1, needs" in log.read_text()
    code, _, err = cli("train", *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "-m")
    assert (code, err) == (2, "error: hydra.launcher.n_jobs: got 0, needs a whole number of at least 1\n")


def test_what_comes_back(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return values in the jobs' order, and a line on a process that ended itself."""
    monkeypatch.setattr(server, "PRELOAD", ())
    returned: list[JobReturn] = []
    launch = attnmosaic_launcher.AttnmosaicLauncher.launch

    def keep(*args: Any, **kwargs: Any) -> list[JobReturn]:
        returned.extend(launch(*args, **kwargs))
        return returned

    monkeypatch.setattr(attnmosaic_launcher.AttnmosaicLauncher, "launch", keep)
    monkeypatch.setattr(attnmosaic_launcher.AttnmosaicLauncher, "_task", lambda self: ("helpers.light_jobs", "answer"))
    code, _, err = cli("train", "seed.all=5,3,2,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "-m")
    assert code == 1
    end = "its process ended with exit code 3 before the job was done"
    assert err.splitlines()[-1] == f"error: job 2 (seed.all=2): {end}"
    assert [job.overrides for job in returned] == [[f"seed.all={seed}"] for seed in (5, 3, 2, 4)]
    assert [job.status.name for job in returned] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert [job.return_value for job in returned if job.status.name == "COMPLETED"] == [50, 30, 40]


def test_live(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever jobs print goes above the bars, whole; how each ended, when it does."""
    monkeypatch.setattr(server, "PRELOAD", ())
    monkeypatch.setattr(attnmosaic_launcher.AttnmosaicLauncher, "_task", lambda self: ("helpers.light_jobs", "speak"))
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "progress=live")
    code, out, err = cli("train", "seed.all=5,2,4", *launcher, "-m")
    assert code == 1
    screen = Screen()
    screen.write(err)
    lines = screen.lines()
    for seed in (5, 2, 4):
        assert lines.count(f"100% of {seed}") == 1
        # What a process printed that ends itself may never have left it.
        assert lines.count(f"printed by {seed}") == 1
        (first,) = (number for number, line in enumerate(lines) if line == f"gaussian seed {seed} | warned by {seed},")
        assert lines[first + 1] == f"gaussian seed {seed} | in two lines"
    assert [line for line in lines if line.startswith(("done  ", "failed  ", "stopped  "))] == [
        "done  gaussian seed 5",
        "failed  gaussian seed 2: its process ended with exit code 3 before the job was",
        "done  gaussian seed 4",
    ]
    assert any(re.fullmatch(r"2/3 done, 1 failed in \d+ s", line) for line in lines)
    assert screen.wrapped == 1  # Hydra's own line on the job that failed
    assert out.startswith("\nRuns of gaussian")
    assert "printed" not in out


def test_a_sweep(cli: Cli, tmp_path: Path) -> None:
    """Two of six jobs hit a bug and two are killed; the others give what they give one after another."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [environ.get("PYTHONPATH")])])
    environ |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "70,71"}
    overrides = [*SMALL, "schedule.k=1", "schedule.epochs=2", "seed.all=0,1", *FATE]
    own = ["+callbacks.fate.fate=bug,works,killed", "trainer.accelerator=auto", "hydra.sweep.dir=six"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", *overrides, *own, *launcher, "-m"],
        cwd=tmp_path, capture_output=True, text=True, env=environ,
    )  # fmt: skip
    threads = max(1, joblib.cpu_count() // 6)
    assert done.stderr.startswith(f"6 jobs, 2 at once, threads of each: {threads}\n"), done.stderr
    jobs = [tmp_path / "six" / str(job) for job in range(6)]
    bugs, works, killed = jobs[::3], jobs[1::3], jobs[2::3]

    # The first that failed is told, with the trace of its own process; each has its error in its log.
    assert done.returncode == 1
    assert "JobError: ZeroDivisionError: a bug of the user's\nTraceback" in done.stderr
    assert "in on_train_start" in done.stderr
    for job in bugs:
        assert "ZeroDivisionError: a bug of the user's" in (job / "train.log").read_text()
    for job in killed:
        line = (job / "train.log").read_text().splitlines()[-1]
        assert line.startswith(f"job {job.name} (")
        assert "its process was killed by SIGKILL: out of memory?" in line
    assert [job for job in jobs if (job / "result.json").exists()] == works

    told = [line for line in done.stderr.splitlines() if line.startswith(("done", "failed", "stopped"))]
    assert sorted(re.sub(r"(: )?\(?(accuracy|its process|ZeroDiv).*", "", line) for line in told) == [
        "done  gaussian seed 0 callbacks.fate.fate=works", "done  gaussian seed 1 callbacks.fate.fate=works",
        "failed  gaussian seed 0 callbacks.fate.fate=bug", "failed  gaussian seed 0 callbacks.fate.fate=killed",
        "failed  gaussian seed 1 callbacks.fate.fate=bug", "failed  gaussian seed 1 callbacks.fate.fate=killed",
    ]  # fmt: skip
    assert all(("killed by SIGKILL" in line) == ("fate=killed" in line) for line in told)
    assert "TensorBoard: tensorboard --logdir six" in done.stdout

    # The terminal is shared, the log is not.
    for job in works:
        assert re.search(rf"^{job.name} \| .*held_out", done.stdout, flags=re.M)
        assert not re.search(rf"^{job.name} \| ", (job / "train.log").read_text(), flags=re.M)

    facts = [json.loads((job / "facts.json").read_text()) for job in jobs]
    assert len({fact["process"] for fact in facts}) == 6
    assert {fact["parent's threads"] for fact in facts} <= {1, None}
    assert not any(fact["cuda is spoilt"] for fact in facts)
    assert [fact["CUDA_VISIBLE_DEVICES"] for fact in facts] == ["70", "71"] * 3
    assert {fact["OMP_NUM_THREADS"] for fact in facts} == {str(threads)}

    code, _, _ = cli(
        "train", *overrides, "+callbacks.fate.fate=works", f"compute.threads={threads}", "hydra.sweep.dir=two", "-m"
    )
    assert code == 0
    for job, alone in zip(works, [tmp_path / "two" / "0", tmp_path / "two" / "1"], strict=True):
        assert result(job)["threads"] == result(alone)["threads"] == threads
        assert result(job)["metrics"] == result(alone)["metrics"]
