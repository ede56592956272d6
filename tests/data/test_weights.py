"""Fixed attention weights, as in the weighted-average study."""

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
    settings = {
        "means": [[0, 0], [4, 0], [0, 4], [4, 4]], "variance": 0.1, "points": 200, "foreground": [0, 1],
        "background": None, "patches": 9, "train_mosaics": 50, "test_mosaics": 30, "held_out_mosaics": 20,
        "batch_size": 10, "steps_per_block": None, "eval_batch_size": None, "seed": 0, "order_seed": 0,
    }  # fmt: skip
    data = GaussianMosaics(**(settings | options))
    data.setup()
    return data


@pytest.mark.parametrize("sampler", [FixedWeights("5/9"), DirichletWeights(0.3), RandomPatch()])
def test_weights_sum_to_one(sampler: WeightSampler) -> None:
    weights = sampler(POSITIONS, 9, np.random.default_rng(0))
    assert weights.shape == (9000, 9)
    assert (weights >= 0).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(9000), abs=1e-12)


@pytest.mark.parametrize("i", range(1, 10))
def test_weights_of_dataset_i(i: int) -> None:
    """The foreground patch has weight i/9, each background patch (9 - i)/72."""
    weights = FixedWeights(f"{i}/9")(np.array([0, 8, 3]), 9, np.random.default_rng(0))
    for row, position in zip(weights, (0, 8, 3), strict=True):
        assert row[position] == i / 9
        assert np.delete(row, position) == pytest.approx((9 - i) / 72, abs=1e-15)


def test_dataset_1_has_equal_weights() -> None:
    weights = FixedWeights("1/9")(POSITIONS, 9, np.random.default_rng(0))
    assert len(np.unique(weights)) == 1


def test_foreground_weight_can_be_a_number() -> None:
    weights = FixedWeights(0.25)(np.array([1]), 3, np.random.default_rng(0))
    assert weights.tolist() == [[0.375, 0.25, 0.375]]


@pytest.mark.parametrize("invalid", ["10/9", "-1/9", "half", "1/0", 1.5])
def test_invalid_foreground_weights_are_user_errors(invalid: Any) -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        FixedWeights(invalid)


def test_dirichlet_weights() -> None:
    """A weight of a symmetric Dirichlet distribution has mean 1/P and variance (P - 1) / (P^2 (P a + 1))."""
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


def test_sampled_weights_depend_on_the_seed_only() -> None:
    one, same, other = (mosaics(weights=RandomPatch(), seed=seed).mosaics["train"].weights for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_do_not_change_the_mosaics() -> None:
    plain, fixed = mosaics(), mosaics(weights=DirichletWeights())
    for split in ("train", "test", "held_out"):
        assert torch.equal(plain.mosaics[split].index, fixed.mosaics[split].index)
        assert plain.mosaics[split].weights is None
    splits = [fixed.mosaics[split].weights for split in ("train", "test", "held_out")]
    assert not torch.equal(splits[0][:20], splits[2])  # type: ignore[index]  # each split has its own random stream


def test_view_has_the_same_mosaics_with_other_weights() -> None:
    views = {"sharp": {"split": "test", "weights": FixedWeights("9/9")}}
    data = mosaics(weights=FixedWeights("1/9"), views=views)
    view, test = data.mosaics["sharp"], data.mosaics["test"]
    assert torch.equal(view.index, test.index)
    assert view.pool is test.pool
    assert view.weights is not None
    assert torch.equal(view.weights.argmax(dim=1), test.foreground)
    assert data.measured == ("train", "test", "held_out", "sharp")


def test_view_of_an_unknown_split_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"data\.views\.a\.split: got 'tset', allowed: train, test, held_out.*test"):
        mosaics(views={"a": {"split": "tset", "weights": RandomPatch()}})


def test_export_has_the_weights(tmp_path: Path) -> None:
    data = mosaics(weights=FixedWeights("2/9"))
    for path in data.export(tmp_path):
        weights = np.load(path)["weights"]
        assert weights[np.arange(len(weights)), np.load(path)["foreground"]] == pytest.approx(2 / 9)
    assert "weights" not in np.load(mosaics().export(tmp_path / "plain")[0])
