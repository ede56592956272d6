"""Writing and reading checkpoints: whole and on the disk, and with one line for what may be wrong with one."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from torch import nn

from attnmosaic.checks import check_ckpt_path
from attnmosaic.errors import UserError
from attnmosaic.files import write_atomically
from attnmosaic.paths import shortest


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all, and reads none that is not as it was written.

    (Lightning's own writes to a temporary folder and syncs nothing, and torch does not look at the checksums that it
    writes: a flipped bit would be loaded as another weight.) Addresses of other machines it leaves to Lightning.
    """

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
        BadZipFile: one differs, or the parts are not stored one after another as `torch.save` does it.
    """
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as parts:
        infos = parts.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > size:
            raise zipfile.BadZipFile("its parts are larger than the file")  # they would fill the memory
        for info in infos:
            if info.is_dir() or info.external_attr & _FOLDER:  # torch would give whatever is in the memory for it
                raise zipfile.BadZipFile(f"{info.filename} is a folder")
            with parts.open(info) as part:
                while part.read(1 << 20):
                    pass


def _unreadable(path: str | Path, why: str) -> UserError:
    return UserError(f"ckpt_path: '{shortest(path)}' is no readable attnmosaic checkpoint ({why})")


def check_weights_fit(checkpoint: dict[str, Any], module: nn.Module, path: str | Path) -> None:
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
