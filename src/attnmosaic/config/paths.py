"""What a relative path means: a place in the folder where the command was started. Light: imports no torch.

Hydra changes the working directory of a job (``hydra.job.chdir=true``), a checkpoint is measured from another folder, a
run is copied to another machine. So a run's config and its checkpoints hold absolute paths.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.identity import is_path
from attnmosaic.config.resolution import leaves


def absolute(path: str | Path) -> str:
    """Returns a path as it is from the folder where the command was started; an address of another machine stays."""
    return str(path) if "://" in str(path) else os.path.abspath(to_absolute_path(os.path.expanduser(path)))


def where_started() -> contextlib.chdir[str]:
    """Returns a context in which relative paths are what the user typed, and are reported so."""
    return contextlib.chdir(absolute("."))


def with_absolute_paths(config: DictConfig) -> DictConfig:
    """Returns a composed config whose paths are absolute.

    Paths among the arguments of a network or an objective are not known as such: they stay.
    """
    kept = config.copy()
    for key, _ in leaves(OmegaConf.to_container(config, resolve=False)):
        named = is_path(key[1:-1].replace("][", "."))
        path = OmegaConf.select(config, key, throw_on_resolution_failure=False) if named else None
        if isinstance(path, str):
            OmegaConf.update(kept, key, absolute(path))
    return kept


def located(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a run's saved config with the folders of its images where they are now.

    A folder that is missing, but lies where it would if it had been moved together with the run, is taken from there.

    Args:
        config: as it was saved.
        folder: where the run is now.
    """

    def found(root: str) -> str:
        before, run_dir = absolute(root), config.get("run_dir")
        beside = os.path.abspath(folder / os.path.relpath(before, run_dir)) if isinstance(run_dir, str) else before
        return beside if os.path.isdir(beside) and not os.path.isdir(before) else before

    data = dict(config["data"])
    for part in ("train_set", "test_set"):
        if isinstance(data.get(part), dict):
            data[part] = _with_root(data[part], found)
    return {**config, "data": _with_root(data, found)}


def _with_root(node: dict[str, Any], found: Any) -> dict[str, Any]:
    return {**node, "root": found(node["root"])} if isinstance(node.get("root"), str) else node


def shortest(path: object) -> str:
    """Returns a path for people to read: relative if it lies in the working directory."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith(os.pardir) else relative
