"""Paths of a config: relative ones are relative to the folder where the command was started, not to the run's.

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
    """Returns the absolute path of a path that was typed; an address (``gs://...``) stays."""
    return str(path) if "://" in str(path) else os.path.abspath(to_absolute_path(os.path.expanduser(path)))


def where_started() -> contextlib.chdir[str]:
    """Returns a context whose working directory is the folder where the command was started."""
    return contextlib.chdir(absolute("."))


def with_absolute_paths(config: DictConfig) -> DictConfig:
    """Returns a composed config whose paths are absolute, but for those among arguments of networks and objectives."""
    kept = config.copy()
    for key, _ in leaves(OmegaConf.to_container(config, resolve=False)):
        if is_path(key[1:-1].replace("][", ".")):
            path = OmegaConf.select(config, key, throw_on_resolution_failure=False)
            if isinstance(path, str):
                OmegaConf.update(kept, key, absolute(path))
    return kept


def relocate_images(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a run's saved config with the folders of its images where they are now.

    A missing folder that would exist if it had been moved together with the run is taken from there.

    Args:
        config: as it was saved.
        folder: where the run is now.
    """

    def with_root(node: Any) -> Any:
        if not isinstance(node, dict) or not isinstance(node.get("root"), str):
            return node
        before = absolute(node["root"])
        moved = os.path.abspath(folder / os.path.relpath(before, config["run_dir"]))
        return {**node, "root": moved if os.path.isdir(moved) and not os.path.isdir(before) else before}

    data = with_root(dict(config["data"]))
    sets = {part: with_root(data[part]) for part in ("train_set", "test_set") if part in data}
    return {**config, "data": data | sets}


def short_path(path: object) -> str:
    """Returns a path for people to read: relative if it lies in the working directory."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith(os.pardir) else relative
