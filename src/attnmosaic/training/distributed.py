"""What the processes that train one run together share out and exchange. A run of one process exchanges nothing.

Each process takes the same blocks of rows, and of every minibatch its own part. Gradients are added up, so that all
take the very step that one process would take on the whole minibatch, but for rounding.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from jaxtyping import Int
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from attnmosaic.training.ranks import Place


def count() -> int:
    """Returns how many processes train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(rows: Int[Tensor, " B"]) -> tuple[Int[Tensor, " b"], int]:
    """Returns this process's part of some rows.

    Returns:
        The part, and how many of it count. A process without a row of its own gets one of which none counts: all
        processes then compute the same things, and none waits in vain for another.
    """
    if count() == 1:
        return rows, len(rows)
    mine = rows.tensor_split(count())[dist.get_rank()]
    return (mine, len(mine)) if len(mine) else (rows[:1], 0)


def fill(whole: Tensor) -> None:
    """Fills the other processes' parts in a contiguous tensor ``[n, ...]``, of whose n rows each has its `share`."""
    if count() > 1:
        for rank, part in enumerate(whole.tensor_split(count())):
            if len(part):
                dist.broadcast(part, rank)


def whole(part: Tensor, rows: int) -> Tensor:
    """Returns ``[rows, ...]``, of which each process has its part ``[b, ...]``."""
    if count() == 1:
        return part
    joined = part.new_empty((rows, *part.shape[1:]))
    mine = joined.tensor_split(count())[dist.get_rank()]
    mine.copy_(part[: len(mine)])
    fill(joined)
    return joined


def summed(value: Tensor) -> Tensor:
    """Returns the sum of all processes' values."""
    if count() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by the sums of all processes' gradients, in one exchange for each kind of number."""
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
    """Replaces what a module keeps beside its weights, statistics of batches say, by the mean over the processes."""
    if count() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= count()


class _Meeting(LightningEnvironment):
    """Tells Lightning that the processes are started already, and which this one is."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.place.rank

    def node_rank(self) -> int:
        return 0


class SharedSteps(DDPStrategy):
    """Lightning's DDP for steps that exchange their gradients themselves.

    Torch's wrapper exchanges them in the backward pass that follows its own forward pass, of which a block of steps
    has many or, with kept aggregates, none. The processes meet through a file: on one machine it needs no free port.

    Args:
        place: which process this is.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(cluster_environment=_Meeting(place))
        self.place = place

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        if dist.is_initialized():  # by the fit that this evaluation follows
            return
        device = self.root_device if self.root_device.type == "cuda" else None
        dist.init_process_group(
            self._get_process_group_backend(),
            store=dist.FileStore(self.place.meeting, self.place.count),  # type: ignore[attr-defined]
            rank=self.place.rank,
            world_size=self.place.count,
            device_id=device,
        )

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends, on leaving, what the processes of a run have in common: the next run of this process is another."""
    try:
        yield
        if count() > 1:
            dist.barrier()
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
