"""Reading a checkpoint as what it is: a file that anybody may have made."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from attnmosaic.checks import check_settings
from attnmosaic.config import TrainConfig, decisive, networks_of
from attnmosaic.data.operations import OPERATIONS
from attnmosaic.errors import UserError
from attnmosaic.paths import absolute, located, shortest
from attnmosaic.training.base import COMPLETE
from attnmosaic.training.checkpoint import read_checkpoint
from attnmosaic.trust import NotPlainError, check_plain

MOST_PIXELS = 2**24
"""Of a patch; the saved shape is what networks are tried on."""


def read_saved(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and checks that it holds what a run saves, before any of it is used.

    The folders of its images are where they are now, see `attnmosaic.paths.located`. Whoever makes something of its
    config asks `attnmosaic.trust.check_trusted` first.

    Raises:
        UserError: it is missing, or no checkpoint of this program.
    """
    checkpoint = read_checkpoint(path)
    saved = checkpoint["hyper_parameters"]
    try:
        config = saved["config"]
        check_plain(config)
        _check_sections(config)
        _check_shapes(saved, config["data"])
        _check_states(checkpoint)
    except (NotPlainError, OmegaConfBaseException, UserError) as error:
        raise _unlike(path, str(error).splitlines()[0]) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unlike(path, f"{type(error).__name__}: {str(error)[:80]}") from error
    saved["config"] = located(config, Path(absolute(path)).parents[1])
    return checkpoint


def _unlike(path: str | Path, what: str) -> UserError:
    said = what if len(what) < 200 else f"{what[:200]} ..."
    return UserError(
        f"ckpt_path: '{shortest(path)}' is not what a run of attnmosaic saves ({said}); give another checkpoint"
    )


def _check_sections(config: dict[str, Any]) -> None:
    """Checks that every section has the type that a run's has, and that what is read of them is there."""
    known = {field.name: config[field.name] for field in fields(TrainConfig) if field.name in config}
    OmegaConf.merge(OmegaConf.structured(TrainConfig), known)
    for section, keys in _READ.items():
        if absent := keys - config[section].keys():
            raise ValueError(f"no {section}.{min(absent)}")
    for name in networks_of(config):
        if not isinstance(config["model"].get(name), dict) or "_target_" not in config["model"][name]:
            raise ValueError(f"model.{name} has no _target_")
    if networks_of(config) == ("network",) and config["data"]["operation"] not in OPERATIONS:
        raise ValueError("data.operation is none")
    check_settings(config)
    decisive(config)


_READ = {
    "seed": {"init", "order"},
    "schedule": {"order", "k", "epochs"},
    "compute": {"matmul_precision"},
    "data": {"_target_"},
    "optimizer": set(),
    "scheduler": set(),
    "objective": set(),
    "trainer": set(),
}  # fmt: skip
"""What doors take from a saved config, by section."""


def _check_shapes(saved: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    for key in ("patch_shape", "image_shape"):
        shape = saved.get(key, [1])
        sides = [side for side in shape if isinstance(side, int) and not isinstance(side, bool) and side > 0]
        size = 1
        for side in sides[:4]:
            size *= side
        if len(sides) != len(shape) or not 1 <= len(shape) <= 4 or size > MOST_PIXELS:
            raise ValueError(f"{key} {str(shape)[:60]}")
        for channels in (data[name] for name in ("mean", "std") if key in saved and isinstance(data.get(name), list)):
            if len(channels) not in (1, shape[0]):
                raise ValueError(f"{len(channels)} means or deviations for {shape[0]} channels")
    classes = saved.get("foreground_classes", [])
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise ValueError("foreground_classes are no names")


def _check_states(checkpoint: Mapping[str, Any]) -> None:
    """Checks what a run that goes on takes over."""
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in checkpoint["state_dict"].items()):
        raise ValueError("weights that are no tensors")
    complete = checkpoint.get(COMPLETE, {"epochs": 0, "ended": False, "monitored": {}})
    for count in (checkpoint["epoch"], complete["epochs"]):
        if not isinstance(count, int) or not 0 <= count < 2**31:
            raise ValueError(f"epoch {str(count)[:40]}")
    if not isinstance(complete["ended"], bool) or not all(
        isinstance(name, str) and isinstance(value, float) for name, value in complete["monitored"].items()
    ):
        raise ValueError("what callbacks monitor is no numbers")
    for name, state in checkpoint.get("callbacks", {}).items():
        if not isinstance(name, str) or not isinstance(state, dict):
            raise ValueError("states of callbacks that are none")
        for file in _remembered_files(state):
            # Lightning removes what a ModelCheckpoint remembers as the one before: anything at all by another protocol
            # ("local://"), and whatever "DIR/../.." leads to.
            if not isinstance(file, str) or (file and not _is_plain_path(file)):
                raise ValueError(f"a checkpoint's path that leads elsewhere: {str(file)[:80]}")


def _remembered_files(state: dict[str, Any]) -> Iterator[Any]:
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        yield state.get(key, "")
    yield from state.get("best_k_models", {})


def _is_plain_path(file: str) -> bool:
    return os.path.isabs(file) and os.path.normpath(file) == file and "::" not in file and "\0" not in file
