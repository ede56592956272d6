"""Mosaics: rows of indices into a pool, one foreground patch and P - 1 background patches each."""

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
    """N mosaics of P patches.

    Attributes:
        pool: the patches.
        index: row in the pool of each patch, ``[N, P]``, int64.
        foreground: position of the foreground patch, ``[N]``, int64, 0 to P - 1.
        label: which foreground class it is of, ``[N]``, int64, 0 to F - 1.
        foreground_classes: names of the F foreground classes, in label order.
        weights: fixed attention weights, ``[N, P]``; None where a where network gives them.
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
        """Gathers and scales the patches of some mosaics."""
        return self.pool.gather(self.index[rows], dtype)

    def on(self, pool: Pool) -> "Mosaics":
        """Returns the same mosaics over a copy of their pool, on that copy's device."""
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
        """Writes everything that was sampled as one ``.npz`` file.

        Arrays: ``index``, ``foreground``, ``label``, ``foreground_classes``; and the pool's ``patches``
        (images as uint8 ``[U, H, W, C]``), ``patch_labels`` and ``classes``; ``weights`` if they are fixed.
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
    """Samples mosaics as the published experiments do (``protocol.md``, "Stage-wise training").

    The foreground patch is sampled uniformly from all foreground patches of the pool, the others from all its
    background patches, with replacement; the foreground's position is uniform. All on the CPU, so that the
    result depends on the generator alone.

    Args:
        pool: where patches come from.
        foreground: class indices; their order gives the labels.
        background: class indices.
        n: number of mosaics, N.
        patches: patches a mosaic, P.
        rng: random generator.

    Raises:
        UserError: the pool holds no patch of one of the sides.
    """
    rows = {"foreground": pool.rows_of(foreground), "background": pool.rows_of(background)}
    for side, found in rows.items():
        if len(found) == 0:
            raise UserError(f"data.{side}: the data hold no patch of these classes; choose others")
    # The numbers of `rng.choice`, but in place: that takes the memory of two tables.
    index = rng.integers(len(rows["background"]), size=(n, patches))
    np.take(rows["background"], index, out=index, mode="clip")  # "raise" would copy
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
