"""The pool: the unique source patches that every mosaic of a data set is a row of indices into."""

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Pool:
    """Unique source patches with their class labels.

    Attributes:
        patches: images as uint8 ``[U, H, W, C]`` (channels last, so that gathered patches already lie in
            memory as convolutions want them), or points as floats ``[U, D]``.
        labels: class index of each patch, ``[U]``, int64.
        classes: class names in index order.
        mean: pixel mean subtracted after scaling to [0, 1]: one value, or one a channel.
        std: pixel standard deviation divided by; with mean 0.5 and std 0.5 pixels lie in [-1, 1].
    """

    patches: Tensor
    labels: Int[Tensor, " U"]
    classes: tuple[str, ...]
    mean: tuple[float, ...] = field(default=(0.5,))
    std: tuple[float, ...] = field(default=(0.5,))
    _scaling: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def device(self) -> torch.device:
        """Where patches are wanted, and all there is to know of them is kept."""
        return self.labels.device

    @property
    def is_image(self) -> bool:
        return self.patches.dtype == torch.uint8

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch as networks see it: ``(C, H, W)`` or ``(D,)``."""
        if self.is_image:
            _, height, width, channels = self.patches.shape
            return (channels, height, width)
        return tuple(self.patches.shape[1:])

    def gather(self, index: Int[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n_and_patch"]:
        """Looks patches up and scales them.

        Args:
            index: rows of the pool, any shape, on the pool's device.
            dtype: floating type of the result.

        Returns:
            ``[*index.shape, *patch_shape]``.
        """
        # Twenty times as fast as indexing with `index`, which moves images byte by byte.
        rows = self.patches.index_select(0, index.flatten())
        return self.scaled(rows.view(*index.shape, *self.patches.shape[1:]), dtype)

    def gather_rows(
        self, table: Int[Tensor, "N P"], rows: Int[Tensor, " B"], dtype: torch.dtype
    ) -> Float[Tensor, "B P *patch"]:
        """Looks up and scales the patches that some rows of an index table name."""
        return self.gather(table[rows], dtype)

    def ahead(self, parts: Sequence[Tensor], table: Int[Tensor, "N P"] | None = None) -> AbstractContextManager[None]:
        """Announces what will be looked up next, so that a pool elsewhere can send it; here it makes no difference.

        Args:
            parts: what `gather` will be asked for, whole or in slices, in this order; or, with a table, `gather_rows`.
            table: index table.
        """
        return contextlib.nullcontext()

    def scaled(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        """Scales patches as the pool holds them, images ``[..., H, W, C]``; returns ``[..., *patch_shape]``."""
        picked = patches.to(dtype)
        if not self.is_image:
            return picked
        if len(self.mean) == len(self.std) == 1:
            picked.mul_(1 / (255 * self.std[0])).sub_(self.mean[0] / self.std[0])
        else:
            factor, offset = self._by_channel(picked)
            picked.mul_(factor).sub_(offset)
        return picked.movedim(-1, -3)

    def _by_channel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what pixels are multiplied by and what is subtracted then, one a channel, of like's dtype and device.

        Copied from the host once and kept: each copy waits for a GPU, and a CUDA graph cannot capture it.
        """
        if like.dtype not in self._scaling:
            std = like.new_tensor(self.std)
            self._scaling[like.dtype] = 1 / (255 * std), like.new_tensor(self.mean) / std
        return self._scaling[like.dtype]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Pool":
        """Returns the pool on a device; points take the dtype now, pixels stay uint8."""
        patches = self.patches.to(device) if self.is_image else self.patches.to(device, dtype)
        return replace(self, patches=patches, labels=self.labels.to(device))

    def rows_of(self, classes: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Returns the rows whose label is one of the given class indices, in pool order."""
        return np.flatnonzero(np.isin(self.labels.cpu().numpy(), list(classes)))


def split_pool(pool: Pool, share: float, rng: np.random.Generator) -> tuple[Pool, Pool]:
    """Splits a pool class by class into a training part and a held-out part.

    Args:
        pool: what to split.
        share: part of each class that is held out, above 0 and below 1; at least one patch of each class
            goes to either side.
        rng: decides which.

    Raises:
        UserError: a class has fewer than two patches.
    """
    train, held_out = [], []
    for label, name in enumerate(pool.classes):
        rows = rng.permutation(pool.rows_of([label]))
        if len(rows) < 2:
            raise UserError(f"class '{name}' has {len(rows)} example, needs at least 2 to hold some out")
        n = min(max(1, math.floor(share * len(rows))), len(rows) - 1)
        held_out.append(np.sort(rows[:n]))
        train.append(np.sort(rows[n:]))

    def part(rows: list[np.ndarray]) -> Pool:
        index = torch.from_numpy(np.concatenate(rows))
        return replace(pool, patches=pool.patches[index], labels=pool.labels[index])

    return part(train), part(held_out)
