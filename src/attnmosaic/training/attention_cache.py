"""Keeps scores, attention weights and aggregates while the where network is frozen."""

import contextlib
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import WhereWhat, aggregate
from attnmosaic.nn.fused import IndexedPatches
from attnmosaic.nn.networks import hooked, kernel_of, reads_index
from attnmosaic.training import distributed
from attnmosaic.training.workers import Workers

PIECE = {"cpu": 2**23, "gpu": 2**27}
"""Bytes of patches that are computed at a time.

A CPU's piece fits its caches. A GPU's piece leaves memory to other runs, as its activations take several times as much.
"""


def rows_per_piece(row_bytes: int, device: torch.device) -> int:
    """Returns the number of rows of ``row_bytes`` bytes to compute at a time."""
    return max(1, PIECE["cpu" if device.type == "cpu" else "gpu"] // row_bytes)


@contextlib.contextmanager
def eval_mode(*networks: nn.Module | None) -> Iterator[None]:
    """Puts networks into eval mode for a block, then back into training mode those that were in it."""
    training = [network for network in networks if network is not None and network.training]
    try:
        for network in training:
            network.eval()
        yield
    finally:
        for network in training:
            network.train()


class FrozenWhere:
    """Scores each patch of a pool once, and keeps attention weights and aggregates.

    Attention weights that the data fix are used unchanged. In a run of several processes each computes its shard.

    The kept values are valid until the where network changes; call `clear` then. They have no gradients.

    Args:
        pair: the networks; Where is evaluated in eval mode.
        mosaics: mosaics by split or view, on the training device.
        dtype: floating type of patches.
        budget: largest number of bytes for kept weights and aggregates; if they need more, none are kept and aggregates
            are computed for every minibatch.
        workers: threads that compute pieces; None computes the pieces one by one.
    """

    def __init__(
        self,
        pair: WhereWhat,
        mosaics: dict[str, Mosaics],
        dtype: torch.dtype,
        budget: int,
        workers: Workers | None = None,
    ) -> None:
        self.pair = pair
        self.mosaics = mosaics
        self.dtype = dtype
        self.budget = budget
        self.workers = workers or Workers(1)
        self.kernel = kernel_of(pair.where) or kernel_of(pair.what)
        self._scores: dict[int, Float[Tensor, " U"]] = {}
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        """Attention weights ``[N, P]`` and aggregates by split; aggregates of images are stored channels last."""

    def clear(self) -> None:
        """Removes all kept scores, attention weights and aggregates."""
        self._scores.clear()
        self._kept.clear()

    def patches(self, pool: Pool, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n_and_patch"] | IndexedPatches:
        """Returns scaled patches of a pool; as an index only if a fused kernel reads the pool's pixels."""
        if self.kernel is None or not self._reads(pool):
            return pool.gather(index, self.dtype)
        factor, offset = pool.factor_and_offset(self.dtype)
        return IndexedPatches(
            pool.patches, index, factor, offset, self.kernel, lambda rows: pool.gather(rows, self.dtype)
        )

    def _reads(self, pool: Pool) -> bool:
        """Returns whether a fused kernel reads the pixels of a pool; hooks of the pair need a tensor."""
        fits = self.kernel is not None and pool.is_image and pool.patch_shape == self.kernel.image
        return fits and pool.patches.is_contiguous() and not hooked(self.pair)

    @torch.no_grad()
    def scores(self, pool: Pool) -> Float[Tensor, " U"]:
        """Returns the where network's score of every patch of a pool."""
        if id(pool) not in self._scores:
            size = rows_per_piece(math.prod(pool.patch_shape) * self.dtype.itemsize, pool.device)
            shard, _ = distributed.shard(torch.arange(len(pool), device=pool.device))
            pieces = shard.split(size)
            with eval_mode(self.pair.where):
                scores = self.workers.map(lambda piece: self.pair.score(self.patches(pool, piece)), pieces)
            self._scores[id(pool)] = distributed.gathered(torch.cat(scores), len(pool))
        return self._scores[id(pool)]

    @torch.no_grad()
    def attend(self, split: str, rows: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B *patch"]]:
        """Returns the attention weights and the aggregates of mosaics of a split."""
        mosaics = self.mosaics[split]
        if split in self._kept:
            alpha, aggregates = (part.index_select(0, rows) for part in self._kept[split])
            # Kept channels last, as `Pool` keeps images.
            return alpha, aggregates.movedim(-1, 1) if mosaics.pool.is_image else aggregates
        alpha = self.weights(mosaics, rows)
        pieces = rows.split(self.mosaics_per_piece(split))
        summed = [
            aggregate(a, self.patches(mosaics.pool, mosaics.index[piece]))
            for a, piece in zip(alpha.split(len(pieces[0])), pieces, strict=True)
        ]
        return alpha, summed[0] if len(summed) == 1 else torch.cat(summed)

    def weights(self, mosaics: Mosaics, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Returns the attention weights of mosaics: fixed weights, or weights from the scores of the pool."""
        if mosaics.weights is not None:
            return mosaics.weights[rows].to(self.dtype)
        return self.pair.weigh(self.scores(mosaics.pool)[mosaics.index[rows]])

    @torch.no_grad()
    def fresh_weights(
        self, mosaics: Mosaics, patches: Float[Tensor, "B P *patch"] | IndexedPatches, rows: Int[Tensor, " B"]
    ) -> Tensor:
        """Returns the attention weights ``[B, P]`` of a few mosaics from their patches, without any kept scores."""
        if mosaics.weights is not None:
            return mosaics.weights[rows].to(self.dtype)
        with eval_mode(self.pair.where):
            return self.pair.weigh(self.pair.score(patches.flatten(0, 1)).view(patches.shape[:2]))

    def mosaics_per_piece(self, split: str) -> int:
        """Returns the number of mosaics of a split to compute at a time. Their patches count if they are gathered."""
        mosaics = self.mosaics[split]
        indexed = self._reads(mosaics.pool) and (self.pair.where is None or reads_index(self.pair.where))
        patches = 1 if indexed else mosaics.index.shape[1]
        values = patches * math.prod(mosaics.pool.patch_shape)
        return rows_per_piece(values * self.dtype.itemsize, mosaics.index.device)

    @torch.no_grad()
    def keep(self, split: str) -> None:
        """Computes and keeps the attention weights and aggregates of a split, if they fit the budget."""
        mosaics = self.mosaics[split]
        n, patches = mosaics.index.shape
        size = n * (patches + math.prod(mosaics.pool.patch_shape)) * self.dtype.itemsize
        if split in self._kept or size > self.budget:
            return
        shard, _ = distributed.shard(torch.arange(n, device=mosaics.index.device))
        pieces = shard.split(self.mosaics_per_piece(split))

        def attend(rows: Tensor) -> tuple[Tensor, Tensor]:
            alpha = self.weights(mosaics, rows)
            summed = aggregate(alpha, self.patches(mosaics.pool, mosaics.index[rows]))
            return alpha, summed.movedim(1, -1) if mosaics.pool.is_image else summed

        def store(rows: Tensor) -> None:
            for kept_tensor, part in zip(kept, attend(rows), strict=True):
                kept_tensor[rows] = part

        first = attend(pieces[0])  # scores the pool once, before threads share the scores
        kept = tuple(part.new_empty((n, *part.shape[1:])) for part in first)
        for kept_tensor, part in zip(kept, first, strict=True):
            kept_tensor[pieces[0]] = part
        self.workers.map(store, pieces[1:])
        for kept_tensor in kept:
            distributed.gather_into(kept_tensor)
        self._kept[split] = kept
