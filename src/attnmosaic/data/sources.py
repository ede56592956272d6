"""Where image pools come from: scikit-learn's bundled digits and torchvision's data sets."""

import contextlib
import functools
import hashlib
import inspect
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import locked
from attnmosaic.data.pool import Pool

DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""Errors of a download or a broken archive; any other is a bug in the data set's own code."""


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
    """Instantiates a torchvision-style data set and returns its images.

    Args:
        key: the data set's config key, for errors.
        make: instantiates the data set, without arguments. It must have ``classes`` and yield (PIL image, class index).
        lock_dir: see `lock_folder`.
        instead: what to type to use other data, for the error of a failed download.

    Raises:
        UserError: the data set does not take its arguments or cannot be downloaded, or the images are of different
            sizes or not of 8 bits.
    """
    if isinstance(make, functools.partial):
        with contextlib.suppress(ValueError):  # a function written in C may have no signature
            try:
                inspect.signature(make.func).bind(*make.args, **make.keywords)
            except TypeError as error:
                raise UserError(f"{key}: {getattr(make.func, '__name__', make.func)} {error}; see conf/data") from error
    source = _instantiate(key, make, lock_dir, instead)
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


def _instantiate(key: str, make: Callable[[], Any], lock_dir: Path, instead: str) -> Any:
    """Instantiates a data set, which downloads what is missing; one process at a time does so for a folder.

    Raises:
        UserError: the download failed.
    """
    made: Any = make.func if isinstance(make, functools.partial) else make
    root = Path(getattr(make, "keywords", {}).get("root", "data")).expanduser()
    lock = lock_dir / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]}.lock"
    with locked(lock, "paths.cache"):
        try:
            return make()
        except DOWNLOAD_ERRORS as error:
            raise UserError(
                f"{key}: {getattr(made, '__name__', type(made).__name__)} is not in '{root}' and could not be "
                f"downloaded ({_first_line(error)}); put {_files_wanted(made, root)}, or name the folder that has it "
                f"with paths.data=DIR, or use {instead}"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _files_wanted(made: Any, root: Path) -> str:
    """Returns which files a torchvision data set needs in which folder, for the error of a failed download."""
    if filename := getattr(made, "filename", None):
        return f"{filename} into '{root}'"
    if resources := getattr(made, "resources", None):
        names = ", ".join(str(resource[0]) for resource in resources)
        return f"{names} into '{root / made.__name__ / 'raw'}'"
    return f"its files into '{root}'"
