"""Makes the paths of a config absolute; relative paths are relative to the folder where the command was started.

A run's config and checkpoints have absolute paths because they are also read from other working directories: Hydra can
change the directory of a job (``hydra.job.chdir=true``), and a checkpoint can be evaluated from another folder.
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
    """Returns the absolute form of a path that the user typed; a URL (``gs://...``) stays unchanged."""
    return str(path) if "://" in str(path) else os.path.abspath(to_absolute_path(os.path.expanduser(path)))


def where_started() -> contextlib.chdir[str]:
    """Returns a context manager that changes to the folder where the command was started."""
    return contextlib.chdir(absolute("."))


def with_absolute_paths(config: DictConfig) -> DictConfig:
    """Returns a copy of a composed config in which all paths (see `is_path`) are absolute."""
    absolute_config = config.copy()
    for key, _ in leaves(OmegaConf.to_container(config, resolve=False)):
        if is_path(key[1:-1].replace("][", ".")):
            path = OmegaConf.select(config, key, throw_on_resolution_failure=False)
            if isinstance(path, str):
                OmegaConf.update(absolute_config, key, absolute(path))
    return absolute_config


def relocate_images(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a run's saved config with the current paths of its image folders.

    If a folder is missing, but exists at the same relative path from the run's current folder, that path is used.

    Args:
        config: the saved config.
        folder: the run's current folder.
    """

    def with_root(node: Any) -> Any:
        if not isinstance(node, dict) or not isinstance(node.get("root"), str):
            return node
        saved = absolute(node["root"])
        moved = os.path.abspath(folder / os.path.relpath(saved, config["run_dir"]))
        return {**node, "root": moved if os.path.isdir(moved) and not os.path.isdir(saved) else saved}

    data = with_root(dict(config["data"]))
    sets = {part: with_root(data[part]) for part in ("train_set", "test_set") if part in data}
    return {**config, "data": data | sets}


def short_path(path: object) -> str:
    """Returns a path for display: relative if it is inside the working directory."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith(os.pardir) else relative
