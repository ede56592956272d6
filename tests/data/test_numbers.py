"""Images of digits with numbers: operations, splits, and dependence on the data seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.numbers import DigitsAndNumber, TorchvisionAndNumber, resize

# All products of two digits, written by hand.
PRODUCTS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 24, 25, 27, 28, 30, 32, 35, 36, 40, 42, 45, 48, 49,
    54, 56, 63, 64, 72, 81,
)  # fmt: skip


SETTINGS: dict[str, Any] = {
    "operation": "sum", "train_images": None, "held_out_images": None, "image_size": None, "mean": 0.5, "std": 0.5,
    "redraw": False, "batch_size": 100, "eval_batch_size": 300, "seed": 0, "order_seed": 0, "held_out_share": 0.2,
}  # fmt: skip


def digits(**changes: Any) -> DigitsAndNumber:
    module = DigitsAndNumber(**(SETTINGS | changes))
    module.setup()
    return module


def test_operations_have_all_sums_and_products_of_digits() -> None:
    assert OPERATIONS["sum"].values == tuple(range(19))
    assert OPERATIONS["product"].values == PRODUCTS
    assert len(PRODUCTS) == 37


@pytest.mark.parametrize(("name", "combined"), [("sum", lambda d, n: d + n), ("product", lambda d, n: d * n)])
def test_class_of_a_result_has_its_value(name: str, combined: Callable[[int, int], int]) -> None:
    operation = OPERATIONS[name]
    for digit in range(10):
        for number in range(10):
            assert operation.values[operation.table[digit][number]] == combined(digit, number)
    examples = digits(operation=name).examples["held_out"]
    batch = examples.take(torch.arange(len(examples)), torch.float32)
    values = [operation.values[i] for i in batch.result.tolist()]
    assert values == [combined(d, n) for d, n in zip(batch.digit.tolist(), batch.number.tolist(), strict=True)]


def test_images_and_numbers_of_the_splits() -> None:
    """Train and test have the same images with different numbers; train and held_out together have all images once."""
    module = digits()
    train, test, held_out = (module.examples[split] for split in SPLITS)
    assert test.pool is train.pool
    assert (train.number != test.number).float().mean() == pytest.approx(0.9, abs=0.03)
    all_digits = load_digits()
    pixels = np.rint(all_digits.images * (255 / 16)).astype(np.uint8)
    images = sorted([image.tobytes() for e in (train, held_out) for image in e.pool.patches.numpy()])
    assert images == sorted(image.tobytes() for image in pixels)
    assert len(held_out) == pytest.approx(0.2 * len(pixels), abs=10)
    by_image = {image.tobytes(): label for image, label in zip(pixels, all_digits.target, strict=True)}
    for examples in (train, held_out):
        assert [by_image[image.tobytes()] for image in examples.pool.patches.numpy()] == examples.pool.labels.tolist()
    assert [len(batch) for batch in module.val_dataloader()[0]] == [300, 300, 300, 300, len(train) - 1200]


def test_numbers_are_uniform() -> None:
    """Chi-square with 9 degrees of freedom is above 27.9 with probability 0.001; the 60 samples are tested together."""
    numbers = [digits(seed=seed).examples[split].number for seed in range(20) for split in SPLITS]
    counts = torch.bincount(torch.cat(numbers), minlength=10).double()
    assert len(counts) == 10
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27.9
    # The numbers are independent of the digits.
    examples = digits().examples["train"]
    table = torch.zeros(10, 10).index_put((examples.pool.labels, examples.number), torch.ones(()), accumulate=True)
    assert ((table - 14.4) ** 2 / 14.4).sum() < 149  # 99 degrees of freedom


def test_examples_depend_on_the_data_seed_only() -> None:
    first, same, other = (digits(seed=seed, train_images=500, held_out_images=99) for seed in (3, 3, 4))
    for split in SPLITS:
        assert torch.equal(first.examples[split].number, same.examples[split].number)
        assert torch.equal(first.examples[split].pool.patches, same.examples[split].pool.patches)
        assert not torch.equal(first.examples[split].number, other.examples[split].number)
        assert not torch.equal(first.examples[split].pool.patches, other.examples[split].pool.patches)
        assert len(first.examples[split]) == (99 if split == "held_out" else 500)
    numbers = first.examples["train"].number
    first.setup()
    assert first.examples["train"].number is numbers


def test_streams_of_random_numbers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed gives different streams for pools, subsets, numbers, redrawn numbers and orders of epochs."""
    streams: list[tuple[int, ...]] = []
    default_rng = np.random.default_rng

    def recording_rng(entropy: list[int]) -> np.random.Generator:
        streams.append(tuple(np.random.SeedSequence(entropy).generate_state(4)))
        return default_rng(entropy)

    monkeypatch.setattr(np.random, "default_rng", recording_rng)
    module = digits(seed=1, order_seed=1, redraw=True, train_images=100, held_out_images=100)
    loader = module.train_dataloader()
    for epoch in range(20):
        module.examples_of_epoch(module.examples["train"], epoch)
        loader.sampler.set_epoch(epoch)
        list(loader)
    assert len(streams) == len(set(streams)) == 3 + 3 + 40


def test_redraw_samples_other_numbers_for_each_epoch() -> None:
    module = digits(redraw=True)
    train = module.examples["train"]
    one, two, again = (module.examples_of_epoch(train, epoch) for epoch in (1, 2, 1))
    assert torch.equal(one.number, again.number)
    assert not torch.equal(one.number, two.number)
    assert not torch.equal(one.number, train.number)
    assert one.pool is train.pool
    without_redraw = digits()
    assert without_redraw.examples_of_epoch(without_redraw.examples["train"], 5) is without_redraw.examples["train"]


def test_each_epoch_visits_every_image_once_in_its_own_order() -> None:
    loader = digits(order_seed=2).train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(rows) for rows in batches[:-1]] == [100] * (len(batches) - 1)
        orders.append(torch.cat(batches).tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(len(digits().examples["train"])))


def test_images_are_scaled_and_resized() -> None:
    small, large = digits().examples["test"], digits(image_size=28, mean=0.1, std=0.3).examples["test"]
    rows = torch.tensor([5, 0])
    image = small.take(rows, torch.float64).image
    assert image.shape == (2, 1, 8, 8)
    assert torch.allclose(image[:, 0], small.pool.patches[rows, ..., 0].double() / 255 * 2 - 1)
    image = large.take(rows, torch.float64).image
    assert image.shape == (2, 1, 28, 28)
    assert torch.allclose(image[:, 0], (large.pool.patches[rows, ..., 0].double() / 255 - 0.1) / 0.3)
    for row in rows.tolist():
        expected = Image.fromarray(small.pool.patches[row, ..., 0].numpy()).resize((28, 28), Image.Resampling.BILINEAR)
        difference = large.pool.patches[row, ..., 0].int() - torch.from_numpy(np.array(expected)).int()
        assert difference.abs().max() <= 1
    # A smaller size smooths the image first, so a fine grid becomes grey.
    grid = (torch.arange(56) % 2 * 255).to(torch.uint8).expand(1, 56, 56)[..., None]
    assert (resize(grid, 28, 28)[:, 2:-2, 2:-2].int() - 128).abs().max() <= 2


def test_train_and_test_share_one_copy_of_their_images() -> None:
    moved = digits().examples_on(torch.device("cpu"), torch.float32)
    assert moved["train"].pool is moved["test"].pool
    assert moved["train"].pool.patches.dtype == torch.uint8


class Letters:
    """A data set of five classes."""

    classes = tuple("abcde")

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        if i >= 5:
            raise IndexError
        return Image.new("L", (28, 28), i), i


def no_download() -> NoReturn:
    raise OSError("no route to host")


def test_invalid_data_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train_images: got 9999, needs .* 14\d\d; type .*=null"):
        digits(train_images=9999)
    settings = {name: value for name, value in SETTINGS.items() if name != "held_out_share"}
    module = TorchvisionAndNumber(train_set=Letters, test_set=Letters, lock_dir=tmp_path, **settings)
    with pytest.raises(UserError, match=r"data: got images of 5 classes, needs .*data=mnist_and_number"):
        module.setup()
    module = TorchvisionAndNumber(train_set=no_download, test_set=Letters, lock_dir=tmp_path, **settings)
    with pytest.raises(UserError, match=r"data\.train_set: .*no route.*data=digits_and_number"):
        module.setup()
