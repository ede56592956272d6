"""Pools of patches, on a device or in main memory; a mosaic is a row of indices into a pool."""

import math
from collections.abc import Iterable, Sequence
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
        patches: images as uint8 ``[U, H, W, C]``, or points as floats ``[U, D]``. Channels are last because gathered
            patches then have the memory layout that is fastest for convolutions.
        labels: class index of each patch, ``[U]``, int64.
        classes: class names, in the order of the class indices.
        mean: pixel mean, subtracted after scaling to [0, 1]: one value, or one value per channel.
        std: pixel standard deviation, by which the difference is divided: one value, or one value per channel. With
            mean 0.5 and std 0.5, pixels are in [-1, 1].
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
        """The device to which `gather` returns patches."""
        return self.labels.device

    @property
    def is_image(self) -> bool:
        return self.patches.dtype == torch.uint8

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch as networks get it: ``(C, H, W)`` or ``(D,)``."""
        if self.is_image:
            _, height, width, channels = self.patches.shape
            return (channels, height, width)
        return tuple(self.patches.shape[1:])

    def gather(self, index: Int[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n_and_patch"]:
        """Gathers patches and scales images.

        Args:
            index: rows of the pool, in any shape, on the pool's device.
            dtype: floating-point type of the result.

        Returns:
            ``[*index.shape, *patch_shape]``.
        """
        patches = self._rows(index.flatten()).view(*index.shape, *self.patches.shape[1:])
        return self.scaled(patches, dtype) if self.is_image else patches.to(dtype)

    def _rows(self, index: Int[Tensor, " n"]) -> Tensor:
        # Twenty times as fast as `self.patches[index]`, which copies images byte by byte.
        return self.patches.index_select(0, index)

    def scaled(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Scales pixels ``[..., H, W, C]``; returns ``[..., C, H, W]``."""
        scaled = pixels.to(dtype)
        if len(self.mean) == len(self.std) == 1:
            scaled.mul_(1 / (255 * self.std[0])).sub_(self.mean[0] / self.std[0])
        else:
            factor, offset = self._by_channel(scaled)
            scaled.mul_(factor).sub_(offset)
        return scaled.movedim(-1, -3)

    def factor_and_offset(self, dtype: torch.dtype) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Returns factor and offset of each channel: a pixel is scaled to ``pixel * factor - offset``."""
        channels = self.patches.shape[-1]
        factor, offset = self._by_channel(torch.empty(0, dtype=dtype, device=self.device))
        return factor.expand(channels).contiguous(), offset.expand(channels).contiguous()

    def _by_channel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the factors and offsets that scale pixels, one per channel, with the dtype and device of ``like``.

        They are copied to the device once and then kept, because each copy waits for the GPU and cannot be part of a
        CUDA graph.
        """
        if like.dtype not in self._scaling:
            std = like.new_tensor(self.std)
            self._scaling[like.dtype] = 1 / (255 * std), like.new_tensor(self.mean) / std
        return self._scaling[like.dtype]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Pool":
        """Returns a copy of the pool on a device; points are converted to ``dtype``, pixels stay uint8."""
        patches = self.patches.to(device) if self.is_image else self.patches.to(device, dtype)
        return replace(self, patches=patches, labels=self.labels.to(device))

    def rows_of(self, classes: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Returns the rows of all patches whose class index is in ``classes``, in ascending order."""
        return np.flatnonzero(np.isin(self.labels.cpu().numpy(), list(classes)))


def split_pool(pool: Pool, fraction: float, rng: np.random.Generator) -> tuple[Pool, Pool]:
    """Splits a pool class by class into a training pool and a held-out pool.

    Args:
        pool: pool to split.
        fraction: fraction of each class that is held out, above 0 and below 1. Each of the two pools gets at least one
            patch of each class.
        rng: random generator that selects the patches.

    Raises:
        UserError: a class has fewer than two patches.
    """
    train, held_out = [], []
    for label, name in enumerate(pool.classes):
        rows = rng.permutation(pool.rows_of([label]))
        if len(rows) < 2:
            raise UserError(f"class '{name}' has {len(rows)} example, needs at least 2: one of them is held out")
        n = min(max(1, math.floor(fraction * len(rows))), len(rows) - 1)
        held_out.append(np.sort(rows[:n]))
        train.append(np.sort(rows[n:]))

    def part(rows: list[np.ndarray]) -> Pool:
        index = torch.from_numpy(np.concatenate(rows))
        return replace(pool, patches=pool.patches[index], labels=pool.labels[index])

    return part(train), part(held_out)


@dataclass(frozen=True, eq=False)
class HostPool(Pool):
    """A pool with patches in main memory and labels on the device; gathered patches are copied to the device."""

    def _rows(self, index: Int[Tensor, " n"]) -> Tensor:
        # The copy below can be asynchronous, because torch does not reuse pinned memory before the copy has ended.
        pinned = self.device.type == "cuda"
        rows = torch.empty((len(index), *self.patches.shape[1:]), dtype=self.patches.dtype, pin_memory=pinned)
        torch.index_select(self.patches, 0, index.cpu(), out=rows)
        return rows.to(self.device, non_blocking=True)


POOL_FRACTION = 0.5
"""Maximum fraction of a GPU's free memory for pools."""


def place_pools(pools: Iterable[Pool], device: torch.device, dtype: torch.dtype, where: str = "auto") -> list[Pool]:
    """Copies pools to the device that computes, or leaves their patches in main memory.

    Args:
        pools: pools in main memory.
        device: device that computes.
        dtype: floating-point type of points; pixels stay uint8.
        where: value of ``compute.pool``: "device"; "host" for main memory; or "auto" for main memory if the pools need
            more than `POOL_FRACTION` of a GPU's free memory, otherwise the device.
    """
    pools = list(pools)
    if where == "auto":
        needed = sum(math.prod(pool.patches.shape) * (1 if pool.is_image else dtype.itemsize) for pool in pools)
        fits = device.type != "cuda" or needed <= POOL_FRACTION * torch.cuda.mem_get_info(device)[0]
        where = "device" if fits else "host"
    if where == "device":
        return [pool.to(device, dtype) for pool in pools]
    in_memory = [pool.to(torch.device("cpu"), dtype) for pool in pools]
    return [HostPool(pool.patches, pool.labels.to(device), pool.classes, pool.mean, pool.std) for pool in in_memory]
