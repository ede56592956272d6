"""Image data sets: scikit-learn's bundled digits and torchvision's, as pixels, and pools made of pixels."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attnmosaic.core.errors import UserError
from attnmosaic.core.files import locked
from attnmosaic.data.pool import Pool


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


def image_pool(images: Images, mean: float | Sequence[float], std: float | Sequence[float]) -> Pool:
    """Builds a pool of images.

    Args:
        images: the images.
        mean: pixel mean after scaling to [0, 1], one value or one a channel.
        std: pixel standard deviation, likewise.

    Raises:
        UserError: mean or std has neither one value nor one a channel.
    """
    patches = torch.as_tensor(images.pixels)
    channels, scaling = patches.shape[-1], {}
    for key, value in (("mean", mean), ("std", std)):
        scaling[key] = values = (float(value),) if isinstance(value, (int, float)) else tuple(value)
        if len(values) not in (1, channels):
            raise UserError(f"data.{key}: got {len(values)} values, needs one, or one for each of {channels} channels")
    return Pool(patches, torch.as_tensor(images.labels, dtype=torch.int64), tuple(images.classes), **scaling)


def load_digits() -> Images:
    """Returns scikit-learn's bundled 8 x 8 handwritten digits: 1,797 images, no download."""
    from sklearn import datasets

    digits = datasets.load_digits()
    # Stored as counts 0 to 16; spread over a byte like any other image.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Images(pixels, digits.target, [str(i) for i in digits.target_names])


def load_sets(
    train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: str | Path, instead: str
) -> tuple[Images, Images]:
    """Returns the images of two torchvision-style data sets, downloading what is missing.

    Args:
        train_set: instantiates the data set behind the training pool; called without arguments. It must have
            ``classes`` and yield (PIL image, class index).
        test_set: the same for the held-out pool.
        lock_dir: folder of the lock that keeps two jobs from downloading at once.
        instead: what to type to use other data, for the error of a failed download.

    Raises:
        UserError: a data set does not take its arguments or cannot be downloaded, or its images are of different
            sizes or not of 8 bits.
    """
    lock = Path(lock_dir).expanduser() / "downloads.lock"
    return (
        _load_set("data.train_set", train_set, lock, instead),
        _load_set("data.test_set", test_set, lock, instead),
    )


def _load_set(key: str, make: Callable[[], Any], lock: Path, instead: str) -> Images:
    _check_arguments(key, make)
    with locked(lock, "paths.cache"):
        source = _instantiate(key, make, instead)
    images, labels = zip(*((np.asarray(image), label) for image, label in source), strict=True)
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


def _check_arguments(key: str, make: Callable[[], Any]) -> None:
    """Checks that a data set takes the arguments that its config node has."""
    if isinstance(make, functools.partial):
        try:
            inspect.signature(make.func).bind(*make.args, **make.keywords)
        except TypeError as error:
            raise UserError(f"{key}: {_name(make)} {error}; see conf/data") from error


def _instantiate(key: str, make: Callable[[], Any], instead: str) -> Any:
    try:
        return make()
    except (OSError, RuntimeError) as error:  # of torchvision, the network or the disk
        root = Path(getattr(make, "keywords", {}).get("root", "data")).expanduser()
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{key}: {_name(make)} is not in '{root}' and could not be downloaded ({why}); put "
            f"{_files_wanted(make, root)}, or name the folder that has it with paths.data=DIR, or use {instead}"
        ) from error


def _name(make: Any) -> str:
    return str(getattr(make, "func", make).__name__)


def _files_wanted(make: Any, root: Path) -> str:
    """Returns which files a torchvision data set needs in which folder, for the error of a failed download."""
    data_set = getattr(make, "func", make)
    if filename := getattr(data_set, "filename", None):
        return f"{filename} into '{root}'"
    if resources := getattr(data_set, "resources", None):
        return f"{', '.join(str(name) for name, *_ in resources)} into '{root / data_set.__name__ / 'raw'}'"
    return f"its files into '{root}'"
