"""Images of digits, each with a number: documents 003 (sum) and 004 (product)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from attnmosaic.config.operations import OPERATIONS, Operation
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.host_pool import placed
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sampler import EpochBlocks, block_loader, row_loader
from attnmosaic.data.sources import Images, image_pool, load_digits, load_set, lock_folder, per_channel


def resize(pixels: UInt8[Tensor, "U H W C"], height: int, width: int) -> UInt8[Tensor, "U {height} {width} C"]:
    """Resizes images bilinearly; those that shrink are smoothed first."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    floats = pixels.movedim(-1, 1).float()
    resized = F.interpolate(floats, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


class Batch(NamedTuple):
    """Some examples as a network and its objective take them.

    Attributes:
        image: scaled, ``[B, C, H, W]``.
        number: 0 to 9, ``[B]``.
        digit: what the image shows, 0 to 9, ``[B]``.
        result: class of what digit and number give, ``[B]``; `Operation.values` has the classes' values.
    """

    image: Float[Tensor, "B C H W"]
    number: Int[Tensor, " B"]
    digit: Int[Tensor, " B"]
    result: Int[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Examples:
    """A number for each image of a pool.

    Attributes:
        pool: images of the digits 0 to 9; a class index is a digit.
        number: 0 to 9, ``[U]``, int64.
        result: class that digit and number give, ``[10, 10]``, int64.
    """

    pool: Pool
    number: Int[Tensor, " U"]
    result: Int[Tensor, "10 10"]

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: Int[Tensor, " B"], dtype: torch.dtype) -> Batch:
        """Looks some examples up."""
        digit, number = self.pool.labels[rows], self.number[rows]
        return Batch(self.pool.gather(rows, dtype), number, digit, self.result[digit, number])

    def on(self, pool: Pool) -> "Examples":
        """Returns the same examples over a copy of their pool, on that copy's device."""
        device = pool.labels.device
        return replace(self, pool=pool, number=self.number.to(device), result=self.result.to(device))


class NumbersDataModule(pl.LightningDataModule):
    """Images of digits, each with a uniformly drawn number; what all sources of images share.

    As with mosaics, `test` holds new combinations of seen images (the training images, their numbers drawn anew)
    and `held_out` images that were never trained on.

    Args:
        operation: what digit and number are combined by, a key of `OPERATIONS`.
        train_images: number of training images, None for all.
        held_out_images: number of held-out images, None for all.
        image_size: pixels; images are resized to squares of that size. None takes them as they are.
        mean: pixel mean after scaling to [0, 1], one value or one a channel.
        std: pixel standard deviation, likewise.
        redraw: draw the numbers that are trained on anew for each epoch. Evaluation keeps to those drawn first.
        batch_size: images a training step.
        eval_batch_size: images an evaluation step.
        seed: what is drawn.
        order_seed: the order in which training visits the images.
    """

    def __init__(
        self,
        *,
        operation: str,
        train_images: int | None,
        held_out_images: int | None,
        image_size: int | None,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        redraw: bool,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        order_seed: int,
    ) -> None:
        super().__init__()
        self.operation: Operation = OPERATIONS[operation]
        self.counts = {"train": train_images, "held_out": held_out_images}
        self.image_size = image_size
        self.mean, self.std = per_channel(mean), per_channel(std)
        self.redraw = redraw
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.order_seed = order_seed
        self.examples: dict[str, Examples] = {}

    @abstractmethod
    def load_pools(self) -> tuple[Pool, Pool]:
        """Returns the training pool and the held-out pool, the same for the same seed."""

    def rng(self, *stream: int) -> np.random.Generator:
        """Returns one of the independent sources of chance that follow from the data seed."""
        return np.random.default_rng([self.seed, *stream])

    def pool(self, images: Images) -> Pool:
        """Makes a pool of digits at the size they are wanted in.

        Raises:
            UserError: the images are not of ten classes, or mean and std do not fit them.
        """
        if len(images.classes) != 10:
            raise UserError(
                f"data: the images are of {len(images.classes)} classes, but the digits 0 to 9 are ten; "
                "type data=digits_and_number or data=mnist_and_number"
            )
        pixels = torch.as_tensor(images.pixels)
        if self.image_size is not None:
            pixels = resize(pixels, self.image_size, self.image_size)
        return image_pool(images._replace(pixels=pixels), self.mean, self.std)

    def setup(self, stage: str | None = None) -> None:
        """Draws every number once; calling it again changes nothing."""
        if self.examples:
            return
        train, held_out = self.load_pools()
        # Streams 0 to 11 are the mosaics' and pools'. A stream that ends in 0 would be the same without it.
        pools = {"train": self._some(train, "train", 12), "held_out": self._some(held_out, "held_out", 13)}
        pools["test"] = pools["train"]
        table = torch.tensor(self.operation.table)
        for stream, split in enumerate(SPLITS, start=14):
            pool = pools[split]
            self.examples[split] = Examples(pool, self._draw(len(pool), self.rng(stream)), table)

    def _some(self, pool: Pool, split: str, stream: int) -> Pool:
        n = self.counts[split]
        if n is None:
            return pool
        if n > len(pool):
            key = f"data.{split}_images"
            raise UserError(f"{key}: got {n}, but there are {len(pool)}; type {key}=null for all")
        rows = torch.from_numpy(np.sort(self.rng(stream).permutation(len(pool))[:n]))
        return replace(pool, patches=pool.patches[rows], labels=pool.labels[rows])

    @staticmethod
    def _draw(n: int, rng: np.random.Generator) -> Int[Tensor, " n"]:
        return torch.from_numpy(rng.integers(10, size=n))

    def trained_on(self, examples: Examples, epoch: int) -> Examples:
        """Returns the training examples of an epoch, counted from 0: with other numbers if they are redrawn."""
        if not self.redraw:
            return examples
        # The last number sets these streams apart from those of `setup` and of an epoch's order.
        number = self._draw(len(examples), self.rng(epoch, 3))
        return replace(examples, number=number.to(examples.number.device))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.examples["train"].pool.patch_shape

    def examples_on(self, device: torch.device, dtype: torch.dtype, where: str = "auto") -> dict[str, Examples]:
        """Returns every split on a device; train and test share the one copy of their pool (see `placed`)."""
        pools = {id(e.pool): e.pool for e in self.examples.values()}
        moved = dict(zip(pools, placed(pools.values(), device, dtype, where), strict=True))
        return {split: e.on(moved[id(e.pool)]) for split, e in self.examples.items()}

    def train_dataloader(self) -> DataLoader[Tensor]:
        n = len(self.examples["train"])
        return block_loader(EpochBlocks(n, self.batch_size, steps=1, seed=self.order_seed))

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Returns one loader a split, in the order of `SPLITS`."""
        return [row_loader(len(self.examples[split]), self.eval_batch_size) for split in SPLITS]


class DigitsAndNumber(NumbersDataModule):
    """scikit-learn's bundled handwritten digits, which come as one set; a share of each class is held out.

    Args:
        held_out_share: share of each class that is never trained on.
        **numbers: see `NumbersDataModule`.
    """

    def __init__(self, *, held_out_share: float, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        return split_pool(self.pool(load_digits()), self.held_out_share, self.rng(10))


class TorchvisionAndNumber(NumbersDataModule):
    """A torchvision-style data set of digits; a class index is taken for the digit.

    Args:
        train_set: makes the data set behind `train` and `test`; see `load_set`.
        test_set: the same for `held_out`.
        lock_dir: see `lock_folder`.
        **numbers: see `NumbersDataModule`.
    """

    def __init__(
        self,
        *,
        train_set: Callable[[], Any],
        test_set: Callable[[], Any],
        lock_dir: str | Path | None = None,
        **numbers: Any,
    ) -> None:
        super().__init__(**numbers)
        self.train_set, self.test_set = train_set, test_set
        self.lock_dir = lock_folder(lock_dir)

    def load_pools(self) -> tuple[Pool, Pool]:
        instead = "the bundled digits with data=digits_and_number"
        train, test = (
            self.pool(load_set(f"data.{key}", make, self.lock_dir, instead))
            for key, make in (("train_set", self.train_set), ("test_set", self.test_set))
        )
        return train, test
