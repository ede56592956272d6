"""Training with a pool in main memory gives bit-identical results to a pool on the device."""

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
        (*DIGITS, "compute.cache_gb=0", "data.steps_per_block=1"),  # no aggregates are kept
        ("experiment=mnist_sum", "schedule.epochs=2"),
    ],
    ids=["joint", "kept aggregates", "no kept aggregates", "two outputs"],
)
def test_host_and_device_pool_give_identical_runs(
    config: Config, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All callbacks that gather patches are on, and pieces are so small that all data are computed in pieces."""
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


def test_steps_are_captured_only_for_pools_on_the_device(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step captured with patches from main memory would always train on the same patches."""
    fitted = fit(config(HOST, "schedule.epochs=1", *QUIET))
    host, cuda, cpu = fitted.mosaics["train"].pool, torch.device("cuda"), torch.device("cpu")
    assert isinstance(host, HostPool)
    near = Pool(host.patches, host.labels, host.classes)
    captured = [cuda_graphs.can_capture(*arguments) for arguments in ((cuda, near), (cuda, host), (cpu, near))]
    assert captured == [True, False, False]
    calls = []
    monkeypatch.setattr(stagewise, "can_capture", lambda *arguments: calls.append(arguments))
    fitted.on_fit_start()
    assert calls == [(cpu, fitted.mosaics["train"].pool)]
    assert fitted.graphed_steps is None


def test_memory_of_the_pool_does_not_change_the_identity_of_a_run(config: Config) -> None:
    """A run can therefore resume, and counts for its row of a table, on a machine with another GPU."""
    near, host = (OmegaConf.to_container(config(pool), resolve=True) for pool in ("compute.pool=auto", HOST))
    assert config_hash(near) == config_hash(host)
