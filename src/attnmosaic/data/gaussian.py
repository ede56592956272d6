"""Mosaics of 2-D points: the 2-D gradient study and the mosaic repository's 2-D types 1 to 5 (docs/sources.md)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool


class GaussianMosaics(MosaicDataModule):
    """Mosaics of 2-D points; each class is a Gaussian, or a mixture of several Gaussians with equal weights.

    The class of every point is sampled uniformly, so all classes have about the same number of points. The held-out
    pool has the same number of points as the training pool, sampled independently.

    Args:
        means: for each class a point ``[x, y]``, or a list of points for a mixture.
        variance: variance of each coordinate; the covariance is ``variance * I``.
        points: number of points in each pool, U.
        **mosaics: see `MosaicDataModule`.
    """

    def __init__(self, *, means: Sequence[Sequence[Any]], variance: float, points: int, **mosaics: Any) -> None:
        super().__init__(**mosaics)
        self.means = [np.atleast_2d(np.asarray(centre, dtype=np.float64)) for centre in means]
        self.variance = variance
        self.points = points

    def load_pools(self) -> tuple[Pool, Pool]:
        return self._sample_points(self.rng(10)), self._sample_points(self.rng(11))

    def _sample_points(self, rng: np.random.Generator) -> Pool:
        labels = rng.integers(len(self.means), size=self.points)
        component = rng.random(self.points)
        centres = np.stack(
            [self.means[label][int(u * len(self.means[label]))] for label, u in zip(labels, component, strict=True)]
        )
        points = centres + np.sqrt(self.variance) * rng.standard_normal(centres.shape)
        return Pool(
            patches=torch.from_numpy(points),
            labels=torch.from_numpy(labels),
            classes=tuple(str(i) for i in range(len(self.means))),
        )
