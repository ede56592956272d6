"""Samplers and loaders of row numbers: the order in which an epoch visits the mosaics, in blocks of minibatches."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochBlocks(Sampler[Tensor]):
    """Sampler that yields the row numbers of an epoch in blocks of up to ``steps`` minibatches of ``batch_size`` rows.

    The order depends on the seed and the epoch only, so a resumed run visits the rows in the same order as an
    uninterrupted run. The last minibatch of an epoch can be smaller; no row is dropped. Lightning calls `set_epoch`.

    Args:
        n: number of rows.
        batch_size: rows per minibatch.
        steps: minibatches per block, S.
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
        # With the last number, these streams differ from the streams of a data seed with the same value.
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.n)
        yield from torch.from_numpy(order).split(self.batch_size * self.steps)


# Each loader below has its own random generator. A loader samples one number each time it starts; with torch's global
# generator, this would change the random numbers of the networks (dropout).


class _Rows(Dataset[Tensor]):
    """Dataset of row numbers; the patches are already on the training device."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


def block_loader(blocks: EpochBlocks) -> DataLoader[Tensor]:
    """Returns a loader of blocks of row numbers, each ``[<= steps * batch_size]``, int64."""
    return DataLoader(_Rows(), sampler=blocks, batch_size=None, generator=torch.Generator())


def row_loader(n: int, batch_size: int) -> DataLoader[Tensor]:
    """Returns a loader of the rows 0 to n - 1 in order, each ``[<= batch_size]``, int64."""
    chunks = list(torch.arange(n).split(batch_size))
    return DataLoader(chunks, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]  # a list is a dataset
