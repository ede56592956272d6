"""Draws mosaics with Pillow, fast enough while a run trains: patches, weights, grids, frames and captions."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attnmosaic.core.text import truncate
from attnmosaic.plotting.palette import FRAME, GREEN, RED, SMOKE, SMOKE_COLOR
from attnmosaic.runs.snapshots import PredictedMosaics

CELL, GAP, MARGIN = 44, 3, 8
"""Pixels of a patch's side, between patches, and around a mosaic."""

NAME_LENGTH = 16
"""Largest number of characters of a class name."""

INK, PAPER = "#222222", "#FFFFFF"
"""Colours of text and of the background of pictures."""

SHADE = 0.82
"""Fraction of black in a patch without weight; the patch with the largest weight is not darkened."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns matplotlib's DejaVu Sans, which has the letters of most languages, or else Pillow's default font."""
    matplotlib = find_spec("matplotlib")  # does not import it: only the path of its font is needed
    if matplotlib is None or matplotlib.origin is None:
        return ImageFont.load_default(size)
    file = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    # DejaVu's letters are larger than those of other fonts of the same size.
    return ImageFont.truetype(str(file), round(0.92 * size)) if file.exists() else ImageFont.load_default(size)


# ---- patches


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels ``[H, W, C]``, C 1 or 3, of values around 0 to 255, as uint8 ``[H, W, 3]``."""
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.repeat(rounded, 3, axis=-1) if rounded.shape[-1] == 1 else rounded


def picture(pixels: np.ndarray, side: int) -> Image.Image:
    """Returns pixels ``[H, W, C]``, C 1 or 3, from 0 to 255, as an RGB image whose longer side is `side`."""
    image = Image.fromarray(to_rgb(pixels))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # The pixels of small patches stay visible, because the networks get these pixels.
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def darkness(weight: float, shade: float = SHADE) -> float:
    """Returns the fraction of black in a patch, 0 to `shade`; it is 0 for a relative weight of 1 or more.

    With the square root, even patches of small weight are visibly brighter than patches without weight.
    """
    return shade * (1 - math.sqrt(min(1.0, max(0.0, weight))))


def shaded_patch(patch: Image.Image, weight: float) -> Image.Image:
    """Returns a patch darkened by `darkness` of its relative weight."""
    return Image.blend(patch, Image.new("RGB", patch.size, "#000000"), darkness(weight))


# ---- grids


def columns(patches: int) -> int:
    """Returns the number of patches in a row of a mosaic, for example 3 for 9 patches."""
    return math.ceil(math.sqrt(patches))


def grid(
    images: Sequence[Image.Image], size: tuple[int, int], gap: int = 0, border: int = 0, across: int | None = None
) -> tuple[Image.Image, list[Box]]:
    """Arranges images in a grid.

    Args:
        images: N images of the same mode.
        size: width and height of a cell.
        gap: pixels between cells.
        border: pixels around the grid.
        across: number of images in a row; by default `columns`.

    Returns:
        The picture, and the box of each cell.
    """
    across = across or columns(len(images))
    (width, height), down = size, -(-len(images) // across)
    total = (across * (width + gap) - gap + 2 * border, down * (height + gap) - gap + 2 * border)
    sheet = Image.new(images[0].mode, total, PAPER)
    boxes = []
    for i, image in enumerate(images):
        x, y = border + i % across * (width + gap), border + i // across * (height + gap)
        sheet.paste(image, (x, y))
        boxes.append((x, y, x + width, y + height))
    return sheet, boxes


def sheet(images: Sequence[Image.Image], across: int) -> Image.Image:
    """Arranges images in a grid whose cells have the size of the largest image."""
    size = max(image.width for image in images), max(image.height for image in images)
    return grid(images, size, across=min(across, len(images)))[0]


# ---- marks and text


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **style: object) -> None:
    """Draws a circle around a point."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), **style)  # type: ignore[arg-type]


def frame(draw: ImageDraw.ImageDraw, box: Box, color: str, width: int, outside: int = 0) -> None:
    """Draws a frame along the inner edge of a box that is first enlarged by `outside` pixels on each side."""
    left, top, right, bottom = box
    draw.rectangle(
        (left - outside, top - outside, right + outside - 1, bottom + outside - 1), outline=color, width=width
    )


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, color: str = INK, anchor: str = "la"
) -> None:
    """Writes a text at a point; Pillow's `anchor` names the part of the text that is at this point."""
    draw.text(at, text, fill=color, font=font(size), anchor=anchor)


def number(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, padding: Box) -> None:
    """Writes a number in white on a black box.

    Args:
        draw: Pillow's drawing context of the picture.
        corner: bottom right corner of the text.
        text: the number.
        size: font size.
        padding: pixels of the black box around the text to the left, top, right and bottom.
    """
    box = draw.textbbox(corner, text, font=font(size), anchor="rb")
    left, top, right, bottom = padding
    draw.rectangle((box[0] - left, box[1] - top, box[2] + right, box[3] + bottom), fill="#000000")
    write(draw, corner, text, size, "#FFFFFF", "rb")


def stamp(image: Image.Image, height: int, size: int) -> Image.Image:
    """Returns a picture with the banner of smoke runs on top, of the given height and font size."""
    stamped = Image.new("RGB", (image.width, height + image.height), SMOKE_COLOR)
    stamped.paste(image, (0, height))
    write(ImageDraw.Draw(stamped), (image.width / 2, height / 2), SMOKE, size, PAPER, "mm")
    return stamped


def truncate_to_width(text: str, width: int, size: int) -> str:
    """Returns a text shortened to at most `width` pixels at font size `size`."""
    most = len(text)
    while most > 1 and font(size).getlength(truncate(text, most)) > width:
        most -= 1
    return truncate(text, most)


# ---- mosaics of images


def mosaic(
    patches: np.ndarray, alpha: np.ndarray | None = None, foreground: int | None = None, cell: int = CELL
) -> Image.Image:
    """Draws the patches of a mosaic in a grid, darkened by small weights, with the weights as numbers.

    Args:
        patches: pixels ``[P, H, W, C]``.
        alpha: attention weights, ``[P]``; None for patches without weights.
        foreground: index of the true foreground, which gets a frame; None for no frame.
        cell: pixels of a patch's side.
    """
    images = [picture(pixels, cell) for pixels in patches]
    if alpha is not None:
        images = [
            shaded_patch(image, float(weight / max(alpha.max(), 1e-6)))
            for image, weight in zip(images, alpha, strict=True)
        ]
    image, boxes = grid(images, (cell, cell), GAP, GAP)
    draw = ImageDraw.Draw(image)
    if alpha is not None and cell >= 30:
        for (_, _, right, bottom), weight in zip(boxes, alpha, strict=True):
            number(draw, (right - 1, bottom - 1), f"{weight:.2f}", max(9, cell // 4), (2, 1, 0, 0))
    if foreground is not None:
        frame(draw, boxes[foreground], FRAME, GAP, outside=GAP)
    return image


def card(mosaics: PredictedMosaics, i: int, classes: Sequence[str], cell: int = CELL) -> Image.Image:
    """Draws a mosaic of images: patches, patches with weights, aggregate; below them prediction and truth."""
    true = int(mosaics.foreground[i])
    plain = mosaic(mosaics.patches[i], None, true, cell)
    weighted = mosaic(mosaics.patches[i], mosaics.alpha[i], true, cell)
    aggregate = picture(mosaics.aggregates[i], plain.height - 2 * GAP)
    width = plain.width + weighted.width + aggregate.width + 4 * MARGIN
    image = Image.new("RGB", (width, plain.height + 2 * MARGIN + 20), PAPER)
    image.paste(plain, (MARGIN, MARGIN))
    image.paste(weighted, (plain.width + 2 * MARGIN, MARGIN))
    image.paste(aggregate, (plain.width + weighted.width + 3 * MARGIN, MARGIN + GAP))
    text, color = caption(mosaics, i, classes)
    write(ImageDraw.Draw(image), (MARGIN, MARGIN + plain.height + 4), text, 13, color)
    return image


def prediction_text(mosaics: PredictedMosaics, i: int, classes: Sequence[str], most: int = NAME_LENGTH) -> str:
    """Returns the predicted class of a mosaic, shortened to `most` characters, with its probability: "ship (0.93)"."""
    predicted = int(mosaics.predicted[i])
    return f"{truncate(classes[predicted], most)} ({mosaics.probabilities[i, predicted]:.2f})"


def caption(mosaics: PredictedMosaics, i: int, classes: Sequence[str]) -> tuple[str, str]:
    """Returns the caption of a mosaic and its colour, for example "ship (0.93), right; focus"."""
    right = mosaics.predicted[i] == mosaics.label[i]
    truth = "right" if right else f"true: {truncate(classes[mosaics.label[i]], NAME_LENGTH)}"
    focus = "focus" if mosaics.focus[i] else "no focus"
    return f"{prediction_text(mosaics, i, classes)}, {truth}; {focus}", GREEN if right else RED
