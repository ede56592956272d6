"""Whether a named data set can be had at all. Light: asked before torch is imported, and for all jobs of a sweep."""

import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from attnmosaic.config.image_folders import check_folder, root_folder
from attnmosaic.core.errors import UserError

SECONDS = 5
"""How long a server may take to answer."""


@dataclass(frozen=True)
class _Source:
    """Where torchvision looks for a data set.

    Attributes:
        unpacked: what lies in the root once it was unpacked.
        archives: what it unpacks, also in the root.
        servers: an address of each server that it downloads from.
    """

    unpacked: Sequence[str]
    archives: Sequence[str]
    servers: Sequence[str]


_MNIST = [f"MNIST/raw/{part}-ubyte" for part in (
    "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1",
)]  # fmt: skip
_SOURCES = {
    "torchvision.datasets.CIFAR10": _Source(
        ["cifar-10-batches-py"], ["cifar-10-python.tar.gz"], ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    ),
    "torchvision.datasets.MNIST": _Source(
        _MNIST,
        [f"{name}.gz" for name in _MNIST],
        [
            "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
            "http://yann.lecun.com/exdb/mnist/",
        ],
    ),
}


def check_available(data: dict[str, Any]) -> None:
    """Checks that images are where the config says; of CIFAR-10 and MNIST, or that a server answers for them.

    Args:
        data: the resolved ``data`` section. Of named data sets, others than those two are not looked at.

    Raises:
        UserError: they are not, with what to do.
    """
    if "foreground" in data and data.get("root", MISSING) != MISSING:
        _check_folder(root_folder(data["root"]))
    for part in ("train_set", "test_set"):
        node = data.get(part)
        if not isinstance(node, dict) or node.get("_target_") not in _SOURCES:
            continue
        name, source = node["_target_"].rpartition(".")[2], _SOURCES[node["_target_"]]
        root = Path(node.get("root", "data")).expanduser()
        # As torchvision does: unpacked, or the archives to unpack, which it does only if it may download.
        downloads = bool(node.get("download"))
        if _all_there(root, source.unpacked) or (downloads and _all_there(root, source.archives)):
            continue
        if downloads and any(map(_answers, source.servers)):
            continue
        why = "no server that has it answers" if downloads else f"data.{part}.download is false"
        other = "digits_and_number" if "operation" in data else "image_folder data.root=DIR"
        raise UserError(
            f"data: {name} is not in '{root}' and cannot be downloaded ({why}); put {' and '.join(source.archives)} "
            f"into '{root}', or name the folder that has them with paths.data=DIR, or use other images with "
            f"data={other}"
        )


def _all_there(root: Path, names: Sequence[str]) -> bool:
    return all((root / name).exists() for name in names)


@cache
def _check_folder(root: Path) -> None:
    check_folder(root)


@cache
def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS):
            return True
    except OSError:  # URLError and timeouts among them
        return False
