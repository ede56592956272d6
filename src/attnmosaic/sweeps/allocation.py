"""Decides how many jobs of a sweep run at once, and which cores and GPUs each of them gets."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.core.errors import UserError


def jobs_and_threads(
    jobs: int,
    cores: int,
    *,
    processes: int = 1,
    n_jobs: int | None = None,
    threads: int | None = None,
    free_gb: float | None = None,
    gb_per_job: float = 1.5,
    gpus: int = 0,
    jobs_per_gpu: int = 4,
) -> tuple[int, int | None]:
    """Decides how many jobs run at the same time, and how many CPU threads each of them uses.

    Args:
        jobs: number of jobs of the sweep.
        cores: number of CPU cores that the sweep can use.
        processes: number of processes of one job; each process has its own threads and needs its own memory.
        n_jobs: number of jobs at the same time, set by the user; no other limit applies then.
        threads: number of threads of one process, set by the user.
        free_gb: free memory; None if it is unknown.
        gb_per_job: memory that one process of a job needs.
        gpus: number of GPUs, or of groups of GPUs if a job uses several; 0 if the jobs use no GPU.
        jobs_per_gpu: number of jobs that share one GPU.

    Returns:
        (jobs at the same time, threads of each process). The number of jobs is the largest that all limits allow, but
        at least one. The number of threads depends on the cores and on the number of jobs only, and not on the free
        memory, because the last digits of the results depend on it. It is None if the sweep has only one job; this job
        then uses the default of a single run.

    Raises:
        UserError: a number is invalid.
    """
    for key, value in (("n_jobs", n_jobs), ("jobs_per_gpu", jobs_per_gpu)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"hydra.launcher.{key}: got {value}, needs a whole number of at least 1")
    if not isinstance(gb_per_job, (int, float)) or not gb_per_job > 0:
        raise UserError(f"hydra.launcher.gb_per_job: got {gb_per_job}, needs a number above 0")
    limits = [jobs]
    if n_jobs is not None:
        limits.append(n_jobs)
    else:
        limits.append(cores // processes // (threads or 1))
        if free_gb is not None:
            limits.append(int(free_gb / gb_per_job / processes))
        if gpus:
            limits.append(gpus * jobs_per_gpu)
    at_once = max(1, min(limits))
    if threads is None and jobs > 1:
        threads = max(1, cores // processes // jobs)
    return at_once, threads


def gpus_per_job(config: DictConfig) -> int | None:
    """Returns the number of GPUs that a run uses on a machine with GPUs: 0 for a CPU run, None for all GPUs.

    Args:
        config: config of the run; only ``trainer.accelerator`` and ``trainer.devices`` are read.
    """
    devices: Any = OmegaConf.select(config, "trainer.devices") or 1
    if OmegaConf.select(config, "trainer.accelerator") == "cpu":
        return 0
    if isinstance(devices, str) or devices == -1:  # auto
        return None
    return max(1, len(devices) if isinstance(devices, Sequence) else int(devices))


def gpu_groups(gpus: Sequence[str], gpus_of_job: int | None) -> list[Sequence[str]]:
    """Returns the groups of GPUs that jobs use in turn; one group of all GPUs if a job uses all of them or more.

    Args:
        gpus: see `attnmosaic.core.resources.visible_gpus`.
        gpus_of_job: number of GPUs that a job uses, see `gpus_per_job`.
    """
    if not gpus or gpus_of_job == 0:
        return []
    size = min(gpus_of_job or len(gpus), len(gpus))
    return [gpus[first : first + size] for first in range(0, len(gpus) - size + 1, size)]


def job_environment(job: int, threads: int | None, gpus: Sequence[str], gpus_of_job: int | None = 1) -> dict[str, str]:
    """Returns the environment variables that assign cores and GPUs to a job.

    Args:
        job: number of the job. Of n groups of GPUs, job i sees group i mod n and no other GPU.
        threads: see `jobs_and_threads`.
        gpus: see `attnmosaic.core.resources.visible_gpus`.
        gpus_of_job: number of GPUs that a job uses, see `gpus_per_job`.
    """
    groups = gpu_groups(gpus, gpus_of_job)
    return {
        **({"OMP_NUM_THREADS": str(threads)} if threads is not None else {}),
        **({"CUDA_VISIBLE_DEVICES": ",".join(groups[job % len(groups)])} if groups else {}),
    }
