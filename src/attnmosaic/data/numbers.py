"""Images of digits, each with a number: data of the digit-and-sum and the digit-and-product exercise."""

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
    """Resizes images with bilinear interpolation; images that become smaller are smoothed first."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    floats = pixels.movedim(-1, 1).float()
    resized = F.interpolate(floats, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


class Batch(NamedTuple):
    """A batch of examples: the inputs of a network and its targets.

    Attributes:
        image: scaled images, ``[B, C, H, W]``.
        number: numbers, 0 to 9, ``[B]``.
        digit: digits in the images, 0 to 9, ``[B]``.
        result: class indices of the sums or products, ``[B]``; `Operation.values` has the value of each class.
    """

    image: Float[Tensor, "B C H W"]
    number: Int[Tensor, " B"]
    digit: Int[Tensor, " B"]
    result: Int[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Examples:
    """The images of a pool, each with a number.

    Attributes:
        pool: images of the digits 0 to 9; a class index is a digit.
        number: number for each image, 0 to 9, ``[U]``, int64.
        result: class index of the result for each digit and number, ``[10, 10]``, int64.
    """

    pool: Pool
    number: Int[Tensor, " U"]
    result: Int[Tensor, "10 10"]

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: Int[Tensor, " B"], dtype: torch.dtype) -> Batch:
        """Returns the examples in ``rows`` as a batch."""
        digit, number = self.pool.labels[rows], self.number[rows]
        return Batch(self.pool.gather(rows, dtype), number, digit, self.result[digit, number])

    def on(self, pool: Pool) -> "Examples":
        """Returns the same examples with a copy of their pool, on the device of the copy."""
        return replace(self, pool=pool, number=self.number.to(pool.device), result=self.result.to(pool.device))


class NumbersDataModule(PoolDataModule):
    """Data module of digit images, each with a uniformly sampled number. Subclasses define `load_pools`.

    As for mosaics, `test` has new combinations of training images (the training images with other numbers), and
    `held_out` has images that were never trained on.

    Args:
        operation: operation on digit and number, a key of `OPERATIONS`.
        train_images: number of training images; None for all.
        held_out_images: number of held-out images; None for all.
        image_size: pixels; images are resized to squares of this size. None keeps their size.
        mean: pixel mean after scaling to [0, 1]: one value, or one value per channel.
        std: pixel standard deviation after scaling to [0, 1]: one value, or one value per channel.
        redraw: whether each epoch trains on newly sampled numbers. Evaluation always uses the first numbers.
        eval_batch_size: images per evaluation step.
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
        """Returns the pool of a set of digit images, resized to ``image_size``.

        Raises:
            UserError: the images do not have ten classes, or mean or std has neither one value nor one per channel.
        """
        if len(images.classes) != 10:
            raise UserError(
                f"data: got images of {len(images.classes)} classes, needs the ten digits 0 to 9; "
                "type data=digits_and_number or data=mnist_and_number"
            )
        pixels = torch.as_tensor(images.pixels)
        if self.image_size is not None:
            pixels = resize(pixels, self.image_size, self.image_size)
        return image_pool(images._replace(pixels=pixels), self.mean, self.std)

    def setup(self, stage: str | None = None) -> None:
        """Samples the numbers of all splits on the first call; later calls have no effect."""
        if self.examples:
            return
        train, held_out = self.load_pools()
        # Mosaics and pools use the streams 0 to 11. No stream can end in 0: numpy ignores zeros at the end of a seed.
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
            raise UserError(f"{key}: got {n}, needs at most {len(pool)}; type {key}=null for all images")
        rows = torch.from_numpy(np.sort(self.rng(stream).permutation(len(pool))[:n]))
        return replace(pool, patches=pool.patches[rows], labels=pool.labels[rows])

    def _numbers(self, pool: Pool, *stream: int) -> Int[Tensor, " U"]:
        return torch.from_numpy(self.rng(*stream).integers(10, size=len(pool))).to(pool.device)

    def examples_of_epoch(self, examples: Examples, epoch: int) -> Examples:
        """Returns the training examples of an epoch, counted from 0; with newly sampled numbers if `redraw` is set."""
        if not self.redraw:
            return examples
        # With the last number, these streams differ from the streams of `setup` and of the order of an epoch.
        return replace(examples, number=self._numbers(examples.pool, epoch, 3))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image as networks get it: ``(C, H, W)``."""
        return self.examples["train"].pool.patch_shape

    def examples_on(self, device: torch.device, dtype: torch.dtype, where: str = "auto") -> dict[str, Examples]:
        """Returns copies of all splits on a device, see `move_splits`."""
        return move_splits(self.examples, device, dtype, where)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self.blocks(len(self.examples["train"]), steps=1)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Returns one loader for each split, in the order of `SPLITS`."""
        return [row_loader(len(self.examples[split]), self.eval_batch_size) for split in SPLITS]


class DigitsAndNumber(NumbersDataModule):
    """scikit-learn's bundled handwritten digits, each with a number; see `load_digits`.

    Args:
        held_out_share: fraction of each class that is held out, as the digits have no test set.
        **numbers: see `NumbersDataModule`.
    """

    def __init__(self, *, held_out_share: float, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        return split_pool(self.pool(load_digits()), self.held_out_share, self.rng(10))


class TorchvisionAndNumber(NumbersDataModule):
    """Digits of a data set in the style of torchvision, each with a number; a class index is the digit.

    Args:
        train_set: instantiates the data set of `train` and `test`, see `load_sets`.
        test_set: instantiates the data set of `held_out`.
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
