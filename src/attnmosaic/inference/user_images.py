"""Reads mosaics of a user's images: a picture cut into cells, or a folder of patches. Does not import torch."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attnmosaic.config.image_folders import HIDDEN, IMAGE_SUFFIXES, reasons, report_skipped, why_skipped
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.data.image_files import UnreadableError, open_image

log = logging.getLogger(__name__)

LONGEST = 768
"""Largest side of a picture kept for drawing, in pixels."""

MOST_CELLS = 32
"""Largest number of cells along each side of a picture."""


@dataclass(frozen=True)
class Source:
    """The image file, or the folder of image files, that one mosaic is made of.

    Attributes:
        path: the image to cut, or the folder.
        files: the images of the folder, one per patch; empty for an image to cut.
    """

    path: Path
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Name of the image or folder; bytes that are not UTF-8 become replacement characters."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")


@dataclass(frozen=True, eq=False)
class UserMosaic:
    """The patches of one mosaic, cut from a user's image or read from a folder.

    Attributes:
        source: the files of the mosaic.
        patches: patches of the networks' input size, unscaled, uint8 ``[P, H, W, C]``, C 1 or 3.
        picture: the image that was cut, reduced to sides of at most `LONGEST`; None for a folder of patches.
        grid: number of cells along each side of the picture; None for a folder of patches.
    """

    source: Source
    patches: np.ndarray
    picture: Image.Image | None = None
    grid: int | None = None


def find_sources(images: Path) -> list[Source]:
    """Returns the mosaics of an image, or of a folder of images and sub-folders, sorted by name.

    Logs the number of skipped files and folders, and the reasons, in one line.

    Raises:
        UserError: there are no mosaics.
    """
    if images.is_file():
        return [Source(images)]
    if not images.is_dir():
        raise UserError(f"images: '{images}' does not exist; type images=DIR with a folder of images, or images=FILE")
    sources = []
    skipped: Counter[str] = Counter()
    for path in _listed(images, skipped):
        if not path.is_dir():
            sources.append(Source(path))
            continue
        inside = _listed(path, skipped)
        files = tuple(file for file in inside if not file.is_dir())
        if folders := len(inside) - len(files):
            skipped["folders in a mosaic's folder"] += folders
        if files:
            sources.append(Source(path, files))
        else:
            skipped["folders without images"] += 1
    if not sources:
        skips = f"skipped {reasons(skipped)}; " if skipped else ""
        raise UserError(
            f"images: '{images}' and its sub-folders have no image files ({skips}allowed: "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}); type images=DIR with another folder"
        )
    report_skipped("images", images, skipped)
    return sources


def _listed(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Returns the images and visible folders in a folder, sorted, and counts all other entries as skipped."""
    listed = []
    for path in sorted(folder.iterdir()):
        reason = HIDDEN if path.name.startswith(".") else None if path.is_dir() else why_skipped(path.name)
        if reason is None:
            listed.append(path)
        else:
            skipped[reason] += 1
    return listed


def read_mosaic(source: Source, grid: int, patch_shape: Sequence[int]) -> UserMosaic:
    """Reads the image files of a mosaic and returns its patches.

    A picture is cut into grid x grid cells, row by row, and each cell is resized to a patch. The sizes of the cells
    differ by at most one pixel, cells together cover the picture, and a patch depends on the pixels of its own cell
    only. The images of a folder are cropped at their centre to the proportions of a patch and resized, as with
    ``data.image_size`` in training.

    Args:
        source: an item of `find_sources`.
        grid: number of cells along each side of a picture.
        patch_shape: ``(C, H, W)``, C 1 for grey or 3 for RGB.

    Raises:
        UnreadableError: the picture cannot be read, or has fewer pixels than cells along a side, or none of the
            folder's images can be read.
    """
    channels, height, width = patch_shape
    mode = "L" if channels == 1 else "RGB"
    if not source.files:
        picture = open_image(source.path, mode)
        if min(picture.size) < grid:
            across, down = picture.size
            raise UnreadableError(f"has {across} x {down} pixels, too few for {grid} x {grid} cells")
        cells = [picture.crop(box).resize((width, height), Image.Resampling.BICUBIC) for box in cut(picture.size, grid)]
        picture.thumbnail((LONGEST, LONGEST))
        return UserMosaic(source, _stacked(cells), picture, grid)
    patches: list[Image.Image] = []
    unreadable: list[str] = []
    for file in source.files:
        try:
            patches.append(ImageOps.fit(open_image(file, mode), (width, height), Image.Resampling.BICUBIC))
        except UnreadableError as error:
            unreadable.append(one_line(f"'{source.name}/{file.name}' {error}"))
    if not patches:
        raise UnreadableError(f"has no readable image; first error: {unreadable[0]}")
    for line in unreadable:
        log.warning("%s; skipped", line)
    return UserMosaic(source, _stacked(patches))


def cut(size: tuple[int, int], grid: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields left, top, right and bottom of the cells of a picture of size (width, height), row by row."""
    x, y = ([round(i * side / grid) for i in range(grid + 1)] for side in size)
    for row in range(grid):
        for column in range(grid):
            yield x[column], y[row], x[column + 1], y[row + 1]


def _stacked(images: Sequence[Image.Image]) -> np.ndarray:
    """Returns images as an array ``[P, H, W, C]``."""
    pixels = np.stack([np.asarray(image) for image in images])
    return pixels if pixels.ndim == 4 else pixels[..., None]
