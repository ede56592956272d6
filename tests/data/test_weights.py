"""Fixed attention weights (document 001), by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnmosaic.core.errors import UserError
from attnmosaic.data.gaussian import GaussianMosaics
from attnmosaic.data.weights import DirichletWeights, FixedWeights, RandomPatch, WeightSampler

POSITIONS = np.arange(9).repeat(1000)


def mosaics(**options: Any) -> GaussianMosaics:
    given = {
        "means": [[0, 0], [4, 0], [0, 4], [4, 4]], "variance": 0.1, "points": 200, "foreground": [0, 1],
        "background": None, "patches": 9, "train_mosaics": 50, "test_mosaics": 30, "held_out_mosaics": 20,
        "batch_size": 10, "steps_per_block": None, "eval_batch_size": None, "seed": 0, "order_seed": 0,
    }  # fmt: skip
    data = GaussianMosaics(**(given | options))
    data.setup()
    return data


@pytest.mark.parametrize("sampler", [FixedWeights("5/9"), DirichletWeights(0.3), RandomPatch()])
def test_weights_sum_to_one(sampler: WeightSampler) -> None:
    weights = sampler(POSITIONS, 9, np.random.default_rng(0))
    assert weights.shape == (9000, 9)
    assert (weights >= 0).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(9000), abs=1e-12)


@pytest.mark.parametrize("i", range(1, 10))
def test_dataset_i(i: int) -> None:
    """Document 001: i/9 on the foreground, (9 - i)/72 on each background patch."""
    weights = FixedWeights(f"{i}/9")(np.array([0, 8, 3]), 9, np.random.default_rng(0))
    for row, position in zip(weights, (0, 8, 3), strict=True):
        assert row[position] == i / 9
        assert np.delete(row, position) == pytest.approx((9 - i) / 72, abs=1e-15)


def test_dataset_1_weighs_all_alike() -> None:
    weights = FixedWeights("1/9")(POSITIONS, 9, np.random.default_rng(0))
    assert len(np.unique(weights)) == 1


def test_a_number_is_as_good_as_a_fraction() -> None:
    weights = FixedWeights(0.25)(np.array([1]), 3, np.random.default_rng(0))
    assert weights.tolist() == [[0.375, 0.25, 0.375]]


@pytest.mark.parametrize("wrong", ["10/9", "-1/9", "half", "1/0", 1.5])
def test_what_is_no_fraction(wrong: Any) -> None:
    with pytest.raises(UserError, match="needs a number or fraction from 0 to 1"):
        FixedWeights(wrong)


def test_dirichlet() -> None:
    """Marginals of a symmetric Dirichlet distribution: mean 1/P, variance (P - 1) / (P^2 (P a + 1))."""
    for concentration in (0.2, 1.0, 5.0):
        weights = DirichletWeights(concentration)(POSITIONS, 9, np.random.default_rng(1))
        assert weights.mean(axis=0) == pytest.approx(1 / 9, abs=0.01)
        assert weights.var(axis=0) == pytest.approx(8 / (81 * (9 * concentration + 1)), rel=0.1)
    with pytest.raises(UserError, match="needs a number above 0"):
        DirichletWeights(0.0)


def test_random_patch() -> None:
    weights = RandomPatch()(POSITIONS, 9, np.random.default_rng(2))
    assert set(np.unique(weights)) == {0.0, 1.0}
    chosen = weights.argmax(axis=1)
    expected = len(chosen) / 9
    assert ((np.bincount(chosen, minlength=9) - expected) ** 2 / expected).sum() < 26.1  # chi2, 8 degrees, p = 0.001
    assert (chosen == POSITIONS).mean() == pytest.approx(1 / 9, abs=0.015)


def test_sampled_weights_follow_from_the_seed() -> None:
    one, same, other = (mosaics(weights=RandomPatch(), seed=seed).mosaics["train"].weights for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_leave_the_mosaics_as_they_are() -> None:
    plain, fixed = mosaics(), mosaics(weights=DirichletWeights())
    for split in ("train", "test", "held_out"):
        assert torch.equal(plain.mosaics[split].index, fixed.mosaics[split].index)
        assert plain.mosaics[split].weights is None
    splits = [fixed.mosaics[split].weights for split in ("train", "test", "held_out")]
    assert not torch.equal(splits[0][:20], splits[2])  # type: ignore[index]  # each split has chance of its own


def test_a_view_is_the_same_mosaics_weighed_otherwise() -> None:
    views = {"sharp": {"split": "test", "weights": FixedWeights("9/9")}}
    data = mosaics(weights=FixedWeights("1/9"), views=views)
    view, test = data.mosaics["sharp"], data.mosaics["test"]
    assert torch.equal(view.index, test.index)
    assert view.pool is test.pool
    assert view.weights is not None
    assert torch.equal(view.weights.argmax(dim=1), test.foreground)
    assert data.measured == ("train", "test", "held_out", "sharp")


def test_a_view_of_no_split() -> None:
    with pytest.raises(UserError, match=r"data\.views\.a\.split: got 'tset', allowed: train, test, held_out.*test"):
        mosaics(views={"a": {"split": "tset", "weights": RandomPatch()}})


def test_export_has_the_weights(tmp_path: Path) -> None:
    data = mosaics(weights=FixedWeights("2/9"))
    for path in data.export(tmp_path):
        weights = np.load(path)["weights"]
        assert weights[np.arange(len(weights)), np.load(path)["foreground"]] == pytest.approx(2 / 9)
    assert "weights" not in np.load(mosaics().export(tmp_path / "plain")[0])
