"""Composition of configs, and their hash."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.configs import composed
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.groups import names_in
from attnmosaic.config.identity import config_hash
from attnmosaic.config.keys import check_keys
from attnmosaic.config.resolution import resolve, with_scale
from attnmosaic.config.schema import METRICS, TrainConfig, conf_dir, metrics_of, networks_of, register
from attnmosaic.core.errors import UserError

EXPERIMENT = """# @package _global_
name: mine
lr: {what: 0.001, where: 0.002}
seed: {all: 7}
precision: float64
optimized_metric: held_out/ftpt
"""


def test_names_in_a_group_are_those_that_hydra_lists() -> None:
    """For every folder of conf/."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        folders = [path.relative_to(conf_dir()).as_posix() for path in Path(conf_dir()).rglob("*") if path.is_dir()]
        assert "experiment/table1" in folders
        for group in (*folders, "no/such/group", "lr.what"):
            for kind in (ObjectType.CONFIG, ObjectType.GROUP):
                assert names_in(group, kind) == loader.get_group_options(group, kind), group


def test_experiment_overrides_defaults_and_command_line_overrides_both(tmp_path: Path) -> None:
    """Also for an experiment in the user's folder."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    config = composed("train", "experiment=mine", search)
    changed = composed("train", "experiment=mine", search, "lr.what=0.5", "seed.data=3")
    assert (config.lr.what, config.lr.where, config.precision) == (0.001, 0.002, "float64")
    assert (config.seed.data, config.seed.init, config.optimized_metric) == (7, 7, "held_out/ftpt")
    assert (changed.lr.what, changed.lr.where, changed.seed.data, changed.seed.init) == (0.5, 0.002, 3, 7)


def hashed(config: DictConfig) -> str:
    return config_hash(OmegaConf.to_container(config, resolve=True))


@pytest.mark.parametrize(
    "same",
    ["paths.data=elsewhere", "paths.cache=elsewhere", "logger=none", "callbacks.progress=null", "progress=quiet"],
)
def test_hash_ignores_paths_and_output(config: Callable[..., DictConfig], same: str) -> None:
    other = config("experiment=stagewise", same, run_dir="elsewhere")
    assert hashed(other) == hashed(config("experiment=stagewise"))


@pytest.mark.parametrize(
    "change",
    [
        "lr.what=0.02", "seed.order=1", "schedule.k=7", "data.patches=4", "data.foreground=[horse,ship]",
        "model.what.hidden=[5]", "objective.entropy=0.1", "precision=float64", "optimizer=adam", "scheduler=cosine",
    ],
)  # fmt: skip
def test_hash_depends_on_settings_that_decide_numbers(config: Callable[..., DictConfig], change: str) -> None:
    assert hashed(config("experiment=stagewise", change)) != hashed(config("experiment=stagewise"))


def test_networks_and_metrics_follow_from_the_config(config: Callable[..., DictConfig]) -> None:
    pair = OmegaConf.to_container(config(), resolve=True)
    product = OmegaConf.to_container(config("experiment=mnist_product"), resolve=True)
    assert (networks_of(pair), metrics_of(pair)) == (("what", "where"), METRICS)
    assert networks_of(product) == ("network",)
    assert metrics_of(product) == ("loss", "digit_accuracy", "product_accuracy")


def test_hash_ignores_networks_that_are_not_trained(config: Callable[..., DictConfig]) -> None:
    """So pairs keep the hash that they had before networks with two outputs were added."""
    pair = OmegaConf.to_container(config(), resolve=True)
    before = copy.deepcopy(pair)
    for section in ("lr", "model", "optimizer", "scheduler"):
        del before[section]["network"]
    assert config_hash(before) == config_hash(pair) == hashed(config("lr.network=7", "scheduler.network=x"))
    sum_hash = hashed(config("experiment=mnist_sum"))
    assert sum_hash == hashed(config("experiment=mnist_sum", "lr.what=7", "+optimizer.where.eps=1", "scheduler.what=x"))
    for change in ("lr.network=7", "model.network.dropout=0.2", "data.operation=product", "data.redraw=true"):
        assert sum_hash != hashed(config("experiment=mnist_sum", change)), change


MINE = "mine.Net"
REPLACED = {
    ("model.where._target_=mine.Net",): ("model.where", {"_target_": MINE}),
    ("model=mlp_50", "model.what._target_=mine.Net"): ("model.what", {"_target_": MINE}),
    ("data=digits", "model=cnn", "model.where._target_=mine.Net"): ("model.where", {"_target_": MINE}),
    ("experiment=mnist_sum", "model.network._target_=mine.Net"): ("model.network", {"_target_": MINE}),
    ("experiment=mnist_product", "model.network._target_=mine.Net"): ("model.network", {"_target_": MINE}),
    ("optimizer.what._target_=torch.optim.AdamW",): ("optimizer.what", {"_target_": "torch.optim.AdamW"}),
    ("optimizer.where._target_=torch.optim.RMSprop",): ("optimizer.where", {"_target_": "torch.optim.RMSprop"}),
    ("scheduler=cosine", "scheduler.what._target_=mine.Lr"): ("scheduler.what", {"_target_": "mine.Lr"}),
    ("objective._target_=mine.Loss",): ("objective", {"_target_": "mine.Loss"}),
    ("+data/weights=fixed", "data.weights._target_=mine.W"): ("data.weights", {"_target_": "mine.W"}),
    ("logger.tensorboard._target_=mine.Logger",): ("logger.tensorboard", {"_target_": "mine.Logger"}),
    # Arguments from the command line stay, even if their value is the default.
    ("model.where._target_=mine.Net", "model.where.hidden=[4,8]"): (
        "model.where",
        {"_target_": MINE, "hidden": [4, 8]},
    ),
    ("model.where._target_=mine.Net", "+model.where.depth=3"): ("model.where", {"_target_": MINE, "depth": 3}),
    ("optimizer.what._target_=torch.optim.RMSprop", "optimizer.what.momentum=0.9"): (
        "optimizer.what",
        {"_target_": "torch.optim.RMSprop", "momentum": 0.9},
    ),
    ("model.where._target_=mine.Net", "~model.where.hidden"): ("model.where", {"_target_": MINE}),
    ("optimizer.what._target_=torch.optim.SGD",): ("optimizer.what", {"_target_": "torch.optim.SGD", "momentum": 0.9}),
    ("experiment=mine",): ("model.where", {"_target_": MINE, "hidden": [4, 8], "width": 2}),
    ("experiment=mine", "model=cnn"): ("model.where", {"_target_": MINE, "hidden": [4, 8], "width": 2}),
    ("model.where._target_=mine.Net",) * 2: ("model.what", {"_target_": "attnmosaic.nn.networks.MLP", "hidden": [4]}),
}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the override that adds a folder with a user's experiment."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nmodel: {where: {_target_: mine.Net, hidden: [4, 8], width: 2}}\n"
    )
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize("overrides", REPLACED, ids=" ".join)
def test_new_target_removes_the_arguments_of_the_old_target(search: str, overrides: tuple[str, ...]) -> None:
    """Arguments that a user or an experiment has set stay."""
    words = (*overrides, search) if "experiment=mine" in overrides else overrides
    config = OmegaConf.create(resolve(with_scale(composed("train", *words, "run_dir=run"))))
    key, node = REPLACED[overrides]
    assert OmegaConf.select(config, key) == node


KEPT = (
    "data._target_=x",
    "trainer._target_=x",
    "callbacks.last._target_=x",
    "experiment=stagewise data.train_set._target_=x",
)


@pytest.mark.parametrize("overrides", KEPT)
def test_data_trainer_and_callbacks_keep_their_settings(config: Callable[..., DictConfig], overrides: str) -> None:
    *base, changed = overrides.split()
    key = changed.partition("._target_")[0]
    before, after = (
        OmegaConf.select(OmegaConf.create(resolve(with_scale(config(*base, *more)))), key) for more in ((), (changed,))
    )
    assert after == {**before, "_target_": "x"}


READ = [
    ("+width=8", "model.where.hidden=[${width}]"),
    ("+my.width=8", "model.where.hidden=[${my.width}]"),
    ("+my={a:{b:8}}", "model.where.hidden=[${my.a.b}]"),
    ("+lr.base=0.1", "lr.what=${lr.base}"),
    ("+lr.base=0.1", "lr.what=${.base}"),
    ("+base=0.1", "lr.what=${..base}"),
    ("+x=8", "model.where.hidden=[${oc.select:x,8}]"),
    ("+x=2", "lr.what='${twice:${x}}'"),
    ("+paths.x=outs", "paths.cache=${paths.output}/${paths.x}"),
    ("+kind=a", "+widths={a:8,b:9}", "model.where.hidden=['${widths.${kind}}']"),
    ("+schedule.x=3", "schedule.epochs=${schedule.x}"),
    ("+rates={what:0.1,where:0.2}", "lr=${rates}"),
]


@pytest.mark.parametrize("overrides", READ, ids=" ".join)
def test_key_that_an_interpolation_reads_is_accepted(
    config: Callable[..., DictConfig], overrides: tuple[str, ...]
) -> None:
    OmegaConf.register_new_resolver("twice", lambda x: 2 * x, replace=True)
    check_keys(config(*overrides), TrainConfig)


UNREAD = {
    ("+model.attention=sparsemax",): r"model\.attention: got sparsemax, .*allowed: model\.where, model\.what",
    ("+model.temperature=0.5",): r"model\.temperature",
    ("+lr.nonsense=3",): r"lr\.nonsense: got 3, .*allowed: lr\.what, lr\.where, lr\.network",
    ("+lr.all=0.1",): r"lr\.all",  # the last part is a key of `seed` that interpolations read
    ("+optimizer.x=1",): r"optimizer\.x",
    ("+scheduler.x=1",): r"scheduler\.x",
    ("+schedule.epoch=1",): r"schedule\.epoch: .*did you mean schedule\.epochs\?",
    ("+seed.x=1",): r"seed\.x",
    ("+paths.x=1",): r"paths\.x",
    ("+compute.thread=1",): r"compute\.thread: .*did you mean compute\.threads\?",
    ("+x=3",): r"x: got 3, but nothing reads this key",
    ("+epochs=5",): r"epochs: got 5, .*did you mean schedule\.epochs\?",
    ("+my.width=8",): r"my: got",
    ("+x=3", "+y=${x}"): r"y: got 3",
    ("+width=8", "+widht=9", "model.where.hidden=[${width}]"): r"widht: got 9",
    ("+began_otherwise.x=1",): r"began_otherwise: got",
}


@pytest.mark.parametrize("overrides", UNREAD, ids=" ".join)
def test_key_that_nothing_reads_is_a_user_error(config: Callable[..., DictConfig], overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=UNREAD[overrides]):
        check_keys(config(*overrides), TrainConfig)


def test_saved_config_of_a_run_passes(config: Callable[..., DictConfig]) -> None:
    """Its interpolations are resolved, so nothing reads ``width``; and the program has added a key."""
    saved = OmegaConf.create(resolve(config("+width=8", "model.where.hidden=[${width}]")))
    saved.began_otherwise = {"lr.what": 0.1}
    check_keys(saved, TrainConfig)


def test_optimized_metric_of_a_two_output_network_follows_from_its_operation() -> None:
    for overrides, operation in ((), "sum"), (("data.operation=product",), "product"):
        config = composed("train", "experiment=mnist_sum", *overrides)
        assert config.optimized_metric == f"test/{operation}_accuracy"


def test_stagewise_is_row_1_of_table_1() -> None:
    """The settings of the stage-wise study, see docs/sources.md."""
    config = composed("train", "experiment=stagewise")
    assert (config.schedule.order, config.schedule.k, config.schedule.epochs) == ("what_then_where", 5, 180)
    assert (config.lr.what, config.lr.where, config.data.batch_size) == (0.01, 0.01, 250)
    assert (config.data.train_mosaics, config.data.test_mosaics, config.data.patches) == (30_000, 10_000, 9)
    assert config.data.foreground == ["horse", "ship", "truck"]
    assert config.optimizer.what == config.optimizer.where == {"_target_": "torch.optim.SGD", "momentum": 0.9}
