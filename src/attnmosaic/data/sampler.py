"""The order in which an epoch visits the mosaics, in blocks of several minibatches."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochBlocks(Sampler[Tensor]):
    """Yields the rows of an epoch, up to ``steps`` minibatches of ``batch_size`` at a time.

    The order follows from (seed, epoch) alone, so a resumed run visits what the uninterrupted one would
    have. The last minibatch of an epoch may be smaller; none is dropped. Lightning calls `set_epoch`.

    Args:
        n: number of rows.
        batch_size: rows a minibatch.
        steps: minibatches a block (S).
        seed: order seed.
    """

    def __init__(self, n: int, batch_size: int, steps: int, seed: int) -> None:
        self.n, self.batch_size, self.steps, self.seed = n, batch_size, steps, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // (self.batch_size * self.steps))

    def __iter__(self) -> Iterator[Int[Tensor, " rows"]]:
        # The last number sets these streams apart from those that a data seed of the same value gives.
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.n)
        yield from torch.from_numpy(order).split(self.batch_size * self.steps)


# The loaders below get a generator of their own: a loader draws a number each time it starts, and from the global
# generator that would move what the networks draw (dropout).


class _Rows(Dataset[Tensor]):
    """Hands a sampler's rows on: the patches themselves already lie on the training device."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


def block_loader(blocks: EpochBlocks) -> DataLoader[Tensor]:
    """Returns a loader of blocks of row numbers, each ``[<= steps * batch_size]``, int64."""
    return DataLoader(_Rows(), sampler=blocks, batch_size=None, generator=torch.Generator())


def row_loader(n: int, batch_size: int) -> DataLoader[Tensor]:
    """Returns a loader of the rows 0 to n - 1 in order, each ``[<= batch_size]``, int64."""
    chunks = list(torch.arange(n).split(batch_size))
    return DataLoader(chunks, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]  # a list is a dataset
