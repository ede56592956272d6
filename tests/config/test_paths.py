"""Paths of a config become absolute, and the image folders of a moved run are found."""

from pathlib import Path
from typing import Any

import pytest
from helpers.configs import composed
from omegaconf import OmegaConf

from attnmosaic.config.identity import config_hash
from attnmosaic.config.paths import absolute, relocate_images, with_absolute_paths
from attnmosaic.config.resolution import resolve, with_scale


def resolved(*overrides: str) -> Any:
    return OmegaConf.create(resolve(with_absolute_paths(with_scale(composed("train", "run_dir=run", *overrides)))))


PATHS = {
    "run_dir": ("", "run"),
    "trainer.default_root_dir": ("", "run"),
    "callbacks.last.dirpath": ("", "run/checkpoints"),
    "callbacks.tables.folder": ("", "run"),
    "logger.tensorboard.folder": ("", "run"),
    "ckpt_path": ("ckpt_path=../x.ckpt", "../x.ckpt"),
    "data.train_set.root": ("paths.data=sets/", "sets"),
    "data.test_set.root": ("data.test_set.root=sets", "sets"),
    "data.lock_dir": ("paths.cache=cache", "cache"),
    "callbacks.best.dirpath": ("+callbacks.best={_target_: x, dirpath: best}", "best"),
    "logger.csv.save_dir": ("+logger.csv={_target_: x, save_dir: logs}", "logs"),
    "trainer.profiler.dirpath": ("debug=profiler", "run"),
    "paths.output": ("paths.output=outs", "outs"),
}


@pytest.mark.parametrize("key", PATHS)
def test_path_of_a_run_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    override, expected = PATHS[key]
    config = resolved("experiment=stagewise", *filter(None, [override]))
    value: Any = config
    for name in key.split("."):
        value = value[name]
    assert value == str((tmp_path / expected).resolve())


def test_values_that_are_not_relative_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("/a/b") == "/a/b"
    assert absolute("gs://bucket/run") == "gs://bucket/run"
    config = resolved("+callbacks.mine={_target_: x, folder: 3, root: null}", "model.what._target_=a.b")
    assert config.callbacks.mine == {"_target_": "x", "folder": 3, "root": None}
    assert config.model.what._target_ == "a.b"


def test_hash_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, root in ((tmp_path, "photos"), (tmp_path / "a" / "b", "../../photos/"), (tmp_path, "a/../photos")):
        monkeypatch.chdir(folder)
        config: Any = resolved("data=image_folder", "data.foreground=[0,1]", f"data.root={root}")
        hashes.append(config_hash(OmegaConf.to_container(config)))
    assert len({*hashes}) == 1


def test_image_folder_of_a_moved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved path if it exists; else the same path relative to the moved run; else the saved path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "new" / "sets").mkdir(parents=True)
    saved = {"run_dir": "/old/runs/first", "data": {"train_set": {"root": "/old/sets"}, "test_set": None}}
    now = relocate_images(saved, tmp_path / "new" / "runs" / "first")
    assert now["data"] == {"train_set": {"root": str(tmp_path / "new" / "sets")}, "test_set": None}
    existing = str(tmp_path / "there")
    for root, expected in (("/missing", "/missing"), (existing, existing), ("there", existing)):
        assert relocate_images({**saved, "data": {"root": root}}, tmp_path / "new")["data"]["root"] == expected
    assert saved["data"]["train_set"]["root"] == "/old/sets"
