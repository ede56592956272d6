"""Which process of its run this one is, as torchrun or srun reports it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankInfo:
    """Which of the processes that train one run a process is.

    Attributes:
        rank: 0 to count - 1; rank 0 alone writes files.
        count: processes of the run, on all machines.
        local_rank: 0 to local_count - 1.
        local_count: processes of the run on this machine, and on each of the others.
        address: of rank 0's machine.
        port: on which the run's store is served there.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "RankInfo":
        """Reads the environment variables that torchrun sets."""
        rank, count = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        local = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
        return cls(rank, count, *local, environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))

    def environ(self) -> dict[str, str]:
        """Returns the environment variables that `of` and Lightning's `LightningEnvironment` read."""
        values = {
            "RANK": self.rank, "WORLD_SIZE": self.count, "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_count, "NODE_RANK": self.rank // self.local_count,
            "MASTER_ADDR": self.address, "MASTER_PORT": self.port,
        }  # fmt: skip
        return {name: str(value) for name, value in values.items()}


def launched_rank(environ: Mapping[str, str]) -> RankInfo | None:
    """Returns which process this is of those that a launcher started for one run; None if no launcher did.

    Args:
        environ: the environment variables: those of torchrun, or of srun with several tasks.
    """
    if "TORCHELASTIC_RUN_ID" in environ or ("RANK" in environ and environ.get("WORLD_SIZE", "1") != "1"):
        return RankInfo.of(environ)
    if environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    first = re.sub(r"\[(\d+).*", r"\1", environ["SLURM_STEP_NODELIST"].split(",")[0])  # of "node[01-04,09],other"
    return RankInfo(
        rank=int(environ["SLURM_PROCID"]),
        count=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        local_count=int(environ["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]),  # "4(x2)": four on each of 2
        address=environ.get("MASTER_ADDR", first),
        port=int(environ.get("MASTER_PORT", 15000 + int(environ["SLURM_JOB_ID"]) % 10000)),
    )
