"""Slurm's queue, and what comes of jobs in it."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn

from attnmosaic.sweeps.callback import job_began, job_ended

LOOK_S, LOOKS = 10.0, 4
"""Seconds between two looks at the queue, and in how many a job must have ended before it counts as lost: on a network
file system its result may be seen late."""

OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT"}
"""States of jobs that have ended and will not start again."""


def wait_for(jobs: Mapping[int, Any], lost: Callable[[int, str], JobReturn]) -> dict[int, JobReturn]:
    """Waits until every job has left a result, or has ended without, and returns what came of each.

    Args:
        jobs: submitit's, by number.
        lost: gives what came of a job without result, from its number and the last word on it, Slurm's if it is one.
    """
    done: dict[int, JobReturn] = {}
    began: set[int] = set()
    ended: Counter[int] = Counter()
    looked = float("-inf")
    while len(done) < len(jobs):
        waiting = {number: job for number, job in jobs.items() if number not in done}
        states = None
        if time.monotonic() >= looked + LOOK_S:
            states = queue(job.job_id for job in waiting.values())
            looked = time.monotonic()
        for number, job in waiting.items():
            state = (states or {}).get(job.job_id, "ended")
            there = job.paths.result_pickle.exists()
            if number not in began and (there or state == "RUNNING"):
                began.add(number)
                job_began(number)
            if there:
                read = _read(job)
                done[number] = lost(number, read) if isinstance(read, str) else read
            elif states is not None:
                ended[number] = ended[number] + 1 if state == "ended" or state in OVER else 0
                if ended[number] >= LOOKS:
                    job_began(number)
                    done[number] = lost(number, state)
            if number in done:
                job_ended(number, done[number])
        time.sleep(min(1.0, LOOK_S))
    return done


def _read(job: Any) -> JobReturn | str:
    """Returns what a job has left, or why it failed before its run began or after that had ended."""
    outcome, said = cloudpickle.loads(job.paths.result_pickle.read_bytes())
    if outcome == "success":
        return said
    return [line for line in str(said).splitlines() if line and not line[0].isspace()][-1]


def queue(jobs: Iterable[str]) -> dict[str, str] | None:
    """Returns the states of those jobs that Slurm knows of, or None if it does not answer.

    Ended jobs are known for some minutes.
    """
    arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return {} if "Invalid job id" in done.stderr else None
    return dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
