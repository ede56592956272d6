"""Loads image data sets (scikit-learn's digits, torchvision's data sets) as pixels, and builds pools from pixels."""

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
    """The images of a data set, with the class of each and the names of the classes.

    Attributes:
        pixels: uint8 ``[U, H, W, C]``.
        labels: class index of each image, ``[U]``.
        classes: class names, in the order of the class indices.
    """

    pixels: np.ndarray | torch.Tensor
    labels: Any
    classes: Sequence[str]


def image_pool(images: Images, mean: float | Sequence[float], std: float | Sequence[float]) -> Pool:
    """Returns the pool of a classified set of images.

    Args:
        images: images and their classes.
        mean: pixel mean after scaling to [0, 1]: one value, or one value per channel.
        std: pixel standard deviation after scaling to [0, 1]: one value, or one value per channel.

    Raises:
        UserError: mean or std has neither one value nor one per channel.
    """
    patches = torch.as_tensor(images.pixels)
    channels, scaling = patches.shape[-1], {}
    for key, value in (("mean", mean), ("std", std)):
        scaling[key] = values = (float(value),) if isinstance(value, (int, float)) else tuple(value)
        if len(values) not in (1, channels):
            raise UserError(
                f"data.{key}: got {len(values)} values, needs one value, or one for each of {channels} channels; "
                f"type for example data.{key}=0.5"
            )
    return Pool(patches, torch.as_tensor(images.labels, dtype=torch.int64), tuple(images.classes), **scaling)


def load_digits() -> Images:
    """Returns scikit-learn's bundled 8 x 8 handwritten digits: 1,797 images, no download."""
    from sklearn import datasets

    digits = datasets.load_digits()
    # scikit-learn stores values from 0 to 16; other images have values from 0 to 255.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Images(pixels, digits.target, [str(i) for i in digits.target_names])


def load_sets(
    train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: str | Path, alternative: str
) -> tuple[Images, Images]:
    """Returns the images of two data sets in the style of torchvision; missing files are downloaded.

    Args:
        train_set: instantiates the data set of the training pool; called without arguments. The data set must have
            ``classes`` and yield (PIL image, class index).
        test_set: instantiates the data set of the held-out pool.
        lock_dir: folder of the lock that prevents two jobs from downloading at the same time.
        alternative: other data and the overrides to use them; part of the message after a failed download.

    Raises:
        UserError: a data set does not accept its arguments or cannot be downloaded, or its images have different sizes
            or do not have 8 bits per channel.
    """
    lock = Path(lock_dir).expanduser() / "downloads.lock"
    return (
        _load_set("data.train_set", train_set, lock, alternative),
        _load_set("data.test_set", test_set, lock, alternative),
    )


def _load_set(key: str, instantiate: Callable[[], Any], lock: Path, alternative: str) -> Images:
    _check_arguments(key, instantiate)
    with locked(lock, "paths.cache"):
        data_set = _instantiate(key, instantiate, alternative)
    images, labels = zip(*((np.asarray(image), label) for image, label in data_set), strict=True)
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise UserError(
            f"{key}: got images of different sizes ({', '.join(map(str, sorted(sizes)[:3]))}), "
            "needs images of one size; add torchvision.transforms.Resize([H, W]) to its transforms"
        )
    stacked = np.stack(images)
    if stacked.dtype != np.uint8:
        raise UserError(
            f"{key}: got {stacked.dtype} pixels, needs 8-bit PIL images; remove ToTensor from the data set's transforms"
        )
    pixels = stacked[..., None] if stacked.ndim == 3 else stacked
    return Images(pixels, labels, [str(name) for name in data_set.classes])


def _check_arguments(key: str, instantiate: Callable[[], Any]) -> None:
    """Checks that the class of a data set accepts the arguments in its config node."""
    if isinstance(instantiate, functools.partial):
        try:
            inspect.signature(instantiate.func).bind(*instantiate.args, **instantiate.keywords)
        except TypeError as error:
            raise UserError(
                f"{key}: {_name(instantiate)} {error}; see how the files in conf/data name its arguments"
            ) from error


def _instantiate(key: str, instantiate: Callable[[], Any], alternative: str) -> Any:
    try:
        return instantiate()
    except (OSError, RuntimeError) as error:  # from torchvision, the network or the disk
        root = Path(getattr(instantiate, "keywords", {}).get("root", "data")).expanduser()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{key}: {_name(instantiate)} is not in '{root}' and could not be downloaded ({reason}); copy "
            f"{_needed_files(instantiate, root)}, or type paths.data=DIR for a folder that contains it, "
            f"or use {alternative}"
        ) from error


def _name(instantiate: Any) -> str:
    return str(getattr(instantiate, "func", instantiate).__name__)


def _needed_files(instantiate: Any, root: Path) -> str:
    """Returns the file names that a torchvision data set needs and their folder, for the failed download's message."""
    data_set = getattr(instantiate, "func", instantiate)
    if filename := getattr(data_set, "filename", None):
        return f"{filename} into '{root}'"
    if resources := getattr(data_set, "resources", None):
        return f"{', '.join(str(name) for name, *_ in resources)} into '{root / data_set.__name__ / 'raw'}'"
    return f"its files into '{root}'"
