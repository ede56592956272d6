"""Where image pools come from: scikit-learn's bundled digits and torchvision's data sets."""

import contextlib
import functools
import hashlib
import inspect
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import locked
from attnmosaic.data.pool import Pool

DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What a download or a broken archive raises; anything else is a mistake in the data set's own code."""


class Images(NamedTuple):
    """A classified set of images.

    Attributes:
        pixels: uint8 ``[U, H, W, C]``.
        labels: class index of each, ``[U]``.
        classes: class names in index order.
    """

    pixels: np.ndarray | torch.Tensor
    labels: Any
    classes: Sequence[str]


def per_channel(value: float | Sequence[float]) -> tuple[float, ...]:
    """Returns a pixel mean or standard deviation, given as one number or one a channel, as a pool keeps it."""
    return (float(value),) if isinstance(value, (int, float)) else tuple(value)


def image_pool(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Pool:
    """Makes a pool of images.

    Raises:
        UserError: mean or std has neither one value nor one a channel.
    """
    patches = torch.as_tensor(images.pixels)
    for key, values in (("data.mean", mean), ("data.std", std)):
        if len(values) not in (1, patches.shape[-1]):
            raise UserError(
                f"{key}: got {len(values)} values, needs one, or one for each of {patches.shape[-1]} channels"
            )
    return Pool(
        patches=patches,
        labels=torch.as_tensor(images.labels, dtype=torch.int64),
        classes=tuple(images.classes),
        mean=mean,
        std=std,
    )


def load_digits() -> Images:
    """Returns scikit-learn's bundled 8 x 8 handwritten digits: 1,797 images, no download."""
    from sklearn import datasets

    digits = datasets.load_digits()
    # Stored as counts 0 to 16; spread over a byte like any other image.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Images(pixels, digits.target, [str(i) for i in digits.target_names])


def lock_folder(lock_dir: str | Path | None) -> Path:
    """Returns the folder for the lock that keeps two jobs from downloading at once."""
    return Path(lock_dir or tempfile.gettempdir()).expanduser()


def load_set(key: str, make: Callable[[], Any], lock_dir: Path, instead: str) -> Images:
    """Makes a torchvision-style data set and takes its images.

    Args:
        key: where it stands in the config, for errors.
        make: called without arguments. What it gives must have ``classes`` and yield (PIL image, class index).
        lock_dir: see `lock_folder`.
        instead: what to type to use other data, told where these cannot be had.

    Raises:
        UserError: the data set does not take its arguments or cannot be downloaded, or the images are of different
            sizes or not of 8 bits.
    """
    if isinstance(make, functools.partial):
        with contextlib.suppress(ValueError):  # what is written in C may tell no signature
            try:
                inspect.signature(make.func).bind(*make.args, **make.keywords)
            except TypeError as error:
                raise UserError(f"{key}: {getattr(make.func, '__name__', make.func)} {error}; see conf/data") from error
    with _download(key, make, lock_dir, instead):
        source = make()
    images, labels = [], []
    for image, label in source:
        images.append(np.asarray(image))
        labels.append(label)
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise UserError(
            f"{key}: its images differ in size ({', '.join(map(str, sorted(sizes)[:3]))}), "
            "they must be equal; add a Resize transform to the data set"
        )
    stacked = np.stack(images)
    if stacked.dtype != np.uint8:
        raise UserError(f"{key}: yields {stacked.dtype} pixels, needs 8-bit PIL images; leave out ToTensor")
    pixels = stacked[..., None] if stacked.ndim == 3 else stacked
    return Images(pixels, labels, [str(name) for name in source.classes])


@contextlib.contextmanager
def _download(key: str, make: Callable[[], Any], lock_dir: Path, instead: str) -> Iterator[None]:
    """Runs a data set's own download: one job at a time, and nothing half-written stays when it fails."""
    made: Any = make.func if isinstance(make, functools.partial) else make
    name = getattr(made, "__name__", type(made).__name__)
    root = Path(getattr(make, "keywords", {}).get("root", "data")).expanduser()

    def files() -> set[Path]:
        """Returns what lies where the data set is known to write; other things in the root are not its own."""
        folders = [root / folder for folder in (name, getattr(made, "base_folder", None)) if folder]
        archives = [getattr(made, "filename", None), *(resource[0] for resource in getattr(made, "resources", []))]
        owned = {*folders, *(root / archive for archive in archives if archive)}
        return {path for path in owned if path.exists()} | {p for folder in folders for p in folder.rglob("*")}

    with locked(lock_dir, hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]):
        absent = [folder for folder in (root, *root.parents) if not folder.exists()]
        before = files()
        try:
            with _archives_kept_inside():
                yield
        except BaseException as error:
            for path in sorted(files() - before, reverse=True):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for folder in absent:
                with contextlib.suppress(OSError):  # absent, or somebody else's by now
                    folder.rmdir()
            if not isinstance(error, DOWNLOAD_ERRORS):
                raise
            raise UserError(
                f"{key}: {name} is not in '{root}' and could not be downloaded "
                f"({_first_line(error)}); put {_files_wanted(made, root)}, or name the folder that has it with "
                f"paths.data=DIR, or use {instead}"
            ) from error


@contextlib.contextmanager
def _archives_kept_inside() -> Iterator[None]:
    """Has every tar archive unpacked as data: no absolute names, no ``..``, no links out, no devices.

    It is what Python does from 3.14 on, and torchvision lately; zip archives are always unpacked so.
    """
    if not hasattr(tarfile, "data_filter"):  # before Python 3.11.4
        yield
        return
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _files_wanted(made: Any, root: Path) -> str:
    """Says which files a torchvision data set looks for, where it tells."""
    if filename := getattr(made, "filename", None):
        return f"{filename} into '{root}'"
    if resources := getattr(made, "resources", None):
        names = ", ".join(str(resource[0]) for resource in resources)
        return f"{names} into '{root / made.__name__ / 'raw'}'"
    return f"its files into '{root}'"
