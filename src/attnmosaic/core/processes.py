"""Reads the rank of this process and the number of processes of its run from torchrun's or srun's variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankInfo:
    """Rank and address of one process of a run that several processes train.

    Attributes:
        rank: 0 to count - 1; only rank 0 writes files.
        count: number of processes of the run on all machines.
        local_rank: 0 to local_count - 1.
        local_count: number of processes of the run on each machine.
        address: address of rank 0's machine.
        port: port of torch's store on rank 0's machine.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "RankInfo":
        """Returns the rank that torchrun has set in the environment variables."""
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
    """Returns the rank of a process that torchrun or srun has started; None for a process started directly.

    Args:
        environ: the environment variables of the process.
    """
    if "TORCHELASTIC_RUN_ID" in environ or ("RANK" in environ and environ.get("WORLD_SIZE", "1") != "1"):
        return RankInfo.of(environ)
    if environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    nodes = environ["SLURM_STEP_NODELIST"]  # "node[01-04,09],other": the first is node01
    first_node = re.sub(r"\[(\d+).*", r"\1", nodes.split(",")[0])
    return RankInfo(
        rank=int(environ["SLURM_PROCID"]),
        count=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        local_count=int(environ["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]),  # "4(x2)": 4 on each of 2
        address=environ.get("MASTER_ADDR", first_node),
        port=int(environ.get("MASTER_PORT", 15000 + int(environ["SLURM_JOB_ID"]) % 10000)),
    )
