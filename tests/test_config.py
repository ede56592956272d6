"""What a config composes to, and its hash."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config import METRICS, conf_dir, config_hash, metrics_of, networks_of, register

EXPERIMENT = """# @package _global_
name: mine
lr: {what: 0.001, where: 0.002}
seed: {all: 7}
precision: float64
optimized_metric: held_out/ftpt
"""


def test_an_experiment_overrides_every_key_and_the_command_line_all(tmp_path: Path) -> None:
    """From a folder of the user's own, too."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", ["experiment=mine", search])
        changed = compose("train", ["experiment=mine", search, "lr.what=0.5", "seed.data=3"])
    assert (config.lr.what, config.lr.where, config.precision) == (0.001, 0.002, "float64")
    assert (config.seed.data, config.seed.init, config.optimized_metric) == (7, 7, "held_out/ftpt")
    assert (changed.lr.what, changed.lr.where, changed.seed.data, changed.seed.init) == (0.5, 0.002, 3, 7)


def hashed(config: DictConfig) -> str:
    return config_hash(OmegaConf.to_container(config, resolve=True))


@pytest.mark.parametrize(
    "same",
    ["paths.data=elsewhere", "paths.cache=elsewhere", "logger=none", "callbacks.progress=null", "progress=quiet"],
)
def test_hash_ignores_where_and_how_it_is_written(config: Callable[..., DictConfig], same: str) -> None:
    other = config("experiment=stagewise", same, run_dir="elsewhere")
    assert hashed(other) == hashed(config("experiment=stagewise"))


@pytest.mark.parametrize(
    "change",
    [
        "lr.what=0.02", "seed.order=1", "schedule.k=7", "data.patches=4", "data.foreground=[horse,ship]",
        "model.what.hidden=[5]", "objective.entropy=0.1", "precision=float64", "optimizer=adam", "scheduler=cosine",
    ],
)  # fmt: skip
def test_hash_tells_runs_of_different_numbers_apart(config: Callable[..., DictConfig], change: str) -> None:
    assert hashed(config("experiment=stagewise", change)) != hashed(config("experiment=stagewise"))


def test_what_a_run_measures_and_trains(config: Callable[..., DictConfig]) -> None:
    """Known before torch is imported; a config saved before there were other networks than pairs has no such key."""
    pair = OmegaConf.to_container(config(), resolve=True)
    product = OmegaConf.to_container(config("experiment=mnist_product"), resolve=True)
    assert (networks_of(pair), metrics_of(pair)) == (("what", "where"), METRICS)
    assert networks_of(product) == ("network",)
    assert metrics_of(product) == ("loss", "digit_accuracy", "product_accuracy")
    del pair["model"]["network"]
    assert metrics_of(pair) == METRICS


def test_the_hash_is_of_the_trained_networks_alone(config: Callable[..., DictConfig]) -> None:
    """So pairs keep the hash that they had before there were other networks."""
    pair = OmegaConf.to_container(config(), resolve=True)
    before = copy.deepcopy(pair)
    for section in ("lr", "model", "optimizer", "scheduler"):
        del before[section]["network"]
    assert config_hash(before) == config_hash(pair) == hashed(config("lr.network=7", "scheduler.network=x"))
    one = hashed(config("experiment=mnist_sum"))
    assert one == hashed(config("experiment=mnist_sum", "lr.what=7", "+optimizer.where.eps=1", "scheduler.what=x"))
    for change in ("lr.network=7", "model.network.dropout=0.2", "data.operation=product", "data.redraw=true"):
        assert one != hashed(config("experiment=mnist_sum", change)), change
