"""Checks that data sets and folders of images exist. Light: run before torch is imported, for all jobs of a sweep."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from attnmosaic.config.image_folders import check_folder, root_folder
from attnmosaic.core.errors import UserError

_FILES = {
    "torchvision.datasets.CIFAR10": ["cifar-10-batches-py"],
    "torchvision.datasets.MNIST": [
        f"MNIST/raw/{part}-ubyte"
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ],
}
"""What torchvision reads of a data set, in its ``root``."""


def check_available(data: dict[str, Any]) -> None:
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
        target = node["_target_"]
        root = Path(node.get("root", "data")).expanduser()
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
    check_folder(root)
