"""Image mosaics from data sets that know their own classes: torchvision's, and scikit-learn's digits."""

import contextlib
import functools
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.locks import locked
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.errors import UserError

DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What a download or a broken archive raises; anything else is a mistake in the data set's own code."""


class ImageMosaics(MosaicDataModule):
    """Mosaics of images: what every image family adds to `MosaicDataModule`.

    Args:
        mean: pixel mean after scaling to [0, 1], one value or one a channel.
        std: pixel standard deviation, likewise. 0.5 and 0.5 put pixels in [-1, 1].
        classes: names of the classes, where they are known beforehand; the data must agree.
        **mosaics: see `MosaicDataModule`.
    """

    def __init__(
        self,
        *,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        classes: Sequence[str] | None = None,
        **mosaics: Any,
    ) -> None:
        super().__init__(**mosaics)
        self.classes = classes
        self.mean, self.std = (
            (float(value),) if isinstance(value, (int, float)) else tuple(value) for value in (mean, std)
        )

    def image_pool(self, images: np.ndarray | torch.Tensor, labels: Any, classes: Sequence[str]) -> Pool:
        """Makes a pool of uint8 images ``[U, H, W, C]`` with class indices ``[U]``.

        Raises:
            UserError: mean or std has neither one value nor one a channel, or the classes are not those told.
        """
        patches = torch.as_tensor(images)
        if self.classes is not None and list(self.classes) != list(classes):
            raise UserError(
                f"data.classes: got {', '.join(self.classes)}, but the data have {', '.join(classes)}; "
                "type data.classes=null to take theirs"
            )
        for key, values in (("data.mean", self.mean), ("data.std", self.std)):
            if len(values) not in (1, patches.shape[-1]):
                raise UserError(
                    f"{key}: got {len(values)} values, needs one, or one for each of {patches.shape[-1]} channels"
                )
        return Pool(
            patches=patches,
            labels=torch.as_tensor(labels, dtype=torch.int64),
            classes=tuple(classes),
            mean=self.mean,
            std=self.std,
        )


class DigitsMosaics(ImageMosaics):
    """Mosaics of scikit-learn's bundled 8 x 8 handwritten digits: 1,797 images, no download.

    They come as one set; a share of each class is held out.

    Args:
        held_out_share: share of each class that only held-out mosaics are drawn from.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(self, *, held_out_share: float, **mosaics: Any) -> None:
        super().__init__(**mosaics)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Stored as counts 0 to 16; spread over a byte like any other image.
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        pool = self.image_pool(images, digits.target, [str(i) for i in digits.target_names])
        return split_pool(pool, self.held_out_share, self.rng(10))


class TorchvisionMosaics(ImageMosaics):
    """Mosaics over any torchvision-style classification data set of equally sized images.

    Args:
        train_set: makes the data set behind the training pool; called without arguments. It must have
            ``classes`` and yield (PIL image, class index).
        test_set: the same for the held-out pool.
        lock_dir: folder for the lock that keeps two jobs from downloading at once.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(
        self,
        *,
        train_set: Callable[[], Any],
        test_set: Callable[[], Any],
        lock_dir: str | Path | None = None,
        **mosaics: Any,
    ) -> None:
        super().__init__(**mosaics)
        self.train_set, self.test_set = train_set, test_set
        self.lock_dir = Path(lock_dir or tempfile.gettempdir()).expanduser()

    def load_pools(self) -> tuple[Pool, Pool]:
        return self._load("train_set", self.train_set), self._load("test_set", self.test_set)

    def _load(self, key: str, make: Callable[[], Any]) -> Pool:
        with _download(f"data.{key}", make, self.lock_dir):
            source = make()
        images, labels = [], []
        for image, label in source:
            images.append(np.asarray(image))
            labels.append(label)
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise UserError(
                f"data.{key}: its images differ in size ({', '.join(map(str, sorted(sizes)[:3]))}), "
                "a mosaic needs equal ones; add a Resize transform to the data set"
            )
        stacked = np.stack(images)
        if stacked.dtype != np.uint8:
            raise UserError(f"data.{key}: yields {stacked.dtype} pixels, needs 8-bit PIL images; leave out ToTensor")
        return self.image_pool(
            stacked[..., None] if stacked.ndim == 3 else stacked,
            labels,
            [str(name) for name in source.classes],
        )


@contextlib.contextmanager
def _download(key: str, make: Callable[[], Any], lock_dir: Path) -> Iterator[None]:
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
                "paths.data=DIR, or use images of your own with data=image_folder data.root=DIR"
            ) from error


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
