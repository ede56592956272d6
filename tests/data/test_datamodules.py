"""Data modules: the base class of mosaic families, Gaussian points and handwritten digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS, MosaicDataModule
from attnmosaic.data.gaussian import GaussianMosaics
from attnmosaic.data.images import DigitsMosaics
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool

MEANS = [[2, 5], [-15, -7], [2, -2], [-2, 0]]
SETTINGS: dict[str, Any] = {
    "background": None, "patches": 9, "train_mosaics": 60, "test_mosaics": 30, "held_out_mosaics": 30,
    "batch_size": 25, "steps_per_block": 2, "eval_batch_size": 16, "seed": 0, "order_seed": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[type[MosaicDataModule], dict[str, Any]]] = {
    "gaussian": (GaussianMosaics, {"foreground": [0, 1], "means": MEANS, "variance": 0.01, "points": 200}),
    "digits": (DigitsMosaics, {"foreground": [7, 8, 9], "mean": 0.5, "std": 0.5, "held_out_share": 0.2}),
}


def build(family: str, **changes: Any) -> Any:
    """Builds the data module of a family and sets it up."""
    module_class, settings = FAMILIES[family]
    module = module_class(**(SETTINGS | settings | changes))
    module.setup()
    return module


def same(one: Mosaics, other: Mosaics) -> bool:
    """Returns whether two splits have the same patches, positions and labels."""
    return len(one) == len(other) and (
        torch.equal(one.pool.patches, other.pool.patches)
        and torch.equal(one.index, other.index)
        and torch.equal(one.foreground, other.foreground)
        and torch.equal(one.label, other.label)
    )


class Signed(MosaicDataModule):
    """Mosaics of numbers whose sign shows their pool: positive in the training pool, negative in the held-out pool."""

    def load_pools(self) -> tuple[Pool, Pool]:
        rows = torch.arange(1, 41, dtype=torch.float64)[:, None]
        labels = torch.arange(40) % 4
        return Pool(rows, labels, tuple("abcd")), Pool(-rows, labels, tuple("abcd"))


def test_each_split_is_sampled_from_its_pool() -> None:
    module = Signed(**(SETTINGS | {"foreground": ["d", "b"]}))
    module.setup()
    signs = {}
    for split in SPLITS:
        signs[split] = module.mosaics[split].patches(torch.arange(30), torch.float64).sign().unique().tolist()
    assert signs == {"train": [1], "test": [1], "held_out": [-1]}
    indices = [module.mosaics[split].index[:30] for split in SPLITS]
    assert not any(torch.equal(indices[a], indices[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert module.n_labels == 2
    assert module.mosaics["train"].foreground_classes == ("d", "b")
    with pytest.raises(UserError, match=r"data\.foreground"):
        Signed(**(SETTINGS | {"foreground": ["d", "x"]})).setup()


@pytest.mark.parametrize("family", FAMILIES)
def test_mosaics_depend_on_the_data_seed_only(family: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one = build(family, seed=7, order_seed=1).mosaics
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state(), np.random.get_state()[1]
    again = build(family, seed=7, order_seed=2).mosaics
    other = build(family, seed=8, order_seed=1).mosaics
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    for split in SPLITS:
        assert same(one[split], again[split])
        assert not torch.equal(one[split].pool.patches, other[split].pool.patches)
        assert not torch.equal(one[split].index, other[split].index)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_do_not_depend_on_sizes_of_other_splits(family: str) -> None:
    small = build(family).mosaics
    large = build(family, train_mosaics=77).mosaics
    assert [len(small[split]) for split in SPLITS] == [60, 30, 30]
    assert [len(large[split]) for split in SPLITS] == [77, 30, 30]
    assert same(small["test"], large["test"])
    assert same(small["held_out"], large["held_out"])
    fewer = build(family, test_mosaics=9).mosaics
    assert same(small["train"], fewer["train"])
    assert same(small["held_out"], fewer["held_out"])


@pytest.mark.parametrize("family", FAMILIES)
def test_second_setup_has_no_effect(family: str) -> None:
    module = build(family)
    before = dict(module.mosaics)
    module.setup("fit")
    assert all(module.mosaics[split] is before[split] for split in SPLITS)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_reloads_to_the_same_mosaics(family: str, tmp_path: Path) -> None:
    module = build(family)
    paths = module.export(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"{split}.npz" for split in SPLITS]
    for split, path in zip(SPLITS, paths, strict=True):
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        expected = module.mosaics[split]
        for name in ("index", "foreground", "label"):
            assert np.array_equal(arrays[name], getattr(expected, name).numpy())
        assert arrays["patches"].dtype == expected.pool.patches.numpy().dtype
        assert np.array_equal(arrays["patches"], expected.pool.patches.numpy())
        assert np.array_equal(arrays["patch_labels"], expected.pool.labels.numpy())
        assert tuple(arrays["classes"]) == expected.pool.classes
        assert tuple(arrays["foreground_classes"]) == expected.foreground_classes


def test_loaders() -> None:
    """With 60 mosaics and blocks of two minibatches of 25, blocks have 50 and 10 rows; evaluation keeps the order."""
    module = build("gaussian", order_seed=3)
    blocks = list(module.train_dataloader())
    assert [len(rows) for rows in blocks] == [50, 10]
    assert sorted(torch.cat(blocks).tolist()) == list(range(60))
    other = list(build("gaussian", order_seed=4).train_dataloader())
    assert not torch.equal(torch.cat(blocks), torch.cat(other))
    rows = [list(loader) for loader in module.val_dataloader()]
    assert [[len(r) for r in split] for split in rows] == [[16, 16, 16, 12], [16, 14], [16, 14]]
    assert all(torch.cat(split).equal(torch.arange(n)) for split, n in zip(rows, (60, 30, 30), strict=True))


@pytest.mark.parametrize(("family", "dtype"), [("gaussian", torch.float32), ("digits", torch.uint8)])
def test_splits_share_one_pool_on_the_device(family: str, dtype: torch.dtype) -> None:
    module = build(family)
    moved = module.mosaics_on(torch.device("cpu"), torch.float32)
    assert moved["train"].pool is moved["test"].pool is not moved["held_out"].pool
    for split in SPLITS:
        assert moved[split].pool.patches.dtype == dtype
        rows = torch.arange(30)
        assert torch.equal(
            moved[split].patches(rows, torch.float32), module.mosaics[split].patches(rows, torch.float32)
        )


# ---- Gaussian points


def test_gaussian_points_have_the_given_means_and_variance() -> None:
    means = np.array(MEANS[:3])
    module = build("gaussian", points=30_000, variance=0.25, means=means.tolist())
    for split in ("train", "held_out"):
        pool = module.mosaics[split].pool
        assert len(pool) == 30_000
        assert pool.classes == ("0", "1", "2")
        assert pool.patch_shape == module.patch_shape == (2,)
        assert not pool.is_image
        labels = pool.labels.numpy()
        noise = pool.patches.numpy() - means[labels]
        # The tolerances are six standard errors of a fraction, a mean, a variance and a covariance.
        np.testing.assert_allclose(np.bincount(labels) / 30_000, 1 / 3, atol=6 * np.sqrt(2 / 9 / 30_000))
        for label in range(3):
            np.testing.assert_allclose(noise[labels == label].mean(axis=0), 0, atol=6 * 0.5 / np.sqrt(9_000))
        np.testing.assert_allclose(np.cov(noise.T), np.eye(2) * 0.25, atol=6 * 0.25 * np.sqrt(2 / 30_000))
    train, held_out = (module.mosaics[split].pool.patches for split in ("train", "held_out"))
    assert not set(map(tuple, train.tolist())) & set(map(tuple, held_out.tolist())), "pools must have no common points"


def test_components_of_a_mixture_have_equal_weights() -> None:
    means = [[[0, 0], [10, 0], [0, 10]], [5, 5], [[7, 7], [8, 8]]]
    module = build("gaussian", points=9000, variance=0.0001, means=means)
    pool = module.mosaics["train"].pool
    centres = [pool.patches[pool.labels == label].round().long().tolist() for label in range(3)]
    expected_centres = ([[0, 0], [0, 10], [10, 0]], [[5, 5]], [[7, 7], [8, 8]])
    for class_centres, expected in zip(centres, expected_centres, strict=True):
        values, counts = np.unique(np.array(class_centres), axis=0, return_counts=True)
        assert values.tolist() == expected
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(expected), atol=0.07)


# ---- handwritten digits


def test_pools_contain_every_digit_image_once() -> None:
    module = build("digits")
    train, held_out = (module.mosaics[split].pool for split in ("train", "held_out"))
    assert train.is_image
    assert module.patch_shape == (1, 8, 8)
    assert train.classes == held_out.classes == tuple("0123456789")
    digits = load_digits()
    expected = np.rint(digits.images * 255 / 16).astype(int).reshape(-1, 64)
    expected = np.column_stack([digits.target, expected])
    rows = np.concatenate([np.column_stack([p.labels, p.patches.flatten(1)]) for p in (train, held_out)])
    assert len(rows) == 1797
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))
    for label in range(10):
        fraction = (held_out.labels == label).sum() / (digits.target == label).sum()
        assert fraction == pytest.approx(0.2, abs=0.01)
    pixels = module.mosaics["train"].patches(torch.arange(60), torch.float32)
    assert pixels.shape == (60, 9, 1, 8, 8)
    assert (pixels.min(), pixels.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"data\.mean: got 2 values, needs .* 1 channels"),
        ({"std": [0.5, 0.5]}, r"data\.std: got 2 values"),
        ({"classes": ["a", "b"]}, r"data\.classes: got a, b, but the data have 0, 1, 2, .*data\.classes=null"),
    ],
)
def test_settings_that_do_not_match_the_images_are_user_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("digits", **changes)


def test_mean_and_std_scale_the_patches() -> None:
    rows = torch.arange(60)
    plain = build("digits", mean=0.0, std=1.0).mosaics["train"].patches(rows, torch.float64)
    scaled = build("digits", mean=[0.3], std=0.2).mosaics["train"].patches(rows, torch.float64)
    assert plain.min() == 0
    assert plain.max() == pytest.approx(1)
    torch.testing.assert_close(scaled, (plain - 0.3) / 0.2, rtol=0, atol=1e-12)
