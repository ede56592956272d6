"""The table of what each config key decides, and the identity of runs after new keys are added."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config import identity
from attnmosaic.config.identity import Kind, classified, config_hash, identity_settings, is_path, kind_of, often_varied
from attnmosaic.config.resolution import flat, resolve
from attnmosaic.config.schema import EvaluateConfig, ExplainConfig, PredictConfig, TrainConfig, conf_dir
from attnmosaic.config.trainer_arguments import RESTRICTED, SUPPORTED
from attnmosaic.core.errors import UserError
from attnmosaic.runs.run import RESULT, earlier_result

KEYS_OF_0_1_0 = {
    "compute.cache_gb", "compute.engine", "compute.matmul_precision", "compute.threads", "data._target_",
    "data.background", "data.batch_size", "data.classes", "data.color", "data.eval_batch_size", "data.foreground",
    "data.held_out_images", "data.held_out_mosaics", "data.held_out_share", "data.image_size", "data.mean",
    "data.means", "data.operation", "data.order_seed", "data.patches", "data.points", "data.redraw", "data.root",
    "data.seed", "data.std", "data.steps_per_block", "data.test_mosaics", "data.test_set", "data.train_images",
    "data.train_mosaics", "data.train_set", "data.variance", "data.views", "data.weights", "data.weights._target_",
    "data.weights.concentration", "data.weights.foreground", "lr.network", "lr.what", "lr.where", "model.network",
    "model.network._target_", "model.network.channels", "model.network.dropout", "model.network.hidden", "model.what",
    "model.what._target_", "model.what.channels", "model.what.hidden", "model.where", "model.where._target_",
    "model.where.channels", "model.where.hidden", "objective", "objective._target_", "objective.entropy",
    "optimizer.clip_norm", "optimizer.microbatches", "optimizer.network", "optimizer.network._target_",
    "optimizer.network.momentum", "optimizer.what", "optimizer.what._target_", "optimizer.what.momentum",
    "optimizer.where", "optimizer.where._target_", "optimizer.where.momentum", "precision", "scale", "schedule.epochs",
    "schedule.k", "schedule.order", "scheduler.network", "scheduler.network.T_max", "scheduler.network._target_",
    "scheduler.what", "scheduler.what.T_max", "scheduler.what._target_", "scheduler.where", "scheduler.where.T_max",
    "scheduler.where._target_", "seed.all", "seed.data", "seed.init", "seed.order", "trainer._target_",
    "trainer.accelerator", "trainer.check_val_every_n_epoch", "trainer.devices", "trainer.enable_model_summary",
    "trainer.max_epochs", "trainer.num_sanity_val_steps", "trainer.strategy", "trainer.use_distributed_sampler",
}  # fmt: skip
"""Keys of version 0.1.0 that are part of a run's identity, except keys in `NODES`."""

NODES = ("data.views.", "data.train_set.", "data.test_set.")


def keys_of_files() -> set[str]:
    """Returns the keys in the files of conf/, except keys of Hydra."""
    keys: set[str] = set()
    for path in Path(conf_dir()).rglob("*.yaml"):
        group, text = path.relative_to(conf_dir()).parent, path.read_text()
        if group.parts[:1] == ("hydra",):
            continue
        part_of_others = group.parts[:1] == ("data",) and group.name != "weights"
        package = "data" if part_of_others else "" if "@package _global_" in text else ".".join(group.parts)
        content = {
            name: node for name, node in (yaml.safe_load(text) or {}).items() if name not in ("defaults", "hydra")
        }
        keys |= flat({package: content} if package else content).keys()
    return keys


def schema_keys(schema: Any, section: str = "") -> list[str]:
    keys = []
    for field in fields(schema):
        key = f"{section}{field.name}"
        keys += schema_keys(field.type, f"{key}.") if is_dataclass(field.type) else [key]
    return keys


SECTIONS = {"compute", "data", "trainer"}
"""Sections that are empty in some files; only their keys are classified."""


def test_every_key_is_classified() -> None:
    """`KINDS` has a pattern for every key of the schemas, of the files in conf/ and of Lightning's Trainer."""
    schemas = (TrainConfig, EvaluateConfig, ExplainConfig, PredictConfig)
    keys = {key for schema in schemas for key in schema_keys(schema)} | keys_of_files()
    keys |= {f"trainer.{name}" for name in SUPPORTED | RESTRICTED}
    assert len(keys) > 200
    assert [key for key in sorted(keys - SECTIONS) if classified(key) is None] == []


def test_new_key_has_a_default_in_added() -> None:
    """Otherwise the identity of earlier runs would change."""
    keys = {*schema_keys(TrainConfig), *keys_of_files()} - SECTIONS
    deciding = {key for key in keys if kind_of(key) is not Kind.OUTPUT and not key.startswith(NODES)}
    assert sorted(deciding - KEYS_OF_0_1_0 - identity.ADDED.keys()) == []


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lr.what", Kind.OPTIMIZER), ("optimizer.where.momentum", Kind.OPTIMIZER), ("scheduler.what", Kind.OPTIMIZER),
        ("optimizer.clip_norm", Kind.NUMBERS), ("data.patches", Kind.NUMBERS),
        ("data.train_set._target_", Kind.NUMBERS),
        ("data.train_set.root", Kind.OUTPUT), ("data.root", Kind.NUMBERS), ("data.lock_dir", Kind.OUTPUT),
        ("data.train_set.download", Kind.OUTPUT), ("seed.order", Kind.SEED), ("compute.threads", Kind.MACHINE),
        ("compute.pool", Kind.OUTPUT), ("trainer.profiler.dirpath", Kind.OUTPUT), ("trainer.devices", Kind.MACHINE),
        ("callbacks.last.dirpath", Kind.OUTPUT), ("name", Kind.OUTPUT), ("names", Kind.NUMBERS),
        ("data.of_my_own", Kind.NUMBERS), ("data.downloads", Kind.NUMBERS),
    ],
)  # fmt: skip
def test_kind_of_key(key: str, kind: Kind) -> None:
    assert kind_of(key) is kind


def test_path_keys_and_often_varied_keys() -> None:
    paths = (
        "run_dir",
        "paths.cache",
        "data.root",
        "data.test_set.root",
        "trainer.plugins.0.dirpath",
        "logger.a.folder",
    )
    assert all(map(is_path, paths))
    assert not any(map(is_path, ("name", "data.roots", "model.root", "callbacks.last.filename")))
    assert often_varied(["data.patches", "seed.all", "schedule.k", "lr.what"]) == [
        "lr.what",
        "schedule.k",
        "data.patches",
    ]


SMALL = {
    "seed": {"all": 0, "data": 0, "init": 0, "order": 0}, "lr": {"what": 0.1, "where": 0.1, "network": 0.1},
    "schedule": {"order": "joint", "k": 5, "epochs": 10}, "data": {"_target_": "a.B", "patches": 9, "cache_dir": "/x"},
    "model": {"where": {"_target_": "c.D"}, "what": {"_target_": "c.D"}, "network": {}},
    "objective": {"_target_": "e.F"},
    "optimizer": {"what": {}, "where": {}, "network": {}, "clip_norm": None}, "scheduler": {"what": None},
    "compute": {"threads": None, "pool": "auto"}, "trainer": {"devices": 1, "profiler": None}, "scale": "full",
    "logger": {"a": 1}, "name": "x", "run_dir": "/run",
    "callbacks": {"stop": {"_target_": "p.EarlyStopping", "to": "/run/a"}, "last": {"_target_": "p.Last"}},
}  # fmt: skip


def test_hash_of_a_config_does_not_change_between_versions() -> None:
    """Results of existing runs contain it."""
    assert config_hash(SMALL) == "81ea1035d5455b39"
    assert identity_settings(SMALL)["callbacks"] == {"stop": {"_target_": "p.EarlyStopping", "to": "RUN_DIR/a"}}


@pytest.mark.parametrize(("key", "default"), [("compute.depth", 3), ("data.turns", None), ("bag", [1, 2])])
def test_added_key_at_its_default_keeps_the_identity(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, default: Any
) -> None:
    """A run that was saved before the key was added has the same hash, and its folder is accepted."""
    before = resolve(config())
    monkeypatch.setitem(identity.ADDED, key, default)
    same, other = (json.loads(json.dumps(before)) for _ in range(2))
    for settings, value in ((same, default), (other, "another")):
        section, _, name = key.rpartition(".")
        (settings[section] if section else settings)[name] = value
    assert config_hash(same) == config_hash(before) != config_hash(other)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(before))
    (folder / RESULT).write_text(json.dumps({"metrics": {"test/accuracy": 0.5}}))
    result = earlier_result(folder, same)
    assert result is not None
    assert result["metrics"] == {"test/accuracy": 0.5}
    with pytest.raises(UserError, match=rf"other settings .*{key}.*another"):
        earlier_result(folder, other)
