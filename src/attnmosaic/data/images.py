"""Image mosaics from data sets that know their own classes: torchvision's, and scikit-learn's digits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sources import Images, image_pool, load_digits, load_set, lock_folder, per_channel


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
        self.mean, self.std = per_channel(mean), per_channel(std)

    def image_pool(self, images: Images) -> Pool:
        """Makes a pool of images.

        Raises:
            UserError: mean or std has neither one value nor one a channel, or the classes are not those told.
        """
        if self.classes is not None and list(self.classes) != list(images.classes):
            raise UserError(
                f"data.classes: got {', '.join(self.classes)}, but the data have {', '.join(images.classes)}; "
                "type data.classes=null to take theirs"
            )
        return image_pool(images, self.mean, self.std)


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
        pool = self.image_pool(load_digits())
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
        self.lock_dir = lock_folder(lock_dir)

    def load_pools(self) -> tuple[Pool, Pool]:
        instead = "images of your own with data=image_folder data.root=DIR"
        train, test = (
            self.image_pool(load_set(f"data.{key}", make, self.lock_dir, instead))
            for key, make in (("train_set", self.train_set), ("test_set", self.test_set))
        )
        return train, test
