"""What need not be computed again while the where network stands still."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import WhereWhat, aggregate

CHUNK = 2048
"""Patches scored, or summed up, at a time: bounds memory, costs no speed."""


class FrozenWhere:
    """Scores each unique pool patch once and looks attention weights and aggregates up.

    Valid until the where network changes; whoever changes it calls `clear`. Nothing here carries gradients.

    Args:
        pair: the networks; Where is evaluated in eval mode.
        mosaics: by split, on the training device.
        dtype: floating type of patches.
        budget: bytes that kept aggregates may take; over it they are summed afresh for every minibatch.
    """

    def __init__(self, pair: WhereWhat, mosaics: dict[str, Mosaics], dtype: torch.dtype, budget: int) -> None:
        self.pair = pair
        self.mosaics = mosaics
        self.dtype = dtype
        self.budget = budget
        self._scores: dict[int, Float[Tensor, " U"]] = {}
        self._kept: dict[str, Float[Tensor, N * patch]] = {}

    def clear(self) -> None:
        self._scores.clear()
        self._kept.clear()

    @torch.no_grad()
    def scores(self, pool: Pool) -> Float[Tensor, " U"]:
        """Returns the where network's score of every patch of a pool."""
        if id(pool) not in self._scores:
            training = self.pair.where.training
            self.pair.where.eval()
            rows = torch.arange(len(pool), device=pool.labels.device)
            chunks = [self.pair.score(pool.gather(r, self.dtype)) for r in rows.split(CHUNK)]
            self._scores[id(pool)] = torch.cat(chunks)
            self.pair.where.train(training)
        return self._scores[id(pool)]

    @torch.no_grad()
    def attend(self, split: str, rows: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B *patch"]]:
        """Returns the attention weights and the aggregates of some mosaics of a split."""
        mosaics = self.mosaics[split]
        alpha = self.pair.weigh(self.scores(mosaics.pool)[mosaics.index[rows]])
        if split in self._kept:
            kept = self._kept[split][rows]
            # Kept channels last, as `Pool` keeps images.
            return alpha, kept.movedim(-1, 1) if mosaics.pool.is_image else kept
        return alpha, aggregate(alpha, mosaics.patches(rows, self.dtype))

    def keep(self, split: str) -> None:
        """Sums every mosaic of a split up once, if the aggregates fit the budget."""
        mosaics = self.mosaics[split]
        size = len(mosaics) * math.prod(mosaics.pool.patch_shape) * self.dtype.itemsize
        if split in self._kept or size > self.budget:
            return
        kept: Tensor | None = None
        rows = torch.arange(len(mosaics), device=mosaics.index.device)
        for chunk in rows.split(max(1, CHUNK // mosaics.index.shape[1])):
            _, summed = self.attend(split, chunk)
            if mosaics.pool.is_image:
                summed = summed.movedim(1, -1)
            if kept is None:
                kept = summed.new_empty((len(mosaics), *summed.shape[1:]))
            kept[chunk] = summed
        assert kept is not None
        self._kept[split] = kept
