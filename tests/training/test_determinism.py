"""The same seeds on the same machine give the same numbers bit for bit, and each seed moves what is its own."""

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
    """Trains, and returns all weights and the last epoch's metrics."""
    module = fit(settings)
    return torch.cat([p.detach().flatten() for p in module.parameters()]), module.epoch_metrics


def check_same(one: tuple[Tensor, dict[str, float]], other: tuple[Tensor, dict[str, float]]) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("data", "order"), [*((("data=gaussian",), order) for order in ORDERS), (DIGITS, "what_then_where")]
)
def test_however_many_steps_a_block_has(config: Config, order: str, data: tuple[str, ...]) -> None:
    settings = (*data, f"schedule={order}", *FOUR)
    one, *others = (outcome(config(*settings, f"data.steps_per_block={steps}")) for steps in ("1", "2", "null"))
    for other in others:
        check_same(one, other)


def test_however_many_workers_a_loader_has(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows alone travel through loaders; there is no key for it, but a trainer of one's own may add some."""
    settings = config(*FOUR, "data.steps_per_block=1")
    without = outcome(settings)
    made: list[DataLoader[Tensor]] = []

    def loader(*given: Any, **named: Any) -> DataLoader[Tensor]:
        made.append(DataLoader(*given, **named, num_workers=2))
        return made[-1]

    monkeypatch.setattr(sampler, "DataLoader", loader)
    check_same(without, outcome(settings))
    assert made


class Drops(nn.Sequential):
    """Draws while it trains."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.3), nn.Linear(in_shape[0], outputs))


@pytest.mark.parametrize("order", ["what_then_where", "joint"])
def test_twice(config: Config, order: str) -> None:
    """Whatever the process drew and did between the two."""
    drops = (
        *(f"~model.{name}.hidden" for name in ("where", "what")),
        *(f"model.{name}._target_=test_determinism.Drops" for name in ("where", "what")),
    )
    settings = config(f"schedule={order}", *FOUR, *drops)
    first = outcome(settings)
    torch.rand(1000)
    outcome(config(f"schedule={order}", *FOUR, "seed.all=5"))
    check_same(first, outcome(settings))


def drawn(settings: DictConfig) -> dict[str, list[Tensor]]:
    """Returns all that chance decides before and during training, by the seed it is to follow from."""
    module, data = build(settings)
    assert isinstance(data, MosaicDataModule)
    visited = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        visited.append(torch.cat(list(loader)))
    draws = []
    for split in SPLITS:
        mosaics = data.mosaics[split]
        draws += [mosaics.pool.patches, mosaics.index, mosaics.foreground]
    return {
        "data": draws,
        "init": [p.detach() for p in module.parameters() if p.dim() > 1],
        "order": visited,
    }


@pytest.mark.parametrize("data", [("data=gaussian",), DIGITS])
@pytest.mark.parametrize("seed", ["data", "init", "order"])
def test_a_seed_moves_what_is_its_own_and_nothing_else(config: Config, data: tuple[str, ...], seed: str) -> None:
    before, after = drawn(config(*data)), drawn(config(*data, f"seed.{seed}=1"))
    assert before.keys() == after.keys()
    for name, tensors in before.items():
        assert len(tensors) >= 2
        for one, other in zip(tensors, after[name], strict=True):
            assert torch.equal(one, other) == (name != seed), f"seed.{seed}, what {name} decides"


def test_seeds_of_the_same_value_give_streams_of_their_own(config: Config) -> None:
    """What is drawn with one seed does not follow from what is drawn with another, or for another split."""
    everything = drawn(config("seed.all=3"))
    tables = [t for t in everything["data"] if t.dtype == torch.int64 and t.dim() == 2]
    assert not any(torch.equal(tables[i][:30], tables[j][:30]) for i in range(3) for j in range(i))
    one, two = everything["order"]
    assert not torch.equal(one, two)
    assert sorted(one.tolist()) == sorted(two.tolist()) == list(range(60))


def of_jobs(folder: Path) -> dict[int, tuple[Any, dict[str, Tensor]]]:
    """Returns, by seed, metrics and weights of the jobs of a sweep."""
    found = {}
    for job in folder.iterdir():
        if (job / "result.json").exists():
            result = json.loads((job / "result.json").read_text())
            weights = torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            found[result["seed"]["all"]] = result["metrics"], weights
    return found


@pytest.mark.faults
def test_however_a_sweep_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another or at once, in any order; on images, where the threads decide the last digits."""
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
    ways = {
        "one": ("seed.all=0,1,2", "compute.threads=1"),
        "joblib": ("seed.all=1,2,0", *joblib, "hydra.launcher.n_jobs=2"),
    }
    monkeypatch.setattr("joblib.cpu_count", functools.partial(int, 4))  # so one thread each
    ran = {}
    for way, given in ways.items():
        code, _, err = cli("train", *settings, *quiet, *given, f"hydra.sweep.dir={tmp_path / way}", "-m")
        assert code == 0, err
        ran[way] = of_jobs(tmp_path / way)
        assert sorted(ran[way]) == [0, 1, 2]
    for seed in range(3):
        (metrics, weights), (others, other) = ran["one"][seed], ran["joblib"][seed]
        assert metrics == others, seed
        assert all(torch.equal(weights[name], other[name]) for name in weights), seed
