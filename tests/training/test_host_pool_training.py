"""Training with a pool that stays in main memory gives the numbers of one on the device, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.small_runs import fit
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.identity import config_hash
from attnmosaic.data.pool import HostPool, Pool
from attnmosaic.train import train
from attnmosaic.training import attention_cache, cuda_graphs, stagewise

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
HOST = "compute.pool=host"
DIGITS = ("experiment=stagewise", "data=digits", "schedule.k=1", "schedule.epochs=2")
QUIET = ("callbacks.progress=null", "callbacks.pictures=null", "logger=none")


@pytest.mark.parametrize(
    "settings",
    [
        ("data=gaussian", "data.points=40", "schedule=joint", "schedule.epochs=2"),  # Where scores the pool
        (*DIGITS, "data.eval_batch_size=null"),
        (*DIGITS, "compute.cache_gb=0", "data.steps_per_block=1"),  # aggregates are summed afresh
        ("experiment=mnist_sum", "schedule.epochs=2"),
    ],
    ids=["joint", "kept", "summed afresh", "two outputs"],
)
def test_a_run_is_the_same_bit_for_bit(
    config: Config, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All callbacks are on: they gather patches, too. Few bytes a piece, so that everything comes in pieces."""
    monkeypatch.setattr(attention_cache, "PIECE", {"cpu": 2**14, "gpu": 2**14})
    near, host = (
        train(config(*settings, f"compute.pool={place}", *QUIET, run_dir=place)) for place in ("device", "host")
    )
    assert near == host
    for file in ("metrics.csv", "gradients.csv", "focus_vs_pred_held_out.csv"):
        one, other = tmp_path / "device" / file, tmp_path / "host" / file
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_text() == other.read_text()
    weights = [
        torch.load(tmp_path / place / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for place in ("device", "host")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_captured_steps_are_for_pools_on_the_device(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step captured with patches from main memory would train on the same ones for ever."""
    fitted = fit(config(HOST, "schedule.epochs=1", *QUIET))
    host, cuda, cpu = fitted.mosaics["train"].pool, torch.device("cuda"), torch.device("cpu")
    assert isinstance(host, HostPool)
    near = Pool(host.patches, host.labels, host.classes)
    captured = [cuda_graphs.can_capture(*given) for given in ((cuda, near), (cuda, host), (cpu, near))]
    assert captured == [True, False, False]
    asked = []
    monkeypatch.setattr(stagewise, "can_capture", lambda *given: asked.append(given))
    fitted.on_fit_start()
    assert asked == [(cpu, fitted.mosaics["train"].pool)]
    assert fitted.graphed_steps is None


def test_where_the_pool_is_makes_no_other_run(config: Config) -> None:
    """So that a run goes on, and a row of a table counts, on a machine with another GPU."""
    near, host = (OmegaConf.to_container(config(given), resolve=True) for given in ("compute.pool=auto", HOST))
    assert config_hash(near) == config_hash(host)
