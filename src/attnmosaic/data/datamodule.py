"""Base classes of data modules: `PoolDataModule` for all data, `MosaicDataModule` for all families of mosaics."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from attnmosaic.config.classes import split_classes
from attnmosaic.core.errors import not_among
from attnmosaic.data.mosaics import Mosaics, sample_mosaics
from attnmosaic.data.pool import Pool, place_pools
from attnmosaic.data.sampler import EpochBlocks, block_loader, row_loader
from attnmosaic.data.weights import WeightSampler

SPLITS = ("train", "test", "held_out")
"""`test` has new mosaics of training patches, as in the mosaic studies; `held_out` has patches never trained on."""

BLOCK_VALUES = 2**26
"""Maximum number of patch values in a block on a CPU: half a second of training for `ConvNet`, or a complete epoch of
2-D points."""

STEP_WEIGHTS = 2**22
"""Maximum number of attention weights in an evaluation step, because several copies of them are in memory."""


class PoolDataModule(pl.LightningDataModule):
    """A data module whose splits are sampled from a training pool and a held-out pool.

    Args:
        batch_size: rows per training step.
        seed: data seed; all samples depend on it.
        order_seed: seed of the order in which an epoch visits the rows.
    """

    def __init__(self, *, batch_size: int, seed: int, order_seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.order_seed = order_seed

    @abstractmethod
    def load_pools(self) -> tuple[Pool, Pool]:
        """Returns the training pool and the held-out pool; the same seed gives the same pools."""

    def rng(self, *stream: int) -> np.random.Generator:
        """Returns a random generator for a stream of random numbers; it depends on the data seed and the stream."""
        return np.random.default_rng([self.seed, *stream])

    def blocks(self, rows: int, steps: int) -> DataLoader[Tensor]:
        """Returns the loader of training blocks; a block has up to ``steps`` minibatches."""
        return block_loader(EpochBlocks(rows, self.batch_size, steps, self.order_seed))


def move_splits(splits: Mapping[str, Any], device: torch.device, dtype: torch.dtype, where: str) -> dict[str, Any]:
    """Returns copies of splits on a device; splits that share a pool also share its copy.

    Args:
        splits: `Mosaics` or `Examples` by the name of the split.
        device: device that computes.
        dtype: see `place_pools`.
        where: see `place_pools`.
    """
    pools = {id(split.pool): split.pool for split in splits.values()}
    placed = dict(zip(pools, place_pools(pools.values(), device, dtype, where), strict=True))
    return {name: split.on(placed[id(split.pool)]) for name, split in splits.items()}


class MosaicDataModule(PoolDataModule):
    """Data module of mosaics: the training mosaics and both test sets. Subclasses define `load_pools`.

    Args:
        foreground: names or indices of the foreground classes; their order gives the labels.
        background: names or indices of the background classes; None for all other classes.
        patches: patches per mosaic, P.
        train_mosaics: number of training mosaics.
        test_mosaics: number of test mosaics, sampled from the training pool.
        held_out_mosaics: number of held-out mosaics, sampled from the held-out pool.
        steps_per_block: training steps per block, S; None for a number that suits the size of a mosaic.
        eval_batch_size: mosaics per evaluation step; None for a number that suits the size of a mosaic.
        weights: samples fixed attention weights for every split; None if a where network computes the weights.
        views: splits with other fixed attention weights, evaluated once at the end of a run:
            ``{name: {"split": ..., "weights": ...}}``.
        **common: see `PoolDataModule`.
    """

    def __init__(
        self,
        *,
        foreground: Sequence[str | int],
        background: Sequence[str | int] | None,
        patches: int,
        train_mosaics: int,
        test_mosaics: int,
        held_out_mosaics: int,
        steps_per_block: int | None,
        eval_batch_size: int | None,
        weights: WeightSampler | None = None,
        views: Mapping[str, Mapping[str, Any]] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.foreground = foreground
        self.background = background
        self.patches = patches
        self.counts = dict(zip(SPLITS, (train_mosaics, test_mosaics, held_out_mosaics), strict=True))
        self.steps_per_block = steps_per_block
        self.eval_batch_size = eval_batch_size
        self.weights = weights
        self.views = views or {}
        self.mosaics: dict[str, Mosaics] = {}

    def setup(self, stage: str | None = None) -> None:
        """Samples all splits on the first call; later calls have no effect."""
        if self.mosaics:
            return
        train_pool, held_out_pool = self.load_pools()
        front, back = split_classes(self.foreground, self.background, train_pool.classes)
        for stream, (split, n) in enumerate(self.counts.items()):
            pool = held_out_pool if split == "held_out" else train_pool
            sampled = sample_mosaics(pool, front, back, n, self.patches, self.rng(stream))
            self.mosaics[split] = self._with_weights(sampled, self.weights, stream)
        for name, view in self.views.items():
            split = view["split"]
            if split not in SPLITS:
                raise not_among(f"data.views.{name}.split", split, SPLITS)
            self.mosaics[name] = self._with_weights(self.mosaics[split], view["weights"], SPLITS.index(split))

    def _with_weights(self, mosaics: Mosaics, weights: WeightSampler | None, stream: int) -> Mosaics:
        if weights is None:
            return mosaics
        sampled = weights(mosaics.foreground.numpy(), self.patches, self.rng(20 + stream))
        return replace(mosaics, weights=torch.from_numpy(sampled))

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the splits that an evaluation measures; the evaluation at the end of a run also measures views."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return SPLITS if fitting else (*SPLITS, *self.views)

    @property
    def patch_shape(self) -> tuple[int, ...]:
        return self.mosaics["train"].pool.patch_shape

    @property
    def n_labels(self) -> int:
        """Number of foreground classes, F."""
        return len(self.mosaics["train"].foreground_classes)

    def mosaics_on(self, device: torch.device, dtype: torch.dtype, where: str = "auto") -> dict[str, Mosaics]:
        """Returns copies of all splits and views on a device, see `move_splits`."""
        return move_splits(self.mosaics, device, dtype, where)

    def _mosaics_per_block(self) -> int:
        """Returns a number of mosaics for which Lightning's cost of about 1 ms per block is small."""
        if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
            return max(self.counts.values())
        return max(1, BLOCK_VALUES // (self.patches * math.prod(self.patch_shape)))

    def train_dataloader(self) -> DataLoader[Tensor]:
        steps = self.steps_per_block or -(-self._mosaics_per_block() // self.batch_size)
        return self.blocks(len(self.mosaics["train"]), steps)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Returns one loader for each split or view in `measured`."""
        size = self.eval_batch_size or min(self._mosaics_per_block(), max(1, STEP_WEIGHTS // self.patches))
        return [row_loader(len(self.mosaics[split]), size) for split in self.measured]

    def export(self, folder: str | Path) -> list[Path]:
        """Writes each split and view to ``<folder>/<split>.npz`` (see `Mosaics.save`); returns the paths."""
        self.setup()
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = {split: Path(folder) / f"{split}.npz" for split in self.mosaics}
        for split, path in paths.items():
            self.mosaics[split].save(path)
        return [*paths.values()]
