"""Mosaics and planes as small pictures inside the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from attnmosaic.plotting.point_tiles import Transform, backdrop, base_points, class_colors
from attnmosaic.plotting.tiles import grid, picture
from attnmosaic.runs.snapshots import Looked, Record

LONGEST = 48
"""Pixels of the longer side of a patch, as it is kept in the page; larger ones are reduced."""


@dataclass(frozen=True)
class Picture:
    """A picture as an address that holds it, and its size in pixels."""

    uri: str
    width: int
    height: int


def inlined(image: Image.Image) -> Picture:
    """Returns a picture for the page: PNG, or JPEG where that is smaller."""
    files = {"png": _encoded(image, format="PNG", optimize=True)}
    if image.mode in ("L", "RGB"):
        files["jpeg"] = _encoded(image, format="JPEG", quality=86, subsampling=0, optimize=True)
    kind = min(files, key=lambda kind: len(files[kind]))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}", *image.size)


def _encoded(image: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def _small(pixels: np.ndarray) -> Image.Image:
    """Returns pixels ``[H, W, C]`` one to one, unless they are more than `LONGEST`; grey if they have one channel."""
    image = picture(np.nan_to_num(pixels), min(LONGEST, max(pixels.shape[:2])))
    return image.convert("L") if pixels.shape[-1] == 1 else image


def mosaic_picture(looked: Looked, i: int) -> Picture:
    """Returns the patches of a mosaic of images, row by row and without gaps."""
    patches = [_small(patch) for patch in looked.patches[i]]
    return inlined(grid(patches, patches[0].size)[0])


def aggregate_picture(pixels: np.ndarray) -> Picture:
    """Returns an aggregate ``[H, W, C]``."""
    return inlined(_small(pixels))


def plane_picture(record: Record, side: int = 320) -> Picture:
    """Returns the plane tinted by what What sees there, the pool's base points in it; the rest lets the page shine."""
    plane = record.plane
    assert plane is not None
    tints = np.insert(class_colors(len(record.classes)), 3, 70, axis=1)
    image = backdrop(tints[plane.regions], side, Image.Resampling.NEAREST)
    tints[:, 3] = 170
    colors = [
        tuple(tints[record.classes.index(name)]) if name in record.classes else (128, 128, 128, 150)
        for name in record.all_classes
    ]
    base_points(ImageDraw.Draw(image), Transform(plane.extent, side), plane, colors, 1.4)
    return inlined(image.quantize(64, method=Image.Quantize.FASTOCTREE))
