"""Exchanges of data between the processes that train one run. In a run of one process these functions do nothing.

Each process goes through the same blocks of rows and computes its own shard of every minibatch. Gradients are summed
over the processes, so that all of them take the step that one process would take on the complete minibatch, except for
rounding.
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
    """Returns the rows of a minibatch that this process computes, its shard.

    Returns:
        The shard, and its number of valid rows. A process with an empty shard gets one row as a placeholder and 0 valid
        rows, so that all processes take part in the same exchanges.
    """
    if count() == 1:
        return rows, len(rows)
    own_rows = rows.tensor_split(count())[dist.get_rank()]
    return (own_rows, len(own_rows)) if len(own_rows) else (rows[:1], 0)


def gather_into(gathered: Tensor) -> None:
    """Fills a contiguous tensor ``[n, ...]`` that holds this process's shard with the shards of the other processes."""
    if count() > 1:
        for rank, part in enumerate(gathered.tensor_split(count())):
            if len(part):
                dist.broadcast(part, rank)


def gathered(part: Tensor, rows: int) -> Tensor:
    """Returns the complete tensor ``[rows, ...]``, gathered from each process's shard ``[b, ...]``."""
    if count() == 1:
        return part
    complete = part.new_empty((rows, *part.shape[1:]))
    own_rows = complete.tensor_split(count())[dist.get_rank()]
    own_rows.copy_(part[: len(own_rows)])
    gather_into(complete)
    return complete


def all_sum(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over all processes."""
    if count() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its sum over all processes, in one exchange for each dtype."""
    if count() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def average_buffers(module: nn.Module) -> None:
    """Replaces a module's buffers, for example running statistics, by their mean over the processes."""
    if count() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= count()


class ConnectedDDPStrategy(DDPStrategy):
    """Lightning's DDP strategy without torch's DDP wrapper, for processes that are already connected.

    The optimizer steps exchange the gradients themselves. Torch's wrapper would exchange them in the backward pass
    after each call of its own forward pass, but a block of steps has many backward passes and, with kept aggregates, no
    call of that forward pass.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=LightningEnvironment())

    def _configure_launcher(self) -> None:
        """Sets no launcher, as Lightning's launcher changes the number of threads."""

    def configure_ddp(self) -> None:
        """Does not wrap the module."""
