"""Writes, reads and validates checkpoints."""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from attnmosaic.config.identity import decisive
from attnmosaic.config.operations import OPERATIONS
from attnmosaic.config.paths import absolute, located, shortest
from attnmosaic.config.schema import PAIR, TrainConfig, networks_of
from attnmosaic.config.trusted import NotPlainError, check_plain
from attnmosaic.config.validation import check_ckpt_path, check_settings
from attnmosaic.core.errors import UserError
from attnmosaic.core.files import write_atomically

COMPLETE = "complete"
"""In a checkpoint that was written between two epochs, and so holds the last one's rows, too: how many ``epochs`` were
done, whether a callback had ``ended`` the run with them, and the values that callbacks monitor (``monitored``)."""

THREADS = "threads"
"""In every checkpoint: how many threads its run computes on."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all, and reads none that is not as it was written.

    (Lightning's own writes to a temporary folder and syncs nothing, and torch does not look at the checksums that it
    writes: a flipped bit would be loaded as another weight.) Addresses of other machines it leaves to Lightning.

    Attributes:
        read: a checkpoint that was read already, and its path. Lightning gets it instead of reading the file again, and
            it is emptied then, so that its memory is free once Lightning has restored the run.
    """

    read: tuple[str | Path, dict[str, Any]] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if _is_address(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch makes another error of one that writing raises
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if self.read is not None and path == self.read[0]:
            checkpoint, self.read = self.read[1], None
            handed_on = {**checkpoint}
            checkpoint.clear()
            return handed_on
        if _is_address(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return _load(path, map_location or "cpu", weights_only)


def _is_address(path: str | Path) -> bool:
    return "://" in str(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing, is not as it was written, or is no checkpoint of this program.
    """
    check_ckpt_path(path)
    checkpoint = _load(Path(path).expanduser(), "cpu", weights_only=True)
    try:
        checkpoint["hyper_parameters"]["config"]["model"]
        checkpoint["epoch"] + 1
        ours = all(isinstance(state, dict) for state in checkpoint.get("callbacks", {}).values())
        ours &= all(isinstance(value, torch.Tensor) for value in checkpoint["state_dict"].values())
    except Exception as error:
        raise _unreadable(path, f"{type(error).__name__}: it is another program's") from error
    if not ours:
        raise _unreadable(path, "it is another program's")
    return checkpoint


def _load(path: str | Path, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    """Loads a file of `torch.save` after a look at its checksums.

    Raises:
        UserError: it is not as it was written, or holds more than weights.
    """
    try:
        with Path(path).open("rb") as file:
            _check_sums(file)
            file.seek(0)
            loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
    except zipfile.BadZipFile as error:
        raise _unreadable(path, f"it is damaged: {error}") from error
    except Exception as error:  # whatever a file makes zipfile, pickle and torch raise
        raise _unreadable(path, type(error).__name__) from error
    return loaded


_FOLDER = 0x10
"""The bit by which a zip file's part is a folder (MS-DOS's attribute)."""


def _check_sums(file: IO[bytes]) -> None:
    """Compares each part of a checkpoint with its CRC-32, which tells any flipped bit.

    Raises:
        BadZipFile: one differs, or is a folder.
    """
    with zipfile.ZipFile(file) as parts:
        for info in parts.infolist():
            if info.is_dir() or info.external_attr & _FOLDER:  # torch would give whatever is in the memory for it
                raise zipfile.BadZipFile(f"{info.filename} is a folder")
            with parts.open(info) as part:
                while part.read(1 << 20):
                    pass


def _unreadable(path: str | Path, why: str) -> UserError:
    return UserError(f"ckpt_path: '{shortest(path)}' is no readable attnmosaic checkpoint ({why})")


def check_weights_fit(checkpoint: Mapping[str, Any], module: nn.Module, path: str | Path) -> None:
    """Checks that a checkpoint is of the module's architecture.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"ckpt_path: '{shortest(path)}' is of another architecture: {name} is {saved.get(name, 'absent')} in "
                f"it and {wanted.get(name, 'absent')} in this config; give the model, patches and classes it was "
                "trained with"
            )


MOST_PIXELS = 2**24
"""Of a patch; the saved shape is what networks are tried on."""


def read_saved(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and checks that it holds what a run saves, before any of it is used.

    The folders of its images are where they are now, see `attnmosaic.config.paths.located`. Callers that instantiate
    nodes of its config call `attnmosaic.config.trusted.check_trusted` first.

    Raises:
        UserError: it is missing, or no checkpoint of this program.
    """
    checkpoint = read_checkpoint(path)
    saved = checkpoint["hyper_parameters"]
    try:
        config = saved["config"]
        check_plain(config)
        _check_sections(config)
        _check_shapes(saved, config["data"], networks_of(config) == PAIR)
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
    """Checks that every section has the type and the keys that a run's has."""
    _check_keys(config, TrainConfig)
    known = {field.name: config[field.name] for field in fields(TrainConfig)}
    OmegaConf.merge(OmegaConf.structured(TrainConfig), known)
    for name in networks_of(config):
        if not isinstance(config["model"].get(name), dict) or "_target_" not in config["model"][name]:
            raise ValueError(f"model.{name} has no _target_")
    if networks_of(config) == ("network",) and config["data"]["operation"] not in OPERATIONS:
        raise ValueError("data.operation is none")
    check_settings(config)
    decisive(config)


def _check_keys(config: Mapping[str, Any], schema: Any, section: str = "") -> None:
    """Checks that a config, or a section of it, has every key of its schema."""
    for field in fields(schema):
        if field.name not in config:
            raise ValueError(f"no {section}{field.name}")
        if is_dataclass(field.type):
            _check_keys(config[field.name], field.type, f"{field.name}.")


def _check_shapes(saved: Mapping[str, Any], data: Mapping[str, Any], of_pair: bool) -> None:
    key = "patch_shape" if of_pair else "image_shape"
    shape = saved[key]
    sides = [side for side in shape if isinstance(side, int) and not isinstance(side, bool) and side > 0]
    if len(sides) != len(shape) or not 1 <= len(shape) <= 4 or math.prod(sides) > MOST_PIXELS:
        raise ValueError(f"{key} {str(shape)[:60]}")
    for channels in (data[name] for name in ("mean", "std") if isinstance(data.get(name), list)):
        if len(channels) not in (1, shape[0]):
            raise ValueError(f"{len(channels)} means or deviations for {shape[0]} channels")
    classes = saved["foreground_classes"] if of_pair else []
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise ValueError("foreground_classes are no names")


def _check_states(checkpoint: Mapping[str, Any]) -> None:
    """Checks what a run that resumes takes over."""
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in checkpoint["state_dict"].items()):
        raise ValueError("weights that are no tensors")
    complete = checkpoint.get(COMPLETE, {"epochs": 0, "ended": False, "monitored": {}})
    for what, count in (("epoch", checkpoint["epoch"]), ("epoch", complete["epochs"]), (THREADS, checkpoint[THREADS])):
        if not isinstance(count, int) or not 0 <= count < 2**31:
            raise ValueError(f"{what} {str(count)[:40]}")
    if not isinstance(complete["ended"], bool) or not all(
        isinstance(name, str) and isinstance(value, float) for name, value in complete["monitored"].items()
    ):
        raise ValueError("what callbacks monitor is no numbers")
    for name, state in checkpoint.get("callbacks", {}).items():
        if not isinstance(name, str) or not isinstance(state, dict):
            raise ValueError("states of callbacks that are none")
