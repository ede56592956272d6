"""Draws mosaics by Pillow alone, fast enough while a run trains: patches lit by weight, grids, frames, captions."""

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

NAME = 16
"""Characters of a class's name, at most."""

INK, PAPER = "#222222", "#FFFFFF"
SHADE = 0.82
"""How dark a patch without weight is drawn; the one with the most weight is drawn as it is."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom lie outside."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns DejaVu Sans, which has the letters of most languages; Pillow's own font has English ones alone."""
    found = find_spec("matplotlib")  # imports nothing: the font's file is all that is wanted
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    # Its letters are large for their size.
    return ImageFont.truetype(str(file), round(0.92 * size)) if file.exists() else ImageFont.load_default(size)


# ---- patches


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels ``[H, W, C]``, C 1 or 3, values about 0 to 255, as uint8 ``[H, W, 3]``."""
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.repeat(rounded, 3, axis=-1) if rounded.shape[-1] == 1 else rounded


def picture(pixels: np.ndarray, side: int) -> Image.Image:
    """Returns pixels ``[H, W, C]``, C 1 or 3, values 0 to 255, as an RGB image whose longer side is as given."""
    image = Image.fromarray(to_rgb(pixels))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Small patches are shown pixel by pixel, as the networks see them.
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def darkness(weight: float, shade: float = SHADE) -> float:
    """Returns how dark a patch is drawn, 0 to `shade`, by its weight as a fraction of a weight in full light.

    The square root makes patches of half the weight nearly as light: what matters is which are lit at all.
    """
    return shade * (1 - math.sqrt(min(1.0, max(0.0, weight))))


def shaded_patch(patch: Image.Image, weight: float) -> Image.Image:
    """Returns a patch in the light of its weight, a fraction of a weight in full light."""
    return Image.blend(patch, Image.new("RGB", patch.size, "#000000"), darkness(weight))


# ---- grids


def columns(patches: int) -> int:
    """Returns how many patches stand in a row of the mosaic: 3 of 9."""
    return math.ceil(math.sqrt(patches))


def grid(
    images: Sequence[Image.Image], size: tuple[int, int], gap: int = 0, border: int = 0, across: int | None = None
) -> tuple[Image.Image, list[Box]]:
    """Puts images beside and below each other.

    Args:
        images: N images of one mode.
        size: width and height of the place of each.
        gap: pixels between places.
        border: pixels around all.
        across: images in a row; by default `columns`.

    Returns:
        The picture, and the places.
    """
    across = across or columns(len(images))
    (width, height), down = size, -(-len(images) // across)
    whole = (across * (width + gap) - gap + 2 * border, down * (height + gap) - gap + 2 * border)
    sheet = Image.new(images[0].mode, whole, PAPER)
    boxes = []
    for i, image in enumerate(images):
        x, y = border + i % across * (width + gap), border + i // across * (height + gap)
        sheet.paste(image, (x, y))
        boxes.append((x, y, x + width, y + height))
    return sheet, boxes


def sheet(images: Sequence[Image.Image], across: int) -> Image.Image:
    """Puts images beside and below each other, each in the place of the largest."""
    size = max(image.width for image in images), max(image.height for image in images)
    return grid(images, size, across=min(across, len(images)))[0]


# ---- marks and text


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **style: object) -> None:
    """Draws a circle around a point."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), **style)  # type: ignore[arg-type]


def frame(draw: ImageDraw.ImageDraw, box: Box, color: str, width: int, outside: int = 0) -> None:
    """Draws a frame along the inner edge of a place, or of one with a border of `outside` pixels around it."""
    left, top, right, bottom = box
    draw.rectangle(
        (left - outside, top - outside, right + outside - 1, bottom + outside - 1), outline=color, width=width
    )


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, color: str = INK, anchor: str = "la"
) -> None:
    """Writes a text; `anchor` says, as Pillow does, which part of it lies at the point."""
    draw.text(at, text, fill=color, font=font(size), anchor=anchor)


def number(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, padding: Box) -> None:
    """Writes white on black to the left of and above a corner.

    Args:
        draw: of the picture.
        corner: right and bottom of the text.
        text: the number.
        size: of its letters.
        padding: how far the black reaches beyond the text to the left, top, right and bottom.
    """
    inside = draw.textbbox(corner, text, font=font(size), anchor="rb")
    left, top, right, bottom = padding
    draw.rectangle((inside[0] - left, inside[1] - top, inside[2] + right, inside[3] + bottom), fill="#000000")
    write(draw, corner, text, size, "#FFFFFF", "rb")


def stamp(image: Image.Image, height: int, size: int) -> Image.Image:
    """Returns a picture of a smoke run: below a banner of this height with letters of this size."""
    whole = Image.new("RGB", (image.width, height + image.height), SMOKE_COLOR)
    whole.paste(image, (0, height))
    write(ImageDraw.Draw(whole), (image.width / 2, height / 2), SMOKE, size, PAPER, "mm")
    return whole


def truncate_to_width(text: str, width: int, size: int) -> str:
    """Returns a text cut to so many pixels."""
    most = len(text)
    while most > 1 and font(size).getlength(truncate(text, most)) > width:
        most -= 1
    return truncate(text, most)


# ---- mosaics of images


def mosaic(
    patches: np.ndarray, alpha: np.ndarray | None = None, foreground: int | None = None, cell: int = CELL
) -> Image.Image:
    """Draws the patches of a mosaic row by row, in the light of their weights and with these as numbers.

    Args:
        patches: ``[P, H, W, C]``.
        alpha: attention weights, ``[P]``; None for full light and no numbers.
        foreground: position of the true foreground, which is framed.
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


def card(looked: PredictedMosaics, i: int, classes: Sequence[str], cell: int = CELL) -> Image.Image:
    """Draws a mosaic of images: its patches, the same by weight, the aggregate; prediction and truth below."""
    true = int(looked.foreground[i])
    plain = mosaic(looked.patches[i], None, true, cell)
    by_weight = mosaic(looked.patches[i], looked.alpha[i], true, cell)
    summed = picture(looked.aggregates[i], plain.height - 2 * GAP)
    width = plain.width + by_weight.width + summed.width + 4 * MARGIN
    image = Image.new("RGB", (width, plain.height + 2 * MARGIN + 20), PAPER)
    image.paste(plain, (MARGIN, MARGIN))
    image.paste(by_weight, (plain.width + 2 * MARGIN, MARGIN))
    image.paste(summed, (plain.width + by_weight.width + 3 * MARGIN, MARGIN + GAP))
    text, color = verdict(looked, i, classes)
    write(ImageDraw.Draw(image), (MARGIN, MARGIN + plain.height + 4), text, 13, color)
    return image


def answer_of(looked: PredictedMosaics, i: int, classes: Sequence[str], most: int = NAME) -> str:
    """Returns the predicted class of a mosaic, in at most `most` characters, with its probability: "ship (0.93)"."""
    guess = int(looked.predicted[i])
    return f"{truncate(classes[guess], most)} ({looked.probabilities[i, guess]:.2f})"


def verdict(looked: PredictedMosaics, i: int, classes: Sequence[str]) -> tuple[str, str]:
    """Returns the caption of a mosaic, and its colour: "ship (0.93), right; focus"."""
    right = looked.predicted[i] == looked.label[i]
    truth = "right" if right else f"true: {truncate(classes[looked.label[i]], NAME)}"
    focus = "focus" if looked.focus[i] else "no focus"
    return f"{answer_of(looked, i, classes)}, {truth}; {focus}", GREEN if right else RED
