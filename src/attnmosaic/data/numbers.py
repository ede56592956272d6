"""Images of digits, each with a number: documents 003 (sum) and 004 (product)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from attnmosaic.config.digit_operations import OPERATIONS, Operation
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS, PoolDataModule, move_splits
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sampler import row_loader
from attnmosaic.data.sources import Images, image_pool, load_digits, load_sets


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
        """Gathers some examples."""
        digit, number = self.pool.labels[rows], self.number[rows]
        return Batch(self.pool.gather(rows, dtype), number, digit, self.result[digit, number])

    def on(self, pool: Pool) -> "Examples":
        """Returns the same examples over a copy of their pool, on that copy's device."""
        return replace(self, pool=pool, number=self.number.to(pool.device), result=self.result.to(pool.device))


class NumbersDataModule(PoolDataModule):
    """Images of digits, each with a uniformly sampled number. A source of images only adds where its pools come from.

    As with mosaics, `test` holds new combinations of seen images (the training images with numbers sampled anew)
    and `held_out` images that were never trained on.

    Args:
        operation: what digit and number are combined by, a key of `OPERATIONS`.
        train_images: number of training images, None for all.
        held_out_images: number of held-out images, None for all.
        image_size: pixels; images are resized to squares of that size. None takes them as they are.
        mean: pixel mean after scaling to [0, 1], one value or one a channel.
        std: pixel standard deviation, likewise.
        redraw: sample the training numbers anew for each epoch. Evaluation keeps to the first ones.
        eval_batch_size: images an evaluation step.
        **common: see `PoolDataModule`.
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
        eval_batch_size: int,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.operation: Operation = OPERATIONS[operation]
        self.counts = {"train": train_images, "held_out": held_out_images}
        self.image_size = image_size
        self.mean, self.std = mean, std
        self.redraw = redraw
        self.eval_batch_size = eval_batch_size
        self.examples: dict[str, Examples] = {}

    def pool(self, images: Images) -> Pool:
        """Builds a pool of digits, resized to ``image_size``.

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
        """Samples every number once; calling it again changes nothing."""
        if self.examples:
            return
        train, held_out = self.load_pools()
        # Streams 0 to 11 are the mosaics' and pools'. A stream that ends in 0 would be the same without it.
        train, held_out = self._subset(train, "train", 12), self._subset(held_out, "held_out", 13)
        table = torch.tensor(self.operation.table)
        for stream, split in enumerate(SPLITS, start=14):
            pool = held_out if split == "held_out" else train
            self.examples[split] = Examples(pool, self._numbers(pool, stream), table)

    def _subset(self, pool: Pool, split: str, stream: int) -> Pool:
        n = self.counts[split]
        if n is None:
            return pool
        if n > len(pool):
            key = f"data.{split}_images"
            raise UserError(f"{key}: got {n}, but there are {len(pool)}; type {key}=null for all")
        rows = torch.from_numpy(np.sort(self.rng(stream).permutation(len(pool))[:n]))
        return replace(pool, patches=pool.patches[rows], labels=pool.labels[rows])

    def _numbers(self, pool: Pool, *stream: int) -> Int[Tensor, " U"]:
        return torch.from_numpy(self.rng(*stream).integers(10, size=len(pool))).to(pool.device)

    def trained_on(self, examples: Examples, epoch: int) -> Examples:
        """Returns the training examples of an epoch, counted from 0: with other numbers if they are redrawn."""
        if not self.redraw:
            return examples
        # The last number sets these streams apart from those of `setup` and of an epoch's order.
        return replace(examples, number=self._numbers(examples.pool, epoch, 3))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.examples["train"].pool.patch_shape

    def examples_on(self, device: torch.device, dtype: torch.dtype, where: str = "auto") -> dict[str, Examples]:
        """Returns every split on a device, see `move_splits`."""
        return move_splits(self.examples, device, dtype, where)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self.blocks(len(self.examples["train"]), steps=1)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Returns one loader a split, in the order of `SPLITS`."""
        return [row_loader(len(self.examples[split]), self.eval_batch_size) for split in SPLITS]


class DigitsAndNumber(NumbersDataModule):
    """scikit-learn's bundled handwritten digits, each with a number; see `load_digits`.

    Args:
        held_out_share: fraction of each class that is never trained on; the digits are one set.
        **numbers: see `NumbersDataModule`.
    """

    def __init__(self, *, held_out_share: float, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        return split_pool(self.pool(load_digits()), self.held_out_share, self.rng(10))


class TorchvisionAndNumber(NumbersDataModule):
    """A torchvision-style data set of digits, each with a number; a class index is taken for the digit.

    Args:
        train_set: instantiates the data set behind `train` and `test`, see `load_sets`.
        test_set: the same for `held_out`.
        lock_dir: see `load_sets`.
        **numbers: see `NumbersDataModule`.
    """

    def __init__(
        self, *, train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: str | Path, **numbers: Any
    ) -> None:
        super().__init__(**numbers)
        self.sets = train_set, test_set, lock_dir

    def load_pools(self) -> tuple[Pool, Pool]:
        train, test = load_sets(*self.sets, "the bundled digits with data=digits_and_number")
        return self.pool(train), self.pool(test)
