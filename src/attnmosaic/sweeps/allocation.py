"""Decides how many jobs of a sweep run at once, and which cores and GPUs each of them gets."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attnmosaic.core.errors import UserError


def plan(
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
    """Decides how many jobs run at once, and on how many CPU threads each.

    Args:
        jobs: how many there are.
        cores: how many may be used.
        processes: of a job that trains with several; each has its own threads and takes its own memory.
        n_jobs: the user's own number of jobs at once, which no other limit lowers.
        threads: the user's own number of threads of a process.
        free_gb: memory that is left; None if that is not known.
        gb_per_job: memory that a process of a job takes.
        gpus: how many there are, or groups of them if a job takes several; 0 if the jobs use none.
        jobs_per_gpu: how many jobs share one.

    Returns:
        (jobs at once, threads of each): as many jobs as all of these allow, but at least one. The threads, which the
        last digits of results depend on, follow from the cores and the number of jobs alone, not from the memory
        that is free at the moment; they are None, for the default of a single run, if there is but one job.

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


def devices(config: DictConfig) -> int | None:
    """Returns how many GPUs a run takes where there are some: 0 on the CPU; None for all that there are.

    Args:
        config: the run's, of which ``trainer.accelerator`` and ``trainer.devices`` count.
    """
    asked: Any = OmegaConf.select(config, "trainer.devices") or 1
    if OmegaConf.select(config, "trainer.accelerator") == "cpu":
        return 0
    if isinstance(asked, str) or asked == -1:  # auto
        return None
    return max(1, len(asked) if isinstance(asked, Sequence) else int(asked))


def groups(gpus: Sequence[str], devices: int | None) -> list[Sequence[str]]:
    """Returns the groups of GPUs that jobs take turns at; one group of all if a job takes as many or more.

    Args:
        gpus: see `attnmosaic.core.resources.visible_gpus`.
        devices: how many a job takes, see `devices`.
    """
    if not gpus or devices == 0:
        return []
    size = min(devices or len(gpus), len(gpus))
    return [gpus[first : first + size] for first in range(0, len(gpus) - size + 1, size)]


def environment(job: int, threads: int | None, gpus: Sequence[str], devices: int | None = 1) -> dict[str, str]:
    """Returns the environment variables that give a job its cores and GPUs.

    Args:
        job: its number. Jobs take turns at the groups of GPUs: job i sees group i mod n of n, and no other GPU.
        threads: see `plan`.
        gpus: see `attnmosaic.core.resources.visible_gpus`.
        devices: how many a job takes, see `devices`.
    """
    turns = groups(gpus, devices)
    return {
        **({"OMP_NUM_THREADS": str(threads)} if threads is not None else {}),
        **({"CUDA_VISIBLE_DEVICES": ",".join(turns[job % len(turns)])} if turns else {}),
    }
