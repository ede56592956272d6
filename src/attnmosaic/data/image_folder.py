"""Image mosaics from a folder of one's own: decoded in parallel once, then read from one cache file."""

import hashlib
import os
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps

from attnmosaic.config.image_folders import Listing, beside, check_folder, find_splits, list_images, report_skipped
from attnmosaic.core.errors import UserError
from attnmosaic.core.files import locked
from attnmosaic.data.image_files import UnreadableError, open_image, printable
from attnmosaic.data.images import ImageMosaics
from attnmosaic.data.pool import Pool, split_pool
from attnmosaic.data.sources import Images

CACHE_FORMAT = 1
"""Raised whenever what a cache file holds changes, so that old ones are not read."""


class ImageFolderMosaics(ImageMosaics):
    """Mosaics over a folder ``root/CLASS/*.jpg``, or ``root/train/CLASS/...`` and ``root/test/CLASS/...``.

    Without a test folder (``test``, ``val`` or ``valid``), a share of each class is held out. Links to folders are
    followed; how many files were skipped, and why, is logged in one line, also if the images come from the cache.

    Args:
        root: the folder.
        image_size: None takes images as they are (all must be equal); a number crops their centre to a
            square and resizes it to that many pixels.
        color: True for RGB, False for one grey channel.
        held_out_share: share of each class to hold out where there is no test folder.
        cache_dir: where the decoded images are kept; the file's name follows from the folder's content.
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
        skipped = sum((listing.skipped for listing in listings), Counter())
        if train != self.root:
            skipped += beside(self.root, [listing.folder.name for listing in listings])
        report_skipped("data.root", self.root, skipped)
        train_pool, *held_out_pools = map(self._pool, listings)
        if not held_out_pools:
            return split_pool(train_pool, self.held_out_share, self.rng(10))
        (held_out_pool,) = held_out_pools
        if held_out_pool.patch_shape != train_pool.patch_shape:
            raise UserError(
                f"data.root: images in '{train}' are {_size(train_pool)}, in '{test}' {_size(held_out_pool)}; "
                "resize them, or type data.image_size=32"
            )
        return train_pool, held_out_pool

    def _pool(self, found: Listing) -> Pool:
        paths = [path for group in found.files for path in group]
        labels = np.repeat(np.arange(len(found.classes)), [len(group) for group in found.files])
        images = load_images(paths, found.folder, self.image_size, self.color, self.cache_dir)
        return self.image_pool(Images(images, labels, found.classes))


def load_images(
    paths: Sequence[Path], folder: Path, image_size: int | None, color: bool, cache_dir: Path
) -> torch.Tensor:
    """Returns images as uint8 ``[U, H, W, C]``, from the cache or decoded now and cached.

    The cache file is named by a hash of every file's name and bytes and of the two options; it is written
    under a lock and renamed into place, so jobs that start at once decode once and never read half a file.

    Raises:
        UserError: an image is broken, or images differ in size.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = list(threads.map(_digest_of, paths, chunksize=64))
    key = hashlib.sha256(f"{CACHE_FORMAT} {image_size} {color}".encode())
    for path, digest in zip(paths, digests, strict=True):
        key.update(os.fsencode(path.relative_to(folder)) + b"\0" + digest)
    file = cache_dir / f"images-{key.hexdigest()[:32]}.pt"
    with locked(file.with_suffix(".lock"), "paths.cache"):
        for abandoned in cache_dir.glob(f"{file.stem}.*.tmp"):
            abandoned.unlink()
        images = _read_cache(file)
        if images is None:
            images = torch.from_numpy(_decode_all(paths, image_size, color))
            _write_cache(file, images)
    return images


def _read_cache(file: Path) -> torch.Tensor | None:
    """Returns the images of a cache file, or None where it is absent or damaged."""
    if not file.exists():
        return None
    try:
        held = torch.load(file, weights_only=True)
        images: torch.Tensor = held["images"]
        return images if held["digest"] == _digest(images) else None
    except Exception:  # whatever a damaged file makes torch raise: it can be made again
        return None


def _write_cache(file: Path, images: torch.Tensor) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save({"images": images, "digest": _digest(images)}, unfinished)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _digest(images: torch.Tensor) -> bytes:
    return hashlib.sha256(images.numpy().data).digest()


def _digest_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"data.root: cannot read '{printable(str(path))}' ({error.strerror})") from error


def _decode_all(paths: Sequence[Path], image_size: int | None, color: bool) -> np.ndarray:
    from rich.progress import track

    first = _decode(paths[0], image_size, color)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        decoded = threads.map(lambda p: _decode(p, image_size, color), paths, chunksize=64)
        shown = track(decoded, description="decoding images", total=len(paths), transient=True)
        try:
            # An error in the loop leaves the generator open. Garbage collection then closes it in any thread; in one of
            # rich's own, which closing waits for, that never ends.
            with closing(cast(Generator[np.ndarray, None, None], shown)):
                for i, image in enumerate(shown):
                    if image.shape != first.shape:
                        raise UserError(
                            f"data.root: images differ in size: '{paths[0]}' is {first.shape[1]} x {first.shape[0]}, "
                            f"'{paths[i]}' is {image.shape[1]} x {image.shape[0]} (width x height); resize them, "
                            "or type data.image_size=32 to crop and resize while loading"
                        )
                    images[i] = image
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _decode(path: Path, image_size: int | None, color: bool) -> np.ndarray:
    try:
        image = open_image(path, "RGB" if color else "L")
    except UnreadableError as error:
        raise UserError(
            f"data.root: cannot decode '{printable(str(path))}', which {error}; repair, convert or remove it"
        ) from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array if color else array[..., None]


def _size(pool: Pool) -> str:
    _, height, width = pool.patch_shape
    return f"{width} x {height}"
