"""Pools, mosaics sampled from them, and the order in which an epoch visits the mosaics."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attnmosaic.core.errors import UserError
from attnmosaic.data.mosaics import Mosaics, sample_mosaics
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sampler import EpochBlocks, block_loader, row_loader

CLASSES = ("a", "b", "c", "d")


def points(labels: list[int]) -> Pool:
    """Returns a pool of 2-D points whose coordinates are their row number and their label."""
    labels_ = torch.tensor(labels)
    rows = torch.arange(len(labels), dtype=torch.float64)
    return Pool(torch.stack([rows, labels_.double()], dim=1), labels_, CLASSES)


def sample(pool: Pool, n: int = 500, patches: int = 5, seed: int = 0, foreground: tuple[int, ...] = (2, 0)) -> Mosaics:
    background = [i for i in range(4) if i not in foreground]
    return sample_mosaics(pool, foreground, background, n, patches, np.random.default_rng(seed))


def assert_uniform(counts: np.ndarray) -> None:
    """Checks that the chi-square statistic is at most six standard deviations above its mean for uniform counts."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < freedom + 6 * np.sqrt(2 * freedom), counts
    assert statistic > 0, "exactly equal counts are not random"


# ---- sampling


@pytest.mark.parametrize("patches", [2, 3, 9, 16])
@pytest.mark.parametrize("foreground", [(2, 0), (0, 2), (3, 1)])
def test_each_mosaic_has_one_foreground_patch_at_its_position(patches: int, foreground: tuple[int, ...]) -> None:
    pool = points([0, 1, 2, 3] * 6)
    mosaics = sample(pool, 300, patches, foreground=foreground)
    classes = pool.labels[mosaics.index].numpy()
    assert classes.shape == (300, patches)
    assert mosaics.foreground_classes == tuple(CLASSES[i] for i in foreground)
    for row, position, label in zip(classes, mosaics.foreground, mosaics.label, strict=True):
        at = [p for p, c in enumerate(row) if c in foreground]
        assert at == [int(position)]
        assert row[at[0]] == foreground[int(label)]
    assert set(mosaics.foreground.tolist()) == set(range(patches))
    assert set(mosaics.label.tolist()) == {0, 1}


def test_patches_are_gathered_by_their_index() -> None:
    mosaics = sample(points([0, 1, 2, 3] * 6))
    rows = torch.tensor([7, 3, 7])
    patches = mosaics.patches(rows, torch.float32)
    assert patches.dtype == torch.float32
    assert patches.shape == (3, 5, 2)
    assert torch.equal(patches[..., 0].long(), mosaics.index[rows])


def test_position_and_patches_are_uniform_and_independent() -> None:
    """All foreground patches have the same probability, although class c has three times as many as class a."""
    pool = points([0] * 4 + [2] * 12 + [1] * 5 + [3] * 9)
    mosaics = sample(pool, n=20_000, patches=4)
    at = mosaics.foreground.numpy()
    index = mosaics.index.numpy()
    front = index[np.arange(len(at)), at]
    back = index[np.arange(4) != at[:, None]]
    assert len(back) == 3 * 20_000
    assert_uniform(np.bincount(at, minlength=4))
    assert_uniform(np.bincount(front, minlength=16))
    assert_uniform(np.bincount(back - 16, minlength=14))
    assert_uniform(np.bincount(at * 16 + front, minlength=64))
    first, second = index[at > 1][:, :2].T - 16
    assert_uniform(np.bincount(first * 14 + second, minlength=14 * 14))


def test_patches_are_sampled_with_replacement() -> None:
    """The pool has fewer patches than a mosaic."""
    mosaics = sample(points([0, 2, 1, 3]), n=50, patches=9)
    for row, position in zip(mosaics.index.tolist(), mosaics.foreground.tolist(), strict=True):
        assert len({i for p, i in enumerate(row) if p != position}) <= 2 < len(row) - 1


def test_mosaics_depend_on_the_seed_only() -> None:
    pool = points([0, 1, 2, 3] * 6)
    torch.manual_seed(1)
    np.random.seed(1)
    one = sample(pool, seed=4)
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state(), np.random.get_state()[1]
    same, other = sample(pool, seed=4), sample(pool, seed=5)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    for name in ("index", "foreground", "label"):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("labels", "side"), [([1, 3, 1], "foreground"), ([0, 2, 2], "background")])
def test_classes_without_patches_are_a_user_error(labels: list[int], side: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{side}"):
        sample(points(labels))


# ---- saving


@pytest.mark.parametrize("image", [False, True])
def test_saved_file_contains_the_same_mosaics(tmp_path: Path, image: bool) -> None:
    pool = points([0, 1, 2, 3] * 6)
    if image:
        pixels = torch.from_numpy(np.random.default_rng(0).integers(256, size=(24, 4, 5, 3), dtype=np.uint8))
        pool = Pool(pixels, pool.labels, CLASSES)
    mosaics = sample(pool)
    mosaics.save(tmp_path / "train.npz")
    with np.load(tmp_path / "train.npz", allow_pickle=False) as saved:
        again = Mosaics(
            pool=Pool(
                torch.from_numpy(saved["patches"]),
                torch.from_numpy(saved["patch_labels"]),
                tuple(saved["classes"].tolist()),
            ),
            index=torch.from_numpy(saved["index"]),
            foreground=torch.from_numpy(saved["foreground"]),
            label=torch.from_numpy(saved["label"]),
            foreground_classes=tuple(saved["foreground_classes"].tolist()),
        )
    assert again.foreground_classes == ("c", "a")
    assert again.pool.classes == CLASSES
    assert again.pool.patches.dtype == pool.patches.dtype
    assert torch.equal(again.pool.patches, pool.patches)
    assert torch.equal(again.pool.labels, pool.labels)
    for name in ("index", "foreground", "label"):
        assert torch.equal(getattr(again, name), getattr(mosaics, name))
    rows = torch.arange(len(mosaics))
    assert torch.equal(again.patches(rows, torch.float64), mosaics.patches(rows, torch.float64))


# ---- pools


def images(mean: tuple[float, ...], std: tuple[float, ...], channels: int = 3) -> Pool:
    """Returns a pool of images in which every byte value occurs."""
    pixels = torch.arange(20 * 4 * 5 * channels).remainder(256).to(torch.uint8).view(20, 4, 5, channels)
    return Pool(pixels, torch.arange(20) % 4, CLASSES, mean, std)


@pytest.mark.parametrize("shape", [(), (3,), (2, 9)])
@pytest.mark.parametrize(
    ("mean", "std", "channels"),
    [
        ((0.5,), (0.5,), 3),
        ((0.13,), (0.31,), 1),
        ((0.49, 0.48, 0.45), (0.2, 0.3, 0.4), 3),
        ((0.1, 0.2, 0.3), (0.7,), 3),
    ],
    ids=["half", "grey", "channels", "channel_means"],
)
def test_gather_scales_pixels(
    shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> None:
    pool = images(mean, std, channels)
    index = torch.from_numpy(np.random.default_rng(0).integers(20, size=shape))
    scaled = pool.gather(index, torch.float64)
    assert scaled.shape == (*shape, channels, 4, 5)
    assert scaled.shape[len(shape) :] == pool.patch_shape
    expected = (pool.patches.numpy()[index.numpy()] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(scaled.numpy(), np.moveaxis(expected, -1, -3), rtol=0, atol=1e-12)


def test_gather_returns_copies() -> None:
    """In-place changes of gathered patches do not change the pool."""
    for pool in (points([0, 1, 2, 3]), images((0.5,), (0.5,))):
        before = pool.patches.clone()
        pool.gather(torch.arange(4), torch.float64).mul_(3)
        assert torch.equal(pool.patches, before)


def test_pixels_stay_uint8_and_points_get_the_dtype() -> None:
    device = torch.device("cpu")
    pixels = images((0.5,), (0.5,)).to(device, torch.float32)
    assert pixels.patches.dtype == torch.uint8
    assert pixels.patches.shape == (20, 4, 5, 3)
    assert pixels.gather(torch.arange(3), torch.float32).dtype == torch.float32
    moved = points([0, 1, 2, 3]).to(device, torch.float32)
    assert moved.patches.dtype == torch.float32
    assert moved.labels.dtype == torch.int64
    assert moved.patch_shape == (2,)


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
def test_split_is_disjoint_complete_and_has_the_fraction_of_each_class(fraction: float) -> None:
    sizes = {0: 4, 1: 40, 2: 2, 3: 100}
    labels = [label for label, size in sizes.items() for _ in range(size)]
    np.random.default_rng(0).shuffle(labels)
    pool = points(labels)
    train, held_out = split_pool(pool, fraction, np.random.default_rng(0))
    rows = [part.patches[:, 0].long().tolist() for part in (train, held_out)]
    assert sorted(rows[0] + rows[1]) == list(range(146))
    for part in (train, held_out):
        assert part.classes == CLASSES
        assert torch.equal(part.labels, part.patches[:, 1].long())
    for label, size in sizes.items():
        held = int((held_out.labels == label).sum())
        assert 1 <= held <= size - 1
        assert abs(held - fraction * size) <= 1
    again = split_pool(pool, fraction, np.random.default_rng(0))[1]
    other = split_pool(pool, fraction, np.random.default_rng(1))[1]
    assert torch.equal(again.patches, held_out.patches)
    assert not torch.equal(other.patches, held_out.patches)


@pytest.mark.parametrize("size", [0, 1])
def test_class_with_fewer_than_two_patches_is_a_user_error(size: int) -> None:
    with pytest.raises(UserError, match=f"class 'c' has {size} example"):
        split_pool(points([0, 0, 1, 1, 3, 3] + [2] * size), 0.5, np.random.default_rng(0))


# ---- the order of an epoch


def blocks_of_epoch(n: int, batch_size: int, steps: int, seed: int = 0, epoch: int = 0) -> list[torch.Tensor]:
    blocks = EpochBlocks(n, batch_size, steps, seed)
    blocks.set_epoch(epoch)
    loader = block_loader(blocks)
    loaded = list(loader)
    assert len(loaded) == len(loader) == len(blocks)
    return loaded


@pytest.mark.parametrize(("n", "batch_size"), [(103, 10), (100, 10), (7, 10), (1, 1), (11, 10)])
def test_epoch_has_each_row_once_in_an_order_that_does_not_depend_on_steps(n: int, batch_size: int) -> None:
    orders = []
    for steps in (1, 3, 4, 100):
        blocks = blocks_of_epoch(n, batch_size, steps)
        assert all(rows.dtype == torch.int64 and rows.dim() == 1 for rows in blocks)
        assert [len(rows) for rows in blocks[:-1]] == [batch_size * steps] * (len(blocks) - 1)
        assert 0 < len(blocks[-1]) <= batch_size * steps
        orders.append(torch.cat(blocks).tolist())
    assert sorted(orders[0]) == list(range(n))
    assert all(order == orders[0] for order in orders)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(blocks_of_epoch(50, 10, 2, seed, epoch)).tolist()

    torch.manual_seed(0)
    first = order(3, 4)
    torch.manual_seed(1)
    assert order(3, 4) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(4)}) == 12


def test_order_does_not_depend_on_earlier_epochs() -> None:
    """A resumed run begins at an epoch without the epochs before."""
    blocks = EpochBlocks(50, 10, 2, seed=0)
    runs = []
    for epoch in (0, 1, 0, 1):
        blocks.set_epoch(epoch)
        runs.append(torch.cat(list(blocks)).tolist())
    assert runs[0] == runs[2] != runs[1] == runs[3]


def test_evaluation_rows_are_in_order() -> None:
    loader = row_loader(10, 4)
    batches = list(loader)
    assert [rows.tolist() for rows in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    assert all(rows.dtype == torch.int64 for rows in batches)
