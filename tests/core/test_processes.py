"""The rank of a process is read from the variables of torchrun and srun."""

import pytest

from attnmosaic.core.processes import RankInfo, launched_rank

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "9",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
}  # fmt: skip


def test_rank_from_torchrun() -> None:
    assert launched_rank(TORCHRUN) == RankInfo(5, 8, 1, 4, "a", 9)
    assert RankInfo(5, 8, 1, 4, "a", 9).environ() == {**TORCHRUN, "NODE_RANK": "1"}
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}
    assert launched_rank(alone) is None, "variables that, for example, a notebook has set"
    rank = launched_rank({**alone, "TORCHELASTIC_RUN_ID": "none"})
    assert rank is not None
    assert rank.count == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[07-08]", "node07"), ("gpu[1,3-4],cpu2", "gpu1"), ("a,b", "a"), ("rack-2-node9", "rack-2-node9")],
)
def test_rank_from_srun(nodes: str, first: str) -> None:
    assert launched_rank({**SRUN, "SLURM_STEP_NODELIST": nodes}) == RankInfo(5, 8, 1, 4, first, 18456)


def test_rank_from_srun_with_other_variables() -> None:
    assert launched_rank({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "7"}) == RankInfo(5, 8, 1, 4, "here", 7)
    one_node = launched_rank({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "8"})
    assert one_node is not None
    assert one_node.local_count == 8


def test_process_without_a_launcher_has_no_rank() -> None:
    assert launched_rank({}) is None
    assert launched_rank({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert launched_rank({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None, (
        "a batch script of sbatch"
    )
