"""Mosaics of torchvision data sets: generated images, failed downloads, and the real MNIST."""

import functools
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import hydra
import numpy as np
import pytest
import torch
import torchvision
from omegaconf import DictConfig
from PIL import Image

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.data.images import TorchvisionMosaics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Fake(torchvision.datasets.FakeData):
    """A data set of generated PIL images, with class names as in real data sets."""

    def __init__(self, size: int, image_size: tuple[int, int, int] = (3, 8, 6), **kwargs: Any) -> None:
        super().__init__(size, image_size, num_classes=5, **kwargs)
        self.classes = list("abcde")


class Unequal(Fake):
    """A data set like `Fake`, but with a fourth image of another size."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= len(self):
            raise IndexError
        image, label = super().__getitem__(index)
        return (image.resize((9, 9)), label) if index == 3 else (image, label)


def mosaics(train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "mean": 0.5, "std": 0.5, "foreground": ["e", "b"], "background": None, "patches": 9, "train_mosaics": 20,
        "test_mosaics": 10, "held_out_mosaics": 10, "batch_size": 5, "steps_per_block": 1, "eval_batch_size": 5,
        "seed": 0, "order_seed": 0,
    }  # fmt: skip
    return TorchvisionMosaics(train_set=train_set, test_set=test_set, lock_dir=lock_dir, **(settings | changes))


def test_pools_contain_the_images(tmp_path: Path) -> None:
    module = mosaics(functools.partial(Fake, 40), functools.partial(Fake, 30, random_offset=99), tmp_path / "locks")
    module.setup()
    for split, source in (("train", Fake(40)), ("test", Fake(40)), ("held_out", Fake(30, random_offset=99))):
        pool = module.mosaics[split].pool
        images, labels = zip(*source, strict=True)
        assert pool.patches.dtype == torch.uint8
        assert np.array_equal(pool.patches.numpy(), [np.asarray(image) for image in images])
        assert pool.labels.tolist() == list(labels)
        assert pool.classes == tuple("abcde")
    assert module.patch_shape == (3, 8, 6)
    assert module.mosaics["train"].foreground_classes == ("e", "b")


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey = torchvision.transforms.Grayscale()
    pool, _ = mosaics(lambda: Fake(10, transform=grey), lambda: Fake(10, transform=grey), tmp_path).load_pools()
    assert pool.patches.shape == (10, 8, 6, 1)
    assert np.array_equal(pool.patches[3, ..., 0], np.asarray(Fake(10, transform=grey)[3][0]))


@pytest.mark.parametrize(
    ("train_set", "test_set", "message"),
    [
        (Unequal, Fake, r"data\.train_set: .*sizes.*\(8, 6, 3\).*\(9, 9, 3\)"),
        (Fake, Unequal, r"data\.test_set: .*sizes"),
        (
            functools.partial(Fake, transform=torchvision.transforms.ToTensor()),
            Fake,
            r"data\.train_set: .*float32.*ToTensor",
        ),
    ],
)
def test_invalid_images_are_user_errors(
    tmp_path: Path, train_set: Callable[..., Any], test_set: Callable[..., Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mosaics(functools.partial(train_set, 10), functools.partial(test_set, 10), tmp_path).load_pools()


def test_other_classes_than_the_data_have_are_a_user_error(tmp_path: Path) -> None:
    sets = functools.partial(Fake, 10), functools.partial(Fake, 10)
    mosaics(*sets, tmp_path, classes=list("abcde")).load_pools()
    with pytest.raises(UserError, match=r"data\.classes: got a, b, but the data have a, b, c, d, e"):
        mosaics(*sets, tmp_path, classes=["a", "b"]).load_pools()


def test_unknown_argument_of_a_data_set_is_a_user_error(tmp_path: Path) -> None:
    invalid = functools.partial(UserSet, root="x", download=True, side=3)
    with pytest.raises(UserError, match=r"data\.train_set: UserSet .*'side'"):
        mosaics(invalid, invalid, tmp_path).load_pools()


# ---- downloads that fail


class CIFAR10(torchvision.datasets.CIFAR10):
    """torchvision's class, on a machine without a network."""

    def download(self) -> None:
        raise URLError("no route to host")


class MNIST(torchvision.datasets.MNIST):
    """torchvision's class, with a damaged archive."""

    def download(self) -> None:
        raise RuntimeError("File not found or corrupted.\nmore")


class UserSet:
    """A user's data set that does not list its files, on a full disk."""

    def __init__(self, root: str, download: bool) -> None:
        raise OSError(28, "No space left on device")


MESSAGES = {
    CIFAR10: ["CIFAR10", "no route to host", "cifar-10-python.tar.gz"],
    MNIST: ["MNIST", "corrupted.", "images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", str(Path("MNIST", "raw"))],
    UserSet: ["UserSet", "No space left on device", "its files"],
}


@pytest.mark.parametrize("data_set", MESSAGES)
def test_failed_download_is_reported_in_one_line(tmp_path: Path, data_set: type) -> None:
    root = tmp_path / "sets"
    instantiate = functools.partial(data_set, root=str(root), download=True)
    with pytest.raises(UserError) as caught:
        mosaics(instantiate, instantiate, tmp_path / "locks").load_pools()
    for words in (*MESSAGES[data_set], "data.train_set", str(root), "paths.data=DIR", "data=image_folder"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_in_the_code_of_a_data_set_is_not_reported_as_failed_download(tmp_path: Path) -> None:
    def instantiate() -> NoReturn:
        raise TypeError("unexpected keyword")

    with pytest.raises(TypeError, match="unexpected keyword"):
        mosaics(instantiate, instantiate, tmp_path).load_pools()


# ---- real data


def read_idx(path: Path, header: int) -> np.ndarray:
    """Reads a file in the original format of MNIST, without its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


@pytest.mark.runs
@pytest.mark.real_data
def test_mnist_from_downloaded_files(config: Callable[..., DictConfig], real_data: Path, tmp_path: Path) -> None:
    """The four files are copied into the data folder, so ``data=mnist`` needs no network."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (real_data / "MNIST" / "raw").glob("*.gz"):
        shutil.copy(path, raw)
    module = hydra.utils.instantiate(config("data=mnist").data, _convert_="all")
    module.setup()
    assert module.patch_shape == (1, 28, 28)
    assert module.mosaics["train"].foreground_classes == ("7 - seven", "8 - eight", "9 - nine")
    for split, name, n in zip(SPLITS, ("train", "train", "t10k"), (60_000, 60_000, 10_000), strict=True):
        mosaics = module.mosaics[split]
        images = read_idx(raw / f"{name}-images-idx3-ubyte.gz", 16).reshape(n, 28, 28, 1)
        labels = read_idx(raw / f"{name}-labels-idx1-ubyte.gz", 8)
        assert np.array_equal(mosaics.pool.patches.numpy(), images)
        assert np.array_equal(mosaics.pool.labels.numpy(), labels)
        at = mosaics.index.gather(1, mosaics.foreground[:, None])[:, 0].numpy()
        assert np.array_equal(labels[at] - 7, mosaics.label.numpy())
        assert ((labels[mosaics.index.numpy()] >= 7).sum(axis=1) == 1).all()
