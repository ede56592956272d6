"""Checks that this machine has the data sets, folders of images and memory that a config asks for."""

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
"""What torchvision reads of a data set, in its ``root``."""


def check_available(data: Mapping[str, Any]) -> None:
    """Checks that a folder of images exists, and CIFAR-10 or MNIST unless torchvision may download it.

    Args:
        data: the resolved ``data`` section. Other data sets are not checked.

    Raises:
        UserError: images are missing.
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
        other = "digits_and_number" if "operation" in data else "image_folder data.root=DIR"
        raise UserError(
            f"data: {target.rpartition('.')[2]} is not in '{root}', and data.{part}.download is false; type "
            f"data.{part}.download=true, or name the folder that has it with paths.data=DIR, or use other images with "
            f"data={other}"
        )


@cache
def _check_folder(root: Path) -> None:
    """Checks a folder once for all jobs of a sweep."""
    check_folder(root)


def check_data_fit(data: Mapping[str, Any]) -> None:
    """Checks that the free memory holds the pools and index tables: a lower bound, from the counts alone.

    Without this check a count with a few zeros too many makes the machine swap until the system kills the run.

    Args:
        data: the resolved ``data`` section, its counts checked.

    Raises:
        UserError: it does not; names the count that takes most.
    """
    patches, side = data.get("patches") or 0, data.get("image_size") or 0
    image = 5 * side**2 * (3 if data.get("color") else 1)  # resized as float32, kept as bytes
    sizes: dict[str, int] = {"points": 2 * 2 * 8 * 2 * (data.get("points") or 0), "image_size": 10 * image}
    for split in ("train", "test", "held_out"):
        # Two numbers of 8 bytes for each patch while they are sampled, as many where attention weights are fixed.
        sizes[f"{split}_mosaics"] = 16 * (data.get(f"{split}_mosaics") or 0) * patches
        sizes[f"{split}_images"] = image * (data.get(f"{split}_images") or 0)
    free, wanted = free_gb(), sum(sizes.values()) / 1e9
    if free is not None and wanted > free:
        key = max(sizes, key=lambda key: sizes[key])
        raise UserError(
            f"data.{key}: got {data[key]}, which takes {wanted:.3g} GB of memory at least, and {free:.3g} GB are free; "
            f"type a smaller data.{key}"
        )
