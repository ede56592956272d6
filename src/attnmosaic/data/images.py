"""Mosaics of images: the base class, and data sets with known classes (torchvision's, scikit-learn's digits)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sources import Images, image_pool, load_digits, load_sets


class ImageMosaics(MosaicDataModule):
    """Base class of data modules with mosaics of images.

    Args:
        mean: pixel mean after scaling to [0, 1]: one value, or one value per channel.
        std: pixel standard deviation after scaling to [0, 1]: one value, or one value per channel. With mean 0.5 and
            std 0.5, pixels are in [-1, 1].
        classes: expected names of the classes, which the data must have; None for any names.
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
        self.mean, self.std = mean, std
        self.classes = classes

    def image_pool(self, images: Images) -> Pool:
        """Returns the pool of a classified set of images, scaled by this module's ``mean`` and ``std``.

        Raises:
            UserError: mean or std has neither one value nor one per channel, or the data have other classes.
        """
        if self.classes is not None and list(self.classes) != list(images.classes):
            raise UserError(
                f"data.classes: got {', '.join(self.classes)}, but the data have {', '.join(images.classes)}; "
                "type data.classes=null to use the classes of the data"
            )
        return image_pool(images, self.mean, self.std)


class DigitsMosaics(ImageMosaics):
    """Mosaics of scikit-learn's bundled 8 x 8 handwritten digits, see `load_digits`.

    Args:
        held_out_share: fraction of each class that is held out, as the digits have no test set.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(self, *, held_out_share: float, **mosaics: Any) -> None:
        super().__init__(**mosaics)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        return split_pool(self.image_pool(load_digits()), self.held_out_share, self.rng(10))


class TorchvisionMosaics(ImageMosaics):
    """Mosaics of images from a classification data set in the style of torchvision, with images of one size.

    Args:
        train_set: instantiates the data set of the training pool, see `load_sets`.
        test_set: instantiates the data set of the held-out pool.
        lock_dir: see `load_sets`.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(
        self, *, train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: str | Path, **mosaics: Any
    ) -> None:
        super().__init__(**mosaics)
        self.sets = train_set, test_set, lock_dir

    def load_pools(self) -> tuple[Pool, Pool]:
        train, test = load_sets(*self.sets, "your own images with data=image_folder data.root=DIR")
        return self.image_pool(train), self.image_pool(test)
