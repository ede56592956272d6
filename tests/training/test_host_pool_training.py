"""Training with a pool that stays in main memory gives the numbers of one on the device, bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.fake_device import Device
from helpers.small_runs import fit
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from attnmosaic.callbacks.attention_gradients import mean_alpha_gradients
from attnmosaic.config.identity import config_hash
from attnmosaic.data.pool import Pool
from attnmosaic.train import train
from attnmosaic.training import attention_cache, cuda_graphs, stagewise

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
HOST = "compute.pool=host"
DIGITS = ("experiment=stagewise", "data=digits")
FOUR = ("schedule.k=2", "schedule.epochs=4", "lr.what=0.1", "lr.where=0.1", "trainer.check_val_every_n_epoch=1")
QUIET = ("callbacks.progress=null", "callbacks.pictures=null")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Patches are sent ahead to a GPU, beside which a run has no threads that ask for them in any order."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(own)


def parameters(settings: DictConfig) -> list[Tensor]:
    module = fit(settings)
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize(
    ("order", "more"),
    [
        ("what_then_where", ("data=gaussian", "data.points=40")),  # Where scores the pool
        ("what_then_where", (*DIGITS, "compute.cache_gb=0", "data.steps_per_block=1")),  # aggregates are summed afresh
        ("what_then_where", (*DIGITS, "data.eval_batch_size=null")),
        ("joint", (*DIGITS, "data.eval_batch_size=null")),
    ],
)
def test_training_is_the_same_bit_for_bit(
    config: Config, order: str, more: tuple[str, ...], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All callbacks are on: they look patches up, too."""
    # Few bytes a piece, so that everything comes in pieces.
    monkeypatch.setattr(attention_cache, "PIECE", {"cpu": 2**14, "gpu": 2**14})
    settings = (*more, f"schedule={order}", *FOUR, *QUIET)
    near = parameters(config(*settings, run_dir="near"))
    assert not device.sent
    there = parameters(config(*settings, HOST, run_dir="host"))
    assert device.sent
    assert all(torch.equal(one, other) for one, other in zip(near, there, strict=True))


@pytest.mark.parametrize("experiment", [("data=gaussian",), DIGITS, ("experiment=mnist_sum",)])
def test_a_whole_run_is_the_same(config: Config, experiment: tuple[str, ...], device: Device, tmp_path: Path) -> None:
    settings = (*experiment, "schedule.epochs=2", "logger=none", *QUIET)
    assert train(config(*settings, run_dir="near")) == train(config(*settings, HOST, run_dir="host"))
    assert device.sent
    for file in ("metrics.csv", "gradients.csv", "focus_vs_pred_held_out.csv"):
        near, host = tmp_path / "near" / file, tmp_path / "host" / file
        assert near.exists() == host.exists()
        assert not near.exists() or near.read_text() == host.read_text()


def test_never_more_than_a_few_minibatches(config: Config, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pool, while both stages train in blocks of 40 minibatches, and are evaluated and looked at."""
    monkeypatch.setattr(attention_cache, "PIECE", {"cpu": 2**14, "gpu": 2**14})
    settings = config(
        *DIGITS, HOST, "data.train_mosaics=1000", "data.batch_size=25", "data.steps_per_block=40", "compute.cache_gb=0",
        "schedule.k=1", "schedule.epochs=2", *QUIET,
    )  # fmt: skip
    trained = fit(settings)
    minibatch = 25 * 9 * 64
    assert trained.mosaics["train"].pool.patches.nbytes > 6 * minibatch, "else this shows nothing"
    assert device.sent > 80
    assert 2 * minibatch <= device.most <= 3 * minibatch
    assert device.holds == 0


def test_captured_steps_are_for_pools_on_the_device(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step captured with patches from main memory would train on the same ones for ever."""
    fitted = fit(config(HOST, "schedule.epochs=1", *QUIET))
    host, cuda, cpu = fitted.mosaics["train"].pool, torch.device("cuda"), torch.device("cpu")
    near = Pool(host.patches, host.labels, host.classes)
    assert [cuda_graphs.can_capture(*given) for given in ((cuda, near), (cuda, host), (cpu, near))] == [
        True,
        False,
        False,
    ]
    asked = []
    monkeypatch.setattr(stagewise, "can_capture", lambda *given: asked.append(given))
    fitted.on_fit_start()
    assert asked == [(cpu, fitted.mosaics["train"].pool)]
    assert fitted.graphed_steps is None


def test_gradients_over_all_mosaics(config: Config, device: Device) -> None:
    means = []
    for place in ("device", "host"):
        module = fit(config(*DIGITS, "schedule.epochs=1", f"compute.pool={place}", "logger=none", *QUIET))
        module.frozen_where.clear()
        means.append(mean_alpha_gradients(module))
    assert torch.equal(*means)


def test_where_the_pool_is_makes_no_other_run(config: Config) -> None:
    """So that a run goes on, and a row of a table counts, on a machine with another GPU."""
    near, host = (OmegaConf.to_container(config(given), resolve=True) for given in ("compute.pool=auto", HOST))
    assert config_hash(near) == config_hash(host)
