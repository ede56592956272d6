"""The data module that every mosaic family shares: a family only says where its two pools come from."""

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
from attnmosaic.data.host_pool import placed
from attnmosaic.data.mosaics import Mosaics, draw_mosaics
from attnmosaic.data.pool import Pool
from attnmosaic.data.sampler import EpochBlocks, block_loader, row_loader
from attnmosaic.data.weights import Decree

SPLITS = ("train", "test", "held_out")
"""`test` is drawn from the training pool (published protocol), `held_out` from patches never trained on."""

BLOCK_VALUES = 2**26
"""Values of patches a block on a CPU: about a second of a ConvNet's training, a whole epoch of 2-D points."""

STEP_WEIGHTS = 2**22
"""Attention weights an evaluation step, at most: several copies of them are at hand at a time."""


class MosaicDataModule(pl.LightningDataModule):
    """Training mosaics and both test sets, drawn over a training pool and a held-out pool.

    Args:
        foreground: foreground classes by name or index; their order gives the labels.
        background: background classes by name or index; None for all the others.
        patches: patches a mosaic, P.
        train_mosaics: number of training mosaics.
        test_mosaics: number of test mosaics, drawn from the training pool.
        held_out_mosaics: number of test mosaics drawn from the held-out pool.
        batch_size: mosaics a training step.
        steps_per_block: training steps a block, S; None to choose it by the work in a step.
        eval_batch_size: mosaics an evaluation step; None to choose it likewise.
        seed: what is drawn.
        order_seed: the order in which training visits it.
        weights: attention by decree for every split; None leaves it to a where network.
        views: splits seen with other decreed weights, measured once, when a run ends: ``{name: {"split": ...,
            "weights": ...}}``.
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
        batch_size: int,
        steps_per_block: int | None,
        eval_batch_size: int | None,
        seed: int,
        order_seed: int,
        weights: Decree | None = None,
        views: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.foreground = list(foreground)
        self.background = None if background is None else list(background)
        self.patches = patches
        self.counts = dict(zip(SPLITS, (train_mosaics, test_mosaics, held_out_mosaics), strict=True))
        self.batch_size = batch_size
        self.steps_per_block = steps_per_block
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.order_seed = order_seed
        self.weights = weights
        self.views = dict(views or {})
        self.mosaics: dict[str, Mosaics] = {}

    @abstractmethod
    def load_pools(self) -> tuple[Pool, Pool]:
        """Returns the training pool and the held-out pool, the same for the same seed."""

    def rng(self, stream: int) -> np.random.Generator:
        """Returns one of the independent sources of chance that follow from the data seed."""
        return np.random.default_rng([self.seed, stream])

    def setup(self, stage: str | None = None) -> None:
        """Draws every split once; calling it again changes nothing."""
        if self.mosaics:
            return
        train_pool, held_out_pool = self.load_pools()
        front, back = split_classes(self.foreground, self.background, train_pool.classes)
        for stream, (split, n) in enumerate(self.counts.items()):
            pool = held_out_pool if split == "held_out" else train_pool
            drawn = draw_mosaics(pool, front, back, n, self.patches, self.rng(stream))
            self.mosaics[split] = self._decreed(drawn, self.weights, stream)
        for name, view in self.views.items():
            split = view["split"]
            if split not in SPLITS:
                raise not_among(f"data.views.{name}.split", split, SPLITS)
            self.mosaics[name] = self._decreed(self.mosaics[split], view["weights"], SPLITS.index(split))

    def _decreed(self, mosaics: Mosaics, weights: Decree | None, stream: int) -> Mosaics:
        if weights is None:
            return mosaics
        drawn = weights(mosaics.foreground.numpy(), self.patches, self.rng(20 + stream))
        return replace(mosaics, weights=torch.from_numpy(drawn))

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of what an evaluation measures: the splits, and when a run ends the views too."""
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
        """Returns every split and view on a device; those that share a pool share its one copy (see `placed`)."""
        pools = {id(m.pool): m.pool for m in self.mosaics.values()}
        moved = dict(zip(pools, placed(pools.values(), device, dtype, where), strict=True))
        return {split: m.on(moved[id(m.pool)]) for split, m in self.mosaics.items()}

    def _mosaics_a_block(self) -> int:
        """Returns how many mosaics keep the framework's cost a step or an evaluation step, about 1 ms, small."""
        if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
            return max(self.counts.values())
        return max(1, BLOCK_VALUES // (self.patches * math.prod(self.patch_shape)))

    def train_dataloader(self) -> DataLoader[Tensor]:
        n = len(self.mosaics["train"])
        steps = self.steps_per_block or -(-self._mosaics_a_block() // self.batch_size)
        return block_loader(EpochBlocks(n, self.batch_size, steps, self.order_seed))

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Returns one loader for each of `measured`."""
        size = self.eval_batch_size or min(self._mosaics_a_block(), max(1, STEP_WEIGHTS // self.patches))
        return [row_loader(len(self.mosaics[split]), size) for split in self.measured]

    def export(self, folder: str | Path) -> list[Path]:
        """Writes each split and view as ``<folder>/<split>.npz`` (see `Mosaics.save`) and returns the paths."""
        self.setup()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for split, mosaics in self.mosaics.items():
            mosaics.save(folder / f"{split}.npz")
            paths.append(folder / f"{split}.npz")
        return paths
