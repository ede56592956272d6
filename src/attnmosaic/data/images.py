"""Image mosaics from data sets that know their own classes: torchvision's, and scikit-learn's digits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sources import Images, image_pool, load_digits, load_sets


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
        self.mean, self.std = mean, std
        self.classes = classes

    def image_pool(self, images: Images) -> Pool:
        """Builds a pool of images.

        Raises:
            UserError: mean or std has neither one value nor one a channel, or the classes are others than given.
        """
        if self.classes is not None and list(self.classes) != list(images.classes):
            raise UserError(
                f"data.classes: got {', '.join(self.classes)}, but the data have {', '.join(images.classes)}; "
                "type data.classes=null to take theirs"
            )
        return image_pool(images, self.mean, self.std)


class DigitsMosaics(ImageMosaics):
    """Mosaics of scikit-learn's bundled 8 x 8 handwritten digits, see `load_digits`.

    Args:
        held_out_share: fraction of each class that only held-out mosaics are sampled from; the digits are one set.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(self, *, held_out_share: float, **mosaics: Any) -> None:
        super().__init__(**mosaics)
        self.held_out_share = held_out_share

    def load_pools(self) -> tuple[Pool, Pool]:
        return split_pool(self.image_pool(load_digits()), self.held_out_share, self.rng(10))


class TorchvisionMosaics(ImageMosaics):
    """Mosaics over any torchvision-style classification data set of equally sized images.

    Args:
        train_set: instantiates the data set behind the training pool, see `load_sets`.
        test_set: the same for the held-out pool.
        lock_dir: see `load_sets`.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(
        self, *, train_set: Callable[[], Any], test_set: Callable[[], Any], lock_dir: str | Path, **mosaics: Any
    ) -> None:
        super().__init__(**mosaics)
        self.sets = train_set, test_set, lock_dir

    def load_pools(self) -> tuple[Pool, Pool]:
        train, test = load_sets(*self.sets, "images of your own with data=image_folder data.root=DIR")
        return self.image_pool(train), self.image_pool(test)
