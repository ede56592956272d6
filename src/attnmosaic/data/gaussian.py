"""2-D Gaussian classes: documents 000 and the authors' types 1 to 5 (``protocol.md``)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool


class GaussianMosaics(MosaicDataModule):
    """Mosaics of 2-D points, one Gaussian (or an even mixture of several) a class.

    The class of every base point is sampled uniformly, so that classes hold about the same number. The held-out
    pool is as many fresh points.

    Args:
        means: for each class one point ``[x, y]``, or a list of such points for a mixture.
        variance: variance of each coordinate; the covariance is ``variance * I``.
        points: number of base points, U, in each pool.
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
        part = rng.random(self.points)
        centres = np.stack(
            [self.means[label][int(u * len(self.means[label]))] for label, u in zip(labels, part, strict=True)]
        )
        points = centres + np.sqrt(self.variance) * rng.standard_normal(centres.shape)
        return Pool(
            patches=torch.from_numpy(points),
            labels=torch.from_numpy(labels),
            classes=tuple(str(i) for i in range(len(self.means))),
        )
