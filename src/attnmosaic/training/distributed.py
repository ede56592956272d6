"""What the processes that train one run exchange. A run of one process exchanges nothing.

Each process takes the same blocks of rows, and its own shard of every minibatch. Gradients are added up, so that all
processes take the step that one process would take on the complete minibatch, but for rounding.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Int
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn


def count() -> int:
    """Returns how many processes train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shard(rows: Int[Tensor, " B"]) -> tuple[Int[Tensor, " b"], int]:
    """Returns this process's shard of some rows.

    Returns:
        The shard, and how many of its rows count. A process without a row of its own gets one that does not count, so
        that all processes take part in the same exchanges.
    """
    if count() == 1:
        return rows, len(rows)
    mine = rows.tensor_split(count())[dist.get_rank()]
    return (mine, len(mine)) if len(mine) else (rows[:1], 0)


def gather_into(gathered: Tensor) -> None:
    """Copies the shards of the other processes into a contiguous tensor ``[n, ...]`` that has this process's shard."""
    if count() > 1:
        for rank, part in enumerate(gathered.tensor_split(count())):
            if len(part):
                dist.broadcast(part, rank)


def gathered(part: Tensor, rows: int) -> Tensor:
    """Returns the tensor ``[rows, ...]`` of which each process has its shard ``[b, ...]``."""
    if count() == 1:
        return part
    joined = part.new_empty((rows, *part.shape[1:]))
    mine = joined.tensor_split(count())[dist.get_rank()]
    mine.copy_(part[: len(mine)])
    gather_into(joined)
    return joined


def all_sum(value: Tensor) -> Tensor:
    """Returns the sum of all processes' values."""
    if count() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by the sums of all processes' gradients, in one exchange for each dtype."""
    if count() == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in kinds.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def average_buffers(module: nn.Module) -> None:
    """Replaces a module's buffers, running statistics say, by their mean over the processes."""
    if count() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= count()


class ConnectedDDPStrategy(DDPStrategy):
    """Lightning's DDP for processes that are connected already and for steps that exchange their gradients themselves.

    Torch's wrapper exchanges them in the backward pass that follows its own forward pass, of which a block of steps
    has many or, with kept aggregates, none.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=LightningEnvironment())

    def _configure_launcher(self) -> None:
        """Leaves out Lightning's launcher, which changes the number of threads."""

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""
