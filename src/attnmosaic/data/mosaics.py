"""Mosaics: rows of P indices into a pool, for one foreground patch and P - 1 background patches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnmosaic.core.errors import UserError
from attnmosaic.data.pool import Pool


@dataclass(frozen=True, eq=False)
class Mosaics:
    """N mosaics of P patches each: row numbers of a pool, labels and positions of the foreground patches.

    Attributes:
        pool: pool of the patches.
        index: index in the pool of each patch, ``[N, P]``, int64.
        foreground: position of the foreground patch in the mosaic, ``[N]``, int64, 0 to P - 1.
        label: label of the foreground patch's class, ``[N]``, int64, 0 to F - 1.
        foreground_classes: names of the F foreground classes, in the order of the labels.
        weights: fixed attention weights, ``[N, P]``; None if a where network computes the weights.
    """

    pool: Pool
    index: Int[Tensor, "N P"]
    foreground: Int[Tensor, " N"]
    label: Int[Tensor, " N"]
    foreground_classes: tuple[str, ...]
    weights: Float[Tensor, "N P"] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def patches(self, rows: Int[Tensor, " B"], dtype: torch.dtype) -> Float[Tensor, "B P *patch"]:
        """Returns the scaled patches of the mosaics in ``rows``."""
        return self.pool.gather(self.index[rows], dtype)

    def on(self, pool: Pool) -> "Mosaics":
        """Returns the same mosaics with a copy of their pool, on the device of the copy."""
        device = pool.device
        return replace(
            self,
            pool=pool,
            index=self.index.to(device),
            foreground=self.foreground.to(device),
            label=self.label.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )

    def save(self, path: str | Path) -> None:
        """Writes the mosaics and their pool to one ``.npz`` file.

        Its arrays are ``index``, ``foreground``, ``label``, ``foreground_classes``; the pool's ``patches`` (images as
        uint8 ``[U, H, W, C]``), ``patch_labels`` and ``classes``; and ``weights`` if the mosaics have fixed attention
        weights.
        """
        fixed: dict[str, Any] = {} if self.weights is None else {"weights": self.weights.cpu().numpy()}
        np.savez(
            path,
            index=self.index.cpu().numpy(),
            foreground=self.foreground.cpu().numpy(),
            label=self.label.cpu().numpy(),
            foreground_classes=np.array(self.foreground_classes),
            patches=self.pool.patches.cpu().numpy(),
            patch_labels=self.pool.labels.cpu().numpy(),
            classes=np.array(self.pool.classes),
            **fixed,
        )


def sample_mosaics(
    pool: Pool,
    foreground: Sequence[int],
    background: Sequence[int],
    n: int,
    patches: int,
    rng: np.random.Generator,
) -> Mosaics:
    """Samples the patches, positions and labels of mosaics, as in the mosaic studies (docs/sources.md).

    The foreground patch is sampled uniformly from all foreground patches of the pool. The other patches are sampled
    uniformly from all background patches, with replacement. The position of the foreground patch is uniform. Sampling
    runs on the CPU, so that the result depends on the random generator only.

    Args:
        pool: pool of the patches.
        foreground: indices of the foreground classes; their order gives the labels.
        background: indices of the background classes.
        n: number of mosaics, N.
        patches: patches per mosaic, P.
        rng: random generator.

    Raises:
        UserError: the pool has no foreground patch or no background patch.
    """
    rows = {"foreground": pool.rows_of(foreground), "background": pool.rows_of(background)}
    for side, side_rows in rows.items():
        if len(side_rows) == 0:
            raise UserError(f"data.{side}: the data contain no patch of these classes; choose other classes")
    # The same numbers as from `rng.choice`, which would need the memory of two tables.
    index = rng.integers(len(rows["background"]), size=(n, patches))
    np.take(rows["background"], index, out=index, mode="clip")  # mode "raise" would copy the table
    position = rng.integers(patches, size=n)
    chosen = rng.choice(rows["foreground"], size=n)
    index[np.arange(n), position] = chosen
    label_of = np.full(len(pool.classes), -1)
    label_of[list(foreground)] = np.arange(len(foreground))
    return Mosaics(
        pool=pool,
        index=torch.from_numpy(index),
        foreground=torch.from_numpy(position),
        label=torch.from_numpy(label_of[pool.labels.numpy()[chosen]]),
        foreground_classes=tuple(pool.classes[i] for i in foreground),
    )
