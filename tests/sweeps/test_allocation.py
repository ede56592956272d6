"""How many jobs of a sweep run in parallel, and which cores, memory and GPUs they get."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from omegaconf import OmegaConf

from attnmosaic.core.errors import UserError
from attnmosaic.core.resources import free_gb, requested_threads, visible_gpus
from attnmosaic.sweeps.allocation import gpu_groups, gpus_per_job, job_environment, jobs_and_threads
from attnmosaic.training.runtime import job_globals


@pytest.mark.parametrize(
    ("jobs", "cores", "limits", "at_once", "threads"),
    [
        (10, 2, {}, 2, 1),
        (2, 16, {}, 2, 8),
        (3, 16, {}, 3, 5),
        (100, 16, {}, 16, 1),
        (1, 16, {}, 1, None),
        (10, 1, {}, 1, 1),
        # The number of threads depends neither on the free memory nor on the number of jobs in parallel.
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
def test_number_of_parallel_jobs_and_threads(
    jobs: int, cores: int, limits: dict[str, Any], at_once: int, threads: int | None
) -> None:
    assert jobs_and_threads(jobs, cores, **limits) == (at_once, threads)


@pytest.mark.parametrize("bad", [{"n_jobs": 0}, {"n_jobs": "two"}, {"gb_per_job": 0}, {"jobs_per_gpu": -1}])
def test_invalid_numbers_are_user_errors(bad: dict[str, Any]) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=rf"hydra\.launcher\.{key}: got {bad[key]}, needs a"):
        jobs_and_threads(2, 2, **bad)


@pytest.mark.parametrize(
    ("compute_threads", "environ", "threads"),
    [
        (None, {}, None),
        (None, {"OMP_NUM_THREADS": "3"}, 3),
        (None, {"OMP_NUM_THREADS": "4,2"}, 4),
        (None, {"OMP_NUM_THREADS": "many"}, None),
        (2, {"OMP_NUM_THREADS": "3"}, 2),
        (0, {}, None),
    ],
)
def test_number_of_threads_set_by_the_user(
    compute_threads: object, environ: Mapping[str, str], threads: int | None
) -> None:
    assert requested_threads(compute_threads, environ) == threads


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


def test_jobs_use_gpus_in_turn() -> None:
    assert job_environment(0, None, []) == {}
    assert job_environment(5, 2, []) == {"OMP_NUM_THREADS": "2"}
    gpus = [job_environment(job, None, ["4", "6", "7"])["CUDA_VISIBLE_DEVICES"] for job in range(5)]
    assert gpus == ["4", "6", "7", "4", "6"]


@pytest.mark.parametrize(
    ("trainer", "gpus"),
    [
        ({}, 1),
        ({"accelerator": "auto", "devices": 1}, 1),
        ({"accelerator": "gpu", "devices": 2}, 2),
        ({"devices": [3]}, 1),
        ({"devices": [0, 1, 2]}, 3),
        ({"devices": "auto"}, None),
        ({"devices": -1}, None),
        ({"accelerator": "cpu", "devices": 2}, 0),
    ],
)
def test_number_of_gpus_of_a_run(trainer: dict[str, Any], gpus: int | None) -> None:
    assert gpus_per_job(OmegaConf.create({"trainer": trainer})) == gpus


@pytest.mark.parametrize(
    ("gpus_of_job", "groups"),
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
def test_jobs_use_groups_of_gpus_in_turn(gpus_of_job: int | None, groups: list[str]) -> None:
    """No GPU is in two groups."""
    gpus = ["4", "6", "7", "8", "9"]
    assert [",".join(group) for group in gpu_groups(gpus, gpus_of_job)] == groups
    assert gpu_groups([], gpus_of_job) == []
    visible = [job_environment(job, None, gpus, gpus_of_job).get("CUDA_VISIBLE_DEVICES") for job in range(7)]
    assert visible == ([groups[job % len(groups)] for job in range(7)] if groups else [None] * 7)


GB = 10**9


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/", {}, 8.192),
        # cgroup version 2: the limit of the parent group also counts, and cached files do not count as used.
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
        # cgroup version 1, in a container that does not have the path that it has outside.
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


def test_number_of_threads_of_a_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's default, unless this process can use fewer cores than that."""
    default = torch.get_num_threads()
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
        torch.set_num_threads(default)
