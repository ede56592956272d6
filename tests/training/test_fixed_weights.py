"""Training What alone with fixed attention weights equals a loop written from the weighted-average study."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_runs import AfterEpoch, build, fit
from omegaconf import DictConfig

from attnmosaic.data.sampler import EpochBlocks
from attnmosaic.nn.attention import aggregate
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training.attention_cache import FrozenWhere

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
DIGITS = (
    "data=digits", "model=cnn", "schedule=what_only", "precision=float64", "logger=none", "+data/weights=fixed",
)  # fmt: skip


def with_weight(config: Config, weight: str, *overrides: str) -> DictConfig:
    return config(*DIGITS, f"data.weights.foreground={weight}", "schedule.epochs=2", *overrides)


@pytest.mark.parametrize(("weight", "expected"), [("1/9", "mean"), ("9/9", "foreground")])
def test_aggregates_with_smallest_and_largest_foreground_weight(config: Config, weight: str, expected: str) -> None:
    """Dataset 1's aggregates are plain means, dataset 9's the foreground patches themselves."""
    module, data = build(with_weight(config, weight))
    train = data.mosaics["train"]
    rows = torch.arange(len(train))
    frozen = FrozenWhere(module.pair, data.mosaics, torch.float64, 10**9)
    for kept in (False, True):
        if kept:
            frozen.keep("train")
        alpha, aggregates = frozen.attend("train", rows)
        assert alpha.sum(dim=1).sub(1).abs().max() < 1e-12
        patches = train.patches(rows, torch.float64)
        reference = patches.mean(dim=1) if expected == "mean" else patches[rows, train.foreground]
        assert (aggregates - reference).abs().max() < 1e-12


def test_training_equals_a_plain_loop(config: Config) -> None:
    """Compares aggregates, losses and weights after two epochs, in float64."""
    settings = with_weight(config, "5/9", "lr.what=0.05")
    module, data = build(settings)
    reference = ConvNet(data.patch_shape, data.n_labels).double()
    reference.load_state_dict(module.pair.what.state_dict())
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    train = data.mosaics["train"]
    patches = train.patches(torch.arange(len(train)), torch.float64)
    foreground = F.one_hot(train.foreground, 9).bool()
    weights = torch.full((len(train), 9), 4 / 72, dtype=torch.float64).masked_fill(foreground, 5 / 9)
    averages = torch.einsum("np,npchw->nchw", weights, patches)
    losses: list[float] = []
    order = EpochBlocks(len(train), 25, 1, 0)
    for epoch in range(2):
        order.set_epoch(epoch)
        total = 0.0
        for rows in order:
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(averages[rows]), train.label[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(train))
    measured: list[float] = []
    trained = fit(settings, AfterEpoch(lambda _, m: measured.append(m.epoch_metrics["running/loss"])))
    assert measured == pytest.approx(losses, abs=1e-12)
    for name, value in reference.state_dict().items():
        assert (trained.pair.what.state_dict()[name] - value).abs().max() < 1e-10
    assert (aggregate(weights, patches) - averages).abs().max() < 1e-12


def test_pair_has_no_where_network(config: Config) -> None:
    module, _ = build(with_weight(config, "3/9"))
    assert module.pair.where is None
    assert all(name.startswith("pair.what.") for name in module.state_dict())


def test_views_are_measured_when_the_run_ends(train: Callable[..., dict[str, float]]) -> None:
    """A view with the weights of the training split has the metrics of that split; all published columns exist."""
    overrides = ("experiment=averages/dataset4", "data=digits", "data.foreground=[0,1,2]", "schedule.epochs=3")
    metrics = train(*overrides, "lr.what=0.05")
    names = [f"dataset_{i}" for i in range(1, 11)]
    assert {name.split("/")[0] for name in metrics} == {"train", "test", "held_out", *names, "held_out_foreground"}
    for metric in ("accuracy", "loss", "entropy"):
        assert metrics[f"dataset_4/{metric}"] == metrics[f"train/{metric}"]
    assert metrics["dataset_9/entropy"] == metrics["dataset_10/entropy"] == 0
    assert len({metrics[f"{name}/loss"] for name in names}) == 10
    assert metrics["dataset_9/foreground_weight"] == 1


def test_stop_at_loss_ends_the_run_at_the_first_small_loss(
    config: Config, train: Callable[..., dict[str, float]], tmp_path: Any
) -> None:
    """With `callbacks=stop_at_loss` the run ends with the first epoch whose mean loss is below the threshold."""
    train(
        "experiment=weighted_average", "data=digits", "data.foreground=[0,1,2]", "callbacks=stop_at_loss",
        "data.weights.foreground=9/9", "callbacks.stop.stopping_threshold=1.0", "lr.what=0.1", "schedule.epochs=60",
    )  # fmt: skip
    losses = [line.split(",")[2] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert 1 < len(losses) < 60
    assert float(losses[-1]) < 1.0
    assert all(float(loss) >= 1.0 for loss in losses[:-1])
