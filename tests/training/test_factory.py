"""Checks of networks before training, and the override that the error message advises."""

from typing import Any

import pytest
import torch
from torch import nn

from attnmosaic.core.errors import UserError
from attnmosaic.training.factory import _check_smallest_part


@pytest.mark.parametrize(
    ("n", "batch_size", "processes", "microbatches", "override"),
    [
        (60, 59, 1, None, "data.batch_size=60"),
        (61, 1, 1, None, "data.batch_size=7"),  # sizes 2 to 6 also leave a minibatch with one of 61 examples
        (40, 4, 4, None, "data.batch_size=8"),
        (60, 10, 1, 10, "optimizer.microbatches=null"),
    ],
)
def test_advised_batch_size_leaves_no_part_with_one_example(
    n: int, batch_size: int, processes: int, microbatches: int | None, override: str
) -> None:
    config: dict[str, Any] = {
        "data": {"batch_size": batch_size},
        "optimizer": {"microbatches": microbatches},
        "trainer": {"strategy": "ddp", "devices": processes},
        "model": {"what": {"_target_": "Normed"}},
    }
    with pytest.raises(UserError, match=rf"^data\.batch_size: .*Normed .*; type {override}$"):
        _check_smallest_part(config, "what", n, lambda: nn.BatchNorm1d(3)(torch.zeros(1, 3)))
