"""What every mosaic family shares, and the two that need no files: Gaussian points and handwritten digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from sklearn.datasets import load_digits

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS, MosaicDataModule
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.data.pool import Pool

FAMILIES = ["gaussian", "digits"]


@pytest.fixture
def build(config: Callable[..., DictConfig]) -> Callable[..., Any]:
    """Makes a family's data module from its config, set up."""

    def make(family: str, *overrides: str) -> Any:
        module = hydra.utils.instantiate(config(f"data={family}", *overrides).data, _convert_="all")
        module.setup()
        return module

    return make


def same(one: Mosaics, other: Mosaics) -> bool:
    """Whether two splits hold the same patches, positions and labels."""
    return len(one) == len(other) and (
        torch.equal(one.pool.patches, other.pool.patches)
        and torch.equal(one.index, other.index)
        and torch.equal(one.foreground, other.foreground)
        and torch.equal(one.label, other.label)
    )


class Told(MosaicDataModule):
    """Points that tell which pool they are from: positive in training, negative held out."""

    def load_pools(self) -> tuple[Pool, Pool]:
        rows = torch.arange(1, 41, dtype=torch.float64)[:, None]
        labels = torch.arange(40) % 4
        return Pool(rows, labels, tuple("abcd")), Pool(-rows, labels, tuple("abcd"))


def test_each_split_draws_from_its_pool() -> None:
    module = Told(
        foreground=["d", "b"], background=None, patches=3, train_mosaics=50, test_mosaics=50, held_out_mosaics=50,
        batch_size=8, steps_per_block=2, eval_batch_size=20, seed=0, order_seed=0,
    )  # fmt: skip
    module.setup()
    signs = {}
    for split in SPLITS:
        signs[split] = module.mosaics[split].patches(torch.arange(50), torch.float64).sign().unique().tolist()
    assert signs == {"train": [1], "test": [1], "held_out": [-1]}
    indices = [module.mosaics[split].index for split in SPLITS]
    assert not any(torch.equal(indices[a], indices[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert module.n_labels == 2
    assert module.mosaics["train"].foreground_classes == ("d", "b")
    with pytest.raises(UserError, match=r"data\.foreground"):
        Told(
            foreground=["d", "x"], background=None, patches=3, train_mosaics=5, test_mosaics=5, held_out_mosaics=5,
            batch_size=8, steps_per_block=2, eval_batch_size=20, seed=0, order_seed=0,
        ).setup()  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_data_seed_alone_decides(build: Callable[..., Any], family: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one = build(family, "seed.all=1", "seed.data=7").mosaics
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state(), np.random.get_state()[1]
    again = build(family, "seed.all=2", "seed.data=7").mosaics
    other = build(family, "seed.all=1", "seed.data=8").mosaics
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    for split in SPLITS:
        assert same(one[split], again[split])
        assert not torch.equal(one[split].pool.patches, other[split].pool.patches)
        assert not torch.equal(one[split].index, other[split].index)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_do_not_depend_on_each_others_size(build: Callable[..., Any], family: str) -> None:
    small = build(family).mosaics
    large = build(family, "data.train_mosaics=77").mosaics
    assert [len(small[split]) for split in SPLITS] == [60, 30, 30]
    assert [len(large[split]) for split in SPLITS] == [77, 30, 30]
    assert same(small["test"], large["test"])
    assert same(small["held_out"], large["held_out"])
    fewer = build(family, "data.test_mosaics=9").mosaics
    assert same(small["train"], fewer["train"])
    assert same(small["held_out"], fewer["held_out"])


@pytest.mark.parametrize("family", FAMILIES)
def test_setup_again_changes_nothing(build: Callable[..., Any], family: str) -> None:
    module = build(family)
    before = dict(module.mosaics)
    module.setup("fit")
    assert all(module.mosaics[split] is before[split] for split in SPLITS)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_reloads_to_the_same_mosaics(build: Callable[..., Any], family: str, tmp_path: Path) -> None:
    module = build(family)
    paths = module.export(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"{split}.npz" for split in SPLITS]
    for split, path in zip(SPLITS, paths, strict=True):
        with np.load(path, allow_pickle=False) as saved:
            held = {name: saved[name] for name in saved.files}
        wanted = module.mosaics[split]
        for name in ("index", "foreground", "label"):
            assert np.array_equal(held[name], getattr(wanted, name).numpy())
        assert held["patches"].dtype == wanted.pool.patches.numpy().dtype
        assert np.array_equal(held["patches"], wanted.pool.patches.numpy())
        assert np.array_equal(held["patch_labels"], wanted.pool.labels.numpy())
        assert tuple(held["classes"]) == wanted.pool.classes
        assert tuple(held["foreground_classes"]) == wanted.foreground_classes


def test_loaders(build: Callable[..., Any]) -> None:
    """60 mosaics, minibatches of 25, two a block: 50 and 10 rows; evaluation in order, 16 at a time."""
    module = build("gaussian", "seed.order=3")
    blocks = list(module.train_dataloader())
    assert [len(rows) for rows in blocks] == [50, 10]
    assert sorted(torch.cat(blocks).tolist()) == list(range(60))
    other = list(build("gaussian", "seed.order=4").train_dataloader())
    assert not torch.equal(torch.cat(blocks), torch.cat(other))
    rows = [list(loader) for loader in module.val_dataloader()]
    assert [[len(r) for r in split] for split in rows] == [[16, 16, 16, 12], [16, 14], [16, 14]]
    assert all(torch.cat(split).equal(torch.arange(n)) for split, n in zip(rows, (60, 30, 30), strict=True))


@pytest.mark.parametrize(("family", "dtype"), [("gaussian", torch.float32), ("digits", torch.uint8)])
def test_splits_share_one_pool_on_the_device(build: Callable[..., Any], family: str, dtype: torch.dtype) -> None:
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


def test_gaussian_points_have_the_means_and_variance_told(build: Callable[..., Any]) -> None:
    module = build("gaussian", "data.points=30000", "data.variance=0.25", "data.means=[[2,5],[-15,-7],[2,-2]]",
                   "data.foreground=[0,1]")  # fmt: skip
    means = np.array([[2, 5], [-15, -7], [2, -2]])
    for split in ("train", "held_out"):
        pool = module.mosaics[split].pool
        assert len(pool) == 30_000
        assert pool.classes == ("0", "1", "2")
        assert pool.patch_shape == module.patch_shape == (2,)
        assert not pool.is_image
        labels = pool.labels.numpy()
        noise = pool.patches.numpy() - means[labels]
        # six standard errors of a share, a mean, a variance and a covariance
        np.testing.assert_allclose(np.bincount(labels) / 30_000, 1 / 3, atol=6 * np.sqrt(2 / 9 / 30_000))
        for label in range(3):
            np.testing.assert_allclose(noise[labels == label].mean(axis=0), 0, atol=6 * 0.5 / np.sqrt(9_000))
        np.testing.assert_allclose(np.cov(noise.T), np.eye(2) * 0.25, atol=6 * 0.25 * np.sqrt(2 / 30_000))
    train, held_out = (module.mosaics[split].pool.patches for split in ("train", "held_out"))
    assert not set(map(tuple, train.tolist())) & set(map(tuple, held_out.tolist())), "held-out points are fresh"


def test_gaussian_mixture_is_even(build: Callable[..., Any]) -> None:
    module = build("gaussian", "data.points=9000", "data.variance=0.0001",
                   "data.means=[[[0,0],[10,0],[0,10]],[5,5],[[7,7],[8,8]]]", "data.foreground=[0,1]")  # fmt: skip
    pool = module.mosaics["train"].pool
    centres = [pool.patches[pool.labels == label].round().long().tolist() for label in range(3)]
    for found, wanted in zip(centres, ([[0, 0], [0, 10], [10, 0]], [[5, 5]], [[7, 7], [8, 8]]), strict=True):
        values, counts = np.unique(np.array(found), axis=0, return_counts=True)
        assert values.tolist() == wanted
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(wanted), atol=0.07)


# ---- handwritten digits


def test_digits_are_all_there_once(build: Callable[..., Any]) -> None:
    module = build("digits")
    train, held_out = (module.mosaics[split].pool for split in ("train", "held_out"))
    assert train.is_image
    assert module.patch_shape == (1, 8, 8)
    assert train.classes == held_out.classes == tuple("0123456789")
    digits = load_digits()
    wanted = np.rint(digits.images * 255 / 16).astype(int).reshape(-1, 64)
    wanted = np.column_stack([digits.target, wanted])
    found = np.concatenate([np.column_stack([p.labels, p.patches.flatten(1)]) for p in (train, held_out)])
    assert len(found) == 1797
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, wanted.tolist()))
    for label in range(10):
        share = (held_out.labels == label).sum() / (digits.target == label).sum()
        assert share == pytest.approx(0.2, abs=0.01)
    pixels = module.mosaics["train"].patches(torch.arange(60), torch.float32)
    assert pixels.shape == (60, 9, 1, 8, 8)
    assert (pixels.min(), pixels.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.mean=[0.5,0.5]", r"data\.mean: got 2 values, needs one, or one for each of 1 channels"),
        ("data.std=[0.5,0.5]", r"data\.std: got 2 values"),
        ("data.classes=[a,b,c]", r"data\.classes: got a, b, c, but the data have 0, 1, 2, .*data\.classes=null"),
    ],
)
def test_settings_that_do_not_fit_the_images(build: Callable[..., Any], override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("digits", override)


def test_mean_and_std_reach_the_patches(build: Callable[..., Any]) -> None:
    rows = torch.arange(60)
    plain = build("digits", "data.mean=0.0", "data.std=1.0").mosaics["train"].patches(rows, torch.float64)
    scaled = build("digits", "data.mean=[0.3]", "data.std=0.2").mosaics["train"].patches(rows, torch.float64)
    assert plain.min() == 0
    assert plain.max() == pytest.approx(1)
    torch.testing.assert_close(scaled, (plain - 0.3) / 0.2, rtol=0, atol=1e-12)
