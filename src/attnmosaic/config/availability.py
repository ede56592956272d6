"""Checks that this machine has the data sets, image folders and free memory that a config needs."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from attnmosaic.config.image_folders import check_folder, root_folder
from attnmosaic.core.errors import UserError
from attnmosaic.core.resources import free_gb

_FILES = {
    "torchvision.datasets.CIFAR10": ["cifar-10-batches-py"],
    "torchvision.datasets.MNIST": [
        f"MNIST/raw/{part}-ubyte"
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ],
}
"""Files that torchvision reads for a data set, relative to its ``root``."""


def check_available(data: Mapping[str, Any]) -> None:
    """Checks that the image folder exists, or the files of CIFAR-10 or MNIST unless torchvision can download them.

    Other data sets are not checked.

    Args:
        data: the resolved ``data`` section.

    Raises:
        UserError: a folder or file is missing.
    """
    if "foreground" in data and data.get("root", MISSING) != MISSING:
        _check_folder(root_folder(data["root"]))
    for part in ("train_set", "test_set"):
        node = data.get(part)
        if not isinstance(node, dict) or node.get("_target_") not in _FILES or node.get("download"):
            continue
        target, root = node["_target_"], Path(node.get("root", "data")).expanduser()
        if all((root / name).exists() for name in _FILES[target]):
            continue
        alternative = "digits_and_number" if "operation" in data else "image_folder data.root=DIR"
        raise UserError(
            f"data: {target.rpartition('.')[2]} is not in '{root}', and data.{part}.download is false; type "
            f"data.{part}.download=true to download it, paths.data=DIR for the folder that has it, or "
            f"data={alternative} for other images"
        )


@cache
def _check_folder(root: Path) -> None:
    """Checks an image folder; the cache saves repeated checks in the jobs of a sweep."""
    check_folder(root)


def check_data_fit(data: Mapping[str, Any]) -> None:
    """Checks that the pools and index tables fit into the free memory, by a lower bound that follows from the counts.

    Without this check, a count that is far too large would make the machine swap until the system kills the run.

    Args:
        data: the resolved ``data`` section, after its counts were checked.

    Raises:
        UserError: the data do not fit; the message names the count that needs most memory.
    """
    patches, side = data.get("patches") or 0, data.get("image_size") or 0
    image = 5 * side**2 * (3 if data.get("color") else 1)  # bytes: 4 as float32 while it is resized, 1 as uint8
    sizes: dict[str, int] = {"points": 2 * 2 * 8 * 2 * (data.get("points") or 0), "image_size": 10 * image}
    for split in ("train", "test", "held_out"):
        # Sampling needs two numbers of 8 bytes for each patch; so do fixed attention weights.
        sizes[f"{split}_mosaics"] = 16 * (data.get(f"{split}_mosaics") or 0) * patches
        sizes[f"{split}_images"] = image * (data.get(f"{split}_images") or 0)
    free, needed = free_gb(), sum(sizes.values()) / 1e9
    if free is not None and needed > free:
        key = max(sizes, key=lambda key: sizes[key])
        raise UserError(
            f"data.{key}: got {data[key]}, but the data need at least {needed:.3g} GB of memory and {free:.3g} GB are "
            f"free; type a smaller data.{key}"
        )
