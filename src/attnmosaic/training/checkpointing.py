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
from torch import Tensor, nn

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.config.paths import absolute, relocate_images, short_path
from attnmosaic.config.schema import PAIR, TrainConfig, networks_of
from attnmosaic.config.trusted import NotPlainError, check_plain
from attnmosaic.config.validation import check_ckpt_path, check_settings
from attnmosaic.core.errors import UserError
from attnmosaic.core.files import write_atomically
from attnmosaic.core.text import truncate

COMPLETE = "complete"
"""In a checkpoint that was written between two epochs, and so holds the last one's rows, too: how many ``epochs`` were
done, whether a callback had ``ended`` the run with them, and the values that callbacks monitor (``monitored``)."""

THREADS = "threads"
"""In every checkpoint: how many threads its run computes on."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads none that is damaged. Lightning handles addresses of other machines.

    (Lightning's own syncs nothing, and torch does not compare the checksums that it writes: it would load a flipped bit
    as another weight.)

    Attributes:
        read: a checkpoint that was read already, and its path. Lightning gets it instead of reading the file again, and
            it is emptied then, so that its memory is free once Lightning has restored the run.
    """

    read: tuple[str | Path, dict[str, Any]] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if _is_address(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch hides errors of the disk behind one of its own
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
        return read_checkpoint(path, map_location or "cpu")


def _is_address(path: str | Path) -> bool:
    return "://" in str(path)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True`` after comparing its checksums.

    Raises:
        UserError: it is missing, damaged, or holds more than weights.
    """
    check_ckpt_path(path)
    try:
        with Path(path).expanduser().open("rb") as file:
            _check_sums(file)
            file.seek(0)
            loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise whatever the file makes them raise
        why = f"it is damaged: {error}" if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise UserError(f"ckpt_path: '{short_path(path)}' is no readable attnmosaic checkpoint ({why})") from error
    return loaded


_FOLDER = 0x10
"""The bit that marks a zip file's part as a folder (MS-DOS's attribute)."""


def _check_sums(file: IO[bytes]) -> None:
    """Compares each part of a checkpoint with its CRC-32, which finds any flipped bit.

    Raises:
        BadZipFile: one differs, or is a folder.
    """
    with zipfile.ZipFile(file) as parts:
        for info in parts.infolist():
            if info.is_dir() or info.external_attr & _FOLDER:  # torch would read it from uninitialized memory
                raise zipfile.BadZipFile(f"{info.filename} is a folder")
            with parts.open(info) as part:
                while part.read(1 << 20):
                    pass


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
                f"ckpt_path: '{short_path(path)}' is of another architecture: {name} is {saved.get(name, 'absent')} in "
                f"it and {wanted.get(name, 'absent')} in this config; give the model, patches and classes it was "
                "trained with"
            )


MOST_PIXELS = 2**24
"""Of a patch; networks are tried on the saved shape."""


def read_saved(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and checks that it holds what a run saves, before any of it is used.

    The folders of its images are where they are now, see `attnmosaic.config.paths.relocate_images`. Callers that instantiate
    nodes of its config call `attnmosaic.config.trusted.check_trusted` first.

    Raises:
        UserError: it is missing, or no checkpoint of this program.
    """
    checkpoint = read_checkpoint(path)
    try:
        saved = checkpoint["hyper_parameters"]
        config = saved["config"]
        check_plain(config)
        _check_config(config)
        _check_shapes(saved, config["data"], networks_of(config) == PAIR)
        if not isinstance(checkpoint["epoch"], int):
            raise TypeError("epoch is no number")
        if not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
            raise TypeError("weights are no tensors")
    except Exception as error:  # whatever such a tree makes the checks raise
        why = truncate(str(error) if isinstance(error, (NotPlainError, UserError)) else repr(error), 200)
        raise UserError(
            f"ckpt_path: '{short_path(path)}' is not what a run of attnmosaic saves ({why}); give another checkpoint"
        ) from error
    saved["config"] = relocate_images(config, Path(absolute(path)).parents[1])
    return checkpoint


def _check_config(config: dict[str, Any]) -> None:
    """Checks that every section has the type and the keys that a run's has."""
    _check_keys(config, TrainConfig)
    OmegaConf.merge(
        OmegaConf.structured(TrainConfig), {field.name: config[field.name] for field in fields(TrainConfig)}
    )
    if networks_of(config) != PAIR and config["data"]["operation"] not in OPERATIONS:
        raise ValueError("data.operation is none")
    check_settings(config)


def _check_keys(config: Mapping[str, Any], schema: Any, section: str = "") -> None:
    """Checks that a config, or a section of it, has every key of its schema."""
    for field in fields(schema):
        if field.name not in config:
            raise ValueError(f"no {section}{field.name}")
        if is_dataclass(field.type):
            _check_keys(config[field.name], field.type, f"{field.name}.")


def _check_shapes(saved: Mapping[str, Any], data: Mapping[str, Any], of_pair: bool) -> None:
    """Checks what networks are restored from without their data."""
    shape = saved["patch_shape" if of_pair else "image_shape"]
    if not all(isinstance(side, int) and side > 0 for side in shape) or math.prod(shape) > MOST_PIXELS:
        raise ValueError(f"shape of a patch: {shape}")
    for channels in (data[name] for name in ("mean", "std") if isinstance(data.get(name), list)):
        if len(channels) not in (1, shape[0]):
            raise ValueError(f"{len(channels)} means or deviations for {shape[0]} channels")
    if of_pair and not all(isinstance(name, str) for name in saved["foreground_classes"]):
        raise ValueError("foreground_classes are no names")
