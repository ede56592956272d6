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
"""Key of a checkpoint that was written between two epochs, after the rows of the last epoch were added.

Its value holds ``epochs``, the number of trained epochs; ``ended``, whether a callback ended the run after them; and
``monitored``, the values that callbacks monitor.
"""

THREADS = "threads"
"""Key of every checkpoint: the number of threads that its run computes on."""

CONVOLUTIONS = "convolutions"
"""Key of every checkpoint: how its run computes convolutions on a CPU, see `attnmosaic.training.convolutions`."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and refuses to read damaged ones. URLs are left to Lightning.

    Lightning's own class does not sync files, and torch does not compare the checksums that it writes: it would load a
    flipped bit as another weight.

    Attributes:
        preloaded: path and contents of a checkpoint that was already read. Lightning gets these contents instead of
            reading the file again. The dict is emptied then, so that Lightning alone holds the tensors and their memory
            is free once the run is restored.
    """

    preloaded: tuple[str | Path, dict[str, Any]] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if _is_url(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch.save to a file would raise its own error instead of the disk's
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if self.preloaded is not None and path == self.preloaded[0]:
            checkpoint, self.preloaded = self.preloaded[1], None
            contents = {**checkpoint}
            checkpoint.clear()
            return contents
        if _is_url(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(path, map_location or "cpu")


def _is_url(path: str | Path) -> bool:
    return "://" in str(path)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Compares a checkpoint's checksums, then loads it with ``weights_only=True``.

    Raises:
        UserError: the file is missing, damaged, or holds objects that ``weights_only=True`` refuses.
    """
    check_ckpt_path(path)
    try:
        with Path(path).expanduser().open("rb") as file:
            _check_checksums(file)
            file.seek(0)
            loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise errors of many types for damaged files
        why = f"it is damaged: {error}" if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise UserError(
            f"ckpt_path: '{short_path(path)}' is not a readable attnmosaic checkpoint ({why}); give another file"
        ) from error
    return loaded


_FOLDER_BIT = 0x10
"""The bit that marks an entry of a zip file as a folder (an MS-DOS attribute)."""


def _check_checksums(file: IO[bytes]) -> None:
    """Compares each entry of a checkpoint's zip file with its CRC-32, which detects any flipped bit.

    Raises:
        BadZipFile: an entry has another checksum, or is a folder.
    """
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir() or info.external_attr & _FOLDER_BIT:  # torch would return uninitialized memory for it
                raise zipfile.BadZipFile(f"{info.filename} is a folder")
            with archive.open(info) as entry:
                while entry.read(1 << 20):  # zipfile compares the checksum at the end of the entry
                    pass


def check_weights_fit(checkpoint: Mapping[str, Any], module: nn.Module, path: str | Path) -> None:
    """Checks that a checkpoint has the module's architecture.

    Raises:
        UserError: a parameter is missing, unknown or has another shape.
    """
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"ckpt_path: '{short_path(path)}' has another architecture: {name} is {saved.get(name, 'missing')} "
                f"in the checkpoint and {expected.get(name, 'missing')} in this config; type the model, patches and "
                "classes of the checkpoint's run"
            )


MAX_PATCH_VALUES = 2**24
"""Largest number of values in a patch. Networks are tried on a patch of the saved shape, which must fit the memory."""


def read_saved(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and checks, before anything uses it, that its contents are those that a run saves.

    The paths of image folders in its config are replaced by their present paths, see
    `attnmosaic.config.paths.relocate_images`. Callers that instantiate nodes of this config must call
    `attnmosaic.config.trusted.check_trusted` first.

    Raises:
        UserError: the file is missing, or is not a checkpoint of this program.
    """
    checkpoint = read_checkpoint(path)
    try:
        saved = checkpoint["hyper_parameters"]
        config = saved["config"]
        check_plain(config)
        _check_config(config)
        _check_shapes(saved, config["data"], networks_of(config) == PAIR)
        if not isinstance(checkpoint["epoch"], int):
            raise TypeError("epoch is not an integer")
        if not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
            raise TypeError("a weight is not a tensor")
    except Exception as error:  # the checks raise errors of many types for an unexpected structure
        why = truncate(str(error) if isinstance(error, (NotPlainError, UserError)) else repr(error), 200)
        raise UserError(
            f"ckpt_path: '{short_path(path)}' was not saved by a run of attnmosaic ({why}); type another ckpt_path"
        ) from error
    saved["config"] = relocate_images(config, Path(absolute(path)).parents[1])
    return checkpoint


def _check_config(config: dict[str, Any]) -> None:
    """Checks that every section of a config has the types and keys that the schema requires."""
    _check_keys(config, TrainConfig)
    OmegaConf.merge(
        OmegaConf.structured(TrainConfig), {field.name: config[field.name] for field in fields(TrainConfig)}
    )
    if networks_of(config) != PAIR and config["data"]["operation"] not in OPERATIONS:
        raise ValueError(f"data.operation is unknown: {config['data']['operation']}")
    check_settings(config)


def _check_keys(config: Mapping[str, Any], schema: Any, section: str = "") -> None:
    """Checks that a config, or a section of a config, has every key of its schema."""
    for field in fields(schema):
        if field.name not in config:
            raise ValueError(f"{section}{field.name} is missing")
        if is_dataclass(field.type):
            _check_keys(config[field.name], field.type, f"{field.name}.")


def _check_shapes(saved: Mapping[str, Any], data: Mapping[str, Any], is_pair: bool) -> None:
    """Checks the saved shapes and class names, from which networks are restored without their data."""
    shape = saved["patch_shape" if is_pair else "image_shape"]
    if not all(isinstance(side, int) and side > 0 for side in shape) or math.prod(shape) > MAX_PATCH_VALUES:
        raise ValueError(f"invalid shape of a patch: {shape}")
    for channels in (data[name] for name in ("mean", "std") if isinstance(data.get(name), list)):
        if len(channels) not in (1, shape[0]):
            raise ValueError(f"{len(channels)} means or deviations for {shape[0]} channels")
    if is_pair and not all(isinstance(name, str) for name in saved["foreground_classes"]):
        raise ValueError("a name in foreground_classes is not text")
