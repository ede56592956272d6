"""Mosaics of images from the user's own folder: decoded once in parallel, then read from a cache file."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import Progress

from attnmosaic.config.image_folders import (
    Listing,
    check_folder,
    count_other_entries,
    find_splits,
    list_images,
    report_skipped,
)
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.core.files import locked
from attnmosaic.data.image_files import UnreadableError, open_image
from attnmosaic.data.images import ImageMosaics
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sources import Images


class ImageFolderMosaics(ImageMosaics):
    """Mosaics of images in a folder ``root/CLASS/*.jpg``, or ``root/train/CLASS/...`` and ``root/test/CLASS/...``.

    Without a test folder (``test``, ``val`` or ``valid``), a fraction of each class is held out. Links to folders are
    followed. One log line reports the number of skipped files and the reasons, even if all images are in the cache.

    Args:
        root: the folder of images.
        image_size: pixels; images are cropped to their central square and resized to this size. None keeps the images
            unchanged; they must then have the same size.
        color: True for RGB, False for one grey channel.
        held_out_share: fraction of each class that is held out if the folder has no test folder.
        cache_dir: folder of the cache files; the name of a cache file depends on the content of the image files.
        **mosaics: see `ImageMosaics`.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int | None,
        color: bool,
        held_out_share: float,
        cache_dir: str | Path,
        **mosaics: Any,
    ) -> None:
        super().__init__(**mosaics)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.color = color
        self.held_out_share = held_out_share
        self.cache_dir = Path(cache_dir).expanduser()

    def load_pools(self) -> tuple[Pool, Pool]:
        check_folder(self.root)
        train, test = find_splits(self.root)
        listings = [list_images(folder) for folder in (train, test) if folder is not None]
        self._report_skipped(listings)
        pools = [self._pool(listing) for listing in listings]
        if test is None:
            return split_pool(pools[0], self.held_out_share, self.rng(10))
        sizes = [f"{width} x {height}" for _, height, width in (pool.patch_shape for pool in pools)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"data.root: got images of {sizes[0]} pixels in '{train}' and of {sizes[1]} pixels in '{test}', "
                "needs one size; resize them, or type data.image_size=32"
            )
        return pools[0], pools[1]

    def _report_skipped(self, listings: Sequence[Listing]) -> None:
        skipped = sum((listing.skipped for listing in listings), Counter())
        if listings[0].folder != self.root:
            skipped += count_other_entries(self.root, [listing.folder.name for listing in listings])
        report_skipped("data.root", self.root, skipped)

    def _pool(self, listing: Listing) -> Pool:
        paths = [path for group in listing.files for path in group]
        labels = np.repeat(np.arange(len(listing.classes)), [len(group) for group in listing.files])
        images = load_images(paths, listing.folder, self.image_size, self.color, self.cache_dir)
        return self.image_pool(Images(images, labels, listing.classes))


def load_images(
    paths: Sequence[Path], folder: Path, image_size: int | None, color: bool, cache_dir: Path
) -> torch.Tensor:
    """Returns images as uint8 ``[U, H, W, C]``: from the cache if they are in it, otherwise decoded and then cached.

    The name of the cache file is a hash of ``image_size``, ``color`` and the name and bytes of every image file. The
    file is written under a lock and then renamed. Jobs that start at the same time therefore decode the images only
    once, and never read an incomplete file.

    Raises:
        UserError: an image cannot be decoded, or images have different sizes.
    """
    key = hashlib.sha256(f"{image_size} {color}".encode())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for path, digest in zip(paths, threads.map(_digest, paths), strict=True):
            key.update(os.fsencode(path.relative_to(folder)) + b"\0" + digest)
    file = cache_dir / f"images-{key.hexdigest()[:32]}.npy"
    with locked(file.with_suffix(".lock"), "paths.cache"):
        images = _read_cache(file)
        if images is None:
            images = _decode_all(paths, image_size, color)
            unfinished = file.with_suffix(".tmp")
            with unfinished.open("wb") as opened:
                np.save(opened, images)
            unfinished.replace(file)
    return torch.from_numpy(images)


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(one_line(f"data.root: cannot read '{path}' ({error.strerror})")) from error


def _read_cache(file: Path) -> np.ndarray | None:
    """Returns the images of a cache file; None if the file is missing or unreadable."""
    try:
        images: np.ndarray = np.load(file)
        return images
    except (OSError, EOFError, ValueError):
        return None


def _decode_all(paths: Sequence[Path], image_size: int | None, color: bool) -> np.ndarray:
    """Decodes images in parallel; returns them as uint8 ``[U, H, W, C]``."""
    first = _decode(paths[0], image_size, color)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def decode(i: int) -> None:
        image = _decode(paths[i], image_size, color)
        if image.shape != first.shape:
            raise UserError(
                f"data.root: got images of different sizes: '{paths[0]}' has {first.shape[1]} x {first.shape[0]} "
                f"pixels, '{paths[i]}' has {image.shape[1]} x {image.shape[0]} (width x height); resize them, "
                "or type data.image_size=32 to crop and resize them while loading"
            )
        images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as threads, Progress(transient=True) as progress:
        task = progress.add_task("decoding images", total=len(paths))
        for _ in threads.map(decode, range(len(paths))):
            progress.advance(task)
    return images


def _decode(path: Path, image_size: int | None, color: bool) -> np.ndarray:
    """Returns an image as uint8 ``[H, W, C]``; cropped and resized unless ``image_size`` is None."""
    try:
        image = open_image(path, "RGB" if color else "L")
    except UnreadableError as error:
        raise UserError(
            one_line(f"data.root: cannot decode '{path}': it {error}; repair, convert or remove the file")
        ) from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array if color else array[..., None]
