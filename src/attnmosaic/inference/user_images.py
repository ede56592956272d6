"""Mosaics of a user's images: a picture cut into cells, or a folder of patches. Light: imports no torch."""

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
"""Pixels of the longer side that a picture is kept with, to be drawn."""

MOST_CELLS = 32
"""Along each side of a picture."""


@dataclass(frozen=True)
class Source:
    """The files of a mosaic.

    Attributes:
        path: the image to cut; or the folder.
        files: the folder's images, one a patch; empty for an image to cut.
    """

    path: Path
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The image's or folder's name as text; bytes that are none become replacement characters."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")


@dataclass(frozen=True, eq=False)
class OwnMosaic:
    """A mosaic of a user's images.

    Attributes:
        source: its files.
        patches: of the size that networks take, with unscaled pixels, uint8 ``[P, H, W, C]``, C 1 or 3.
        picture: the image that was cut, no side longer than `LONGEST`; None of a folder of patches.
        grid: cells along each side of it; None likewise.
    """

    source: Source
    patches: np.ndarray
    picture: Image.Image | None = None
    grid: int | None = None


def find_sources(images: Path) -> list[Source]:
    """Returns the mosaics that an image, or a folder of images and of folders of images, holds, by name.

    How many files and folders are skipped, and why, is logged in one line.

    Raises:
        UserError: there are none.
    """
    if images.is_file():
        return [Source(images)]
    if not images.is_dir():
        raise UserError(f"images: '{images}' does not exist; type images=DIR, a folder of images, or images=FILE")
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
        found = f"skipped {reasons(skipped)}; " if skipped else ""
        raise UserError(
            f"images: '{images}' holds no images, nor folders of images ({found}looked for "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}); type images=DIR"
        )
    report_skipped("images", images, skipped)
    return sources


def _listed(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Returns the images and visible folders in a folder, sorted, and counts what else there is."""
    listed = []
    for path in sorted(folder.iterdir()):
        why = HIDDEN if path.name.startswith(".") else None if path.is_dir() else why_skipped(path.name)
        if why is None:
            listed.append(path)
        else:
            skipped[why] += 1
    return listed


def read_mosaic(source: Source, grid: int, patch_shape: Sequence[int]) -> OwnMosaic:
    """Reads a mosaic's patches.

    A picture is cut into grid x grid cells, equal to a pixel, row by row, and each is resized to a patch: nothing of
    the picture is left out, nothing of a cell leaks into the next. The images of a folder are cropped at their centre
    to a patch's proportions and resized, as ``data.image_size`` does it in training.

    Args:
        source: what `find_sources` found.
        grid: cells along each side of a picture.
        patch_shape: ``(C, H, W)``, C 1 for grey or 3 for RGB.

    Raises:
        UnreadableError: the picture, or every image of the folder, cannot be read, or it has fewer pixels than cells.
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
        return OwnMosaic(source, _stacked(cells), picture, grid)
    patches: list[Image.Image] = []
    unread: list[str] = []
    for file in source.files:
        try:
            patches.append(ImageOps.fit(open_image(file, mode), (width, height), Image.Resampling.BICUBIC))
        except UnreadableError as error:
            unread.append(one_line(f"'{source.name}/{file.name}' {error}"))
    if not patches:
        raise UnreadableError(f"holds no image that can be read; the first: {unread[0]}")
    for line in unread:
        log.warning("%s; skipped", line)
    return OwnMosaic(source, _stacked(patches))


def cut(size: tuple[int, int], grid: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields left, top, right and bottom of the cells of a picture of so many pixels (width, height), row by row."""
    x, y = ([round(i * side / grid) for i in range(grid + 1)] for side in size)
    for row in range(grid):
        for column in range(grid):
            yield x[column], y[row], x[column + 1], y[row + 1]


def _stacked(images: Sequence[Image.Image]) -> np.ndarray:
    pixels = np.stack([np.asarray(image) for image in images])
    return pixels if pixels.ndim == 4 else pixels[..., None]
