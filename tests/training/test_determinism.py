"""The same seeds on the same machine give bit-identical results, and each seed changes only its own random values."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Cli
from helpers.settings import SMALL
from helpers.small_runs import build, fit
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attnmosaic.config.schedule import ORDERS
from attnmosaic.data import sampler
from attnmosaic.data.datamodule import SPLITS, MosaicDataModule

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
QUIET = ("logger=none", "callbacks.progress=null", "callbacks.pictures=null", "trainer.check_val_every_n_epoch=1")
FOUR = ("schedule.k=1", "schedule.epochs=4", "lr.what=0.1", "lr.where=0.1", *QUIET)
DIGITS = ("experiment=stagewise", "data=digits")


def outcome(settings: DictConfig) -> tuple[Tensor, dict[str, float]]:
    """Trains a run and returns all weights and the last epoch's metrics."""
    module = fit(settings)
    return torch.cat([p.detach().flatten() for p in module.parameters()]), module.epoch_metrics


def check_same(one: tuple[Tensor, dict[str, float]], other: tuple[Tensor, dict[str, float]]) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("data", "order"), [*((("data=gaussian",), order) for order in ORDERS), (DIGITS, "what_then_where")]
)
def test_results_do_not_depend_on_steps_per_block(config: Config, order: str, data: tuple[str, ...]) -> None:
    settings = (*data, f"schedule={order}", *FOUR)
    one, *others = (outcome(config(*settings, f"data.steps_per_block={steps}")) for steps in ("1", "2", "null"))
    for other in others:
        check_same(one, other)


def test_results_do_not_depend_on_loader_workers(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config key adds workers, but a custom trainer can."""
    settings = config(*FOUR, "data.steps_per_block=1")
    without_workers = outcome(settings)
    loaders: list[DataLoader[Tensor]] = []

    def loader(*args: Any, **kwargs: Any) -> DataLoader[Tensor]:
        loaders.append(DataLoader(*args, **kwargs, num_workers=2))
        return loaders[-1]

    monkeypatch.setattr(sampler, "DataLoader", loader)
    check_same(without_workers, outcome(settings))
    assert loaders


class Drops(nn.Sequential):
    """A network with dropout, which samples random numbers in training."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.3), nn.Linear(in_shape[0], outputs))


@pytest.mark.parametrize("order", ["what_then_where", "joint"])
def test_second_run_in_a_process_equals_the_first(config: Config, order: str) -> None:
    """Also after other random numbers were sampled and another run was trained in between."""
    drops = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=test_determinism.Drops" for name in ("where", "what")),
    )
    settings = config(f"schedule={order}", *FOUR, *drops)
    first = outcome(settings)
    torch.rand(1000)
    outcome(config(f"schedule={order}", *FOUR, "seed.all=5"))
    check_same(first, outcome(settings))


def sampled(settings: DictConfig) -> dict[str, list[Tensor]]:
    """Returns all values that are sampled before and during training, by the seed that they must depend on."""
    module, data = build(settings)
    assert isinstance(data, MosaicDataModule)
    visited = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        visited.append(torch.cat(list(loader)))
    data_values = []
    for split in SPLITS:
        mosaics = data.mosaics[split]
        data_values += [mosaics.pool.patches, mosaics.index, mosaics.foreground]
    return {
        "data": data_values,
        "init": [p.detach() for p in module.parameters() if p.dim() > 1],
        "order": visited,
    }


@pytest.mark.parametrize("data", [("data=gaussian",), DIGITS])
@pytest.mark.parametrize("seed", ["data", "init", "order"])
def test_each_seed_changes_only_its_own_values(config: Config, data: tuple[str, ...], seed: str) -> None:
    before, after = sampled(config(*data)), sampled(config(*data, f"seed.{seed}=1"))
    assert before.keys() == after.keys()
    for name, tensors in before.items():
        assert len(tensors) >= 2
        for one, other in zip(tensors, after[name], strict=True):
            assert torch.equal(one, other) == (name != seed), f"seed.{seed}, values of {name}"


def test_equal_seeds_give_independent_streams(config: Config) -> None:
    """Values sampled with one seed differ from those sampled with another seed or for another split."""
    values = sampled(config("seed.all=3"))
    tables = [t for t in values["data"] if t.dtype == torch.int64 and t.dim() == 2]
    assert not any(torch.equal(tables[i][:30], tables[j][:30]) for i in range(3) for j in range(i))
    one, two = values["order"]
    assert not torch.equal(one, two)
    assert sorted(one.tolist()) == sorted(two.tolist()) == list(range(60))


def results_of_jobs(folder: Path) -> dict[int, tuple[Any, dict[str, Tensor]]]:
    """Returns the metrics and weights of a sweep's jobs by seed."""
    results = {}
    for job in folder.iterdir():
        if (job / "result.json").exists():
            result = json.loads((job / "result.json").read_text())
            weights = torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            results[result["seed"]["all"]] = result["metrics"], weights
    return results


@pytest.mark.faults
def test_results_do_not_depend_on_how_a_sweep_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs one after another or at once, in any order; on images, where threads affect the last digits."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    settings = (
        *SMALL,
        *DIGITS,
        "data.train_mosaics=100",
        "data.batch_size=50",
        "schedule=joint",
        "lr.what=0.5",
        "lr.where=0.5",
        "schedule.epochs=3",
    )
    quiet = ("logger=none", "callbacks.pictures=null")
    joblib = ("hydra/launcher=joblib",)
    launches = {
        "one": ("seed.all=0,1,2", "compute.threads=1"),
        "joblib": ("seed.all=1,2,0", *joblib, "hydra.launcher.n_jobs=2"),
    }
    monkeypatch.setattr("joblib.cpu_count", functools.partial(int, 4))  # so that each job has one thread
    results = {}
    for launch, overrides in launches.items():
        code, _, err = cli("train", *settings, *quiet, *overrides, f"hydra.sweep.dir={tmp_path / launch}", "-m")
        assert code == 0, err
        results[launch] = results_of_jobs(tmp_path / launch)
        assert sorted(results[launch]) == [0, 1, 2]
    for seed in range(3):
        (metrics, weights), (joblib_metrics, joblib_weights) = results["one"][seed], results["joblib"][seed]
        assert metrics == joblib_metrics, seed
        assert all(torch.equal(weights[name], joblib_weights[name]) for name in weights), seed
