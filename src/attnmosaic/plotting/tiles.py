"""Mosaics as pixels, by Pillow alone: fast enough to be drawn while a run trains."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from attnmosaic.core.text import cut
from attnmosaic.plotting.palette import FRAME, GREEN, RED, class_style
from attnmosaic.runs.snapshots import Looked

CELL, GAP, MARGIN = 44, 3, 8
"""Pixels of a patch's side, between patches, and around a mosaic."""

NAME = 16
"""Characters of a class's name, at most."""

INK, PAPER = "#222222", "#FFFFFF"
SHADE = 0.82
"""How dark a patch without weight is drawn; the one with the most weight is drawn as it is."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns DejaVu Sans, which has the letters of most languages; Pillow's own font has English ones alone."""
    found = find_spec("matplotlib")  # imports nothing: the font's file is all that is wanted
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    # Its letters are large for their size.
    return ImageFont.truetype(str(file), round(0.92 * size)) if file.exists() else ImageFont.load_default(size)


def picture(pixels: np.ndarray, side: int) -> Image.Image:
    """Returns pixels ``[H, W, C]``, C 1 or 3, values 0 to 255, as an RGB image whose longer side is as given."""
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    image = Image.fromarray(rounded[..., 0] if rounded.shape[-1] == 1 else rounded).convert("RGB")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Small patches are shown pixel by pixel, as the networks see them.
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def columns(patches: int) -> int:
    """Returns how many patches stand in a row of the mosaic: 3 of 9."""
    return math.ceil(math.sqrt(patches))


def grid(patches: np.ndarray, foreground: int | None = None, cell: int = CELL) -> Image.Image:
    """Draws the patches ``[P, H, W, C]`` of a mosaic row by row, the true foreground framed."""
    return _grid(patches, None, foreground, cell)


def overlay(patches: np.ndarray, alpha: np.ndarray, foreground: int | None = None, cell: int = CELL) -> Image.Image:
    """Draws the same with the attention weights over it: light falls on patches by weight, and each has its number.

    Args:
        patches: ``[P, H, W, C]``.
        alpha: ``[P]``.
        foreground: position of the true foreground, if it is known.
        cell: pixels of a patch's side.
    """
    return _grid(patches, alpha, foreground, cell)


def _grid(patches: np.ndarray, alpha: np.ndarray | None, foreground: int | None, cell: int) -> Image.Image:
    across = columns(len(patches))
    down = -(-len(patches) // across)
    image = Image.new("RGB", (across * (cell + GAP) + GAP, down * (cell + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for i, pixels in enumerate(patches):
        x, y = GAP + i % across * (cell + GAP), GAP + i // across * (cell + GAP)
        patch = picture(pixels, cell)
        if alpha is not None:
            # By the root: what matters is which patches are lit at all, half the most weight is nearly as light.
            dark = SHADE * (1 - math.sqrt(float(alpha[i] / max(alpha.max(), 1e-6))))
            patch = Image.blend(patch, Image.new("RGB", patch.size, "#000000"), dark)
        image.paste(patch, (x, y))
        if alpha is not None and cell >= 30:
            text = f"{alpha[i]:.2f}"
            size = max(9, cell // 4)
            left, top, right, bottom = draw.textbbox((x + cell - 1, y + cell - 1), text, font=font(size), anchor="rb")
            draw.rectangle((left - 2, top - 1, right, bottom), fill="#000000")
            draw.text((x + cell - 1, y + cell - 1), text, fill="#FFFFFF", font=font(size), anchor="rb")
        if i == foreground:
            draw.rectangle((x - GAP, y - GAP, x + cell + GAP - 1, y + cell + GAP - 1), outline=FRAME, width=GAP)
    return image


def card(looked: Looked, i: int, classes: Sequence[str], cell: int = CELL) -> Image.Image:
    """Draws a mosaic of images: its patches, the same by weight, the aggregate; prediction and truth below."""
    true = int(looked.foreground[i])
    plain = grid(looked.patches[i], true, cell)
    lit = overlay(looked.patches[i], looked.alpha[i], true, cell)
    summed = picture(looked.aggregates[i], plain.height - 2 * GAP)
    below = 20
    width = plain.width + lit.width + summed.width + 4 * MARGIN
    image = Image.new("RGB", (width, plain.height + 2 * MARGIN + below), PAPER)
    draw = ImageDraw.Draw(image)
    top = MARGIN
    image.paste(plain, (MARGIN, top))
    image.paste(lit, (plain.width + 2 * MARGIN, top))
    image.paste(summed, (plain.width + lit.width + 3 * MARGIN, top + GAP))
    text, color = verdict(looked, i, classes)
    draw.text((MARGIN, top + plain.height + 4), text, fill=color, font=font(13))
    return image


def verdict(looked: Looked, i: int, classes: Sequence[str]) -> tuple[str, str]:
    """Returns what is said of a mosaic, and its colour: "ship (0.93), right; focus"."""
    guess, truth = int(looked.predicted[i]), int(looked.label[i])
    mark = "right" if guess == truth else f"true: {cut(classes[truth], NAME)}"
    focus = "focus" if looked.focus[i] else "no focus"
    share = float(looked.probabilities[i, guess])
    return f"{cut(classes[guess], NAME)} ({share:.2f}), {mark}; {focus}", GREEN if guess == truth else RED


def sheet(images: Sequence[Image.Image], across: int) -> Image.Image:
    """Puts images of one size beside and below each other."""
    width, height = max(i.width for i in images), max(i.height for i in images)
    down = -(-len(images) // across)
    whole = Image.new("RGB", (min(across, len(images)) * width, down * height), PAPER)
    for i, image in enumerate(images):
        whole.paste(image, (i % across * width, i // across * height))
    return whole


def plane(
    extent: np.ndarray,
    background: np.ndarray,
    points: np.ndarray,
    point_colors: Sequence[str],
    side: int = 360,
) -> tuple[Image.Image, "Transform"]:
    """Draws 2-D points over a coloured plane.

    Args:
        extent: left, right, bottom, top.
        background: RGB of each cell, uint8 ``[y, x, 3]``, from the bottom.
        points: ``[U, 2]``.
        point_colors: of each.
        side: pixels of the picture's sides.

    Returns:
        The picture, and what takes points of the plane to its pixels.
    """
    image = Image.fromarray(np.ascontiguousarray(background[::-1])).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    to_pixels = Transform(extent, side)
    for (x, y), color in zip(to_pixels(points), point_colors, strict=True):
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=color)
    return image, to_pixels


class Transform:
    """Takes points of the plane to pixels of a square picture.

    Args:
        extent: left, right, bottom, top.
        side: pixels of the picture's sides.
    """

    def __init__(self, extent: np.ndarray, side: int) -> None:
        left, right, bottom, top = map(float, extent)
        self.origin = np.array([left, top])
        self.scale = np.array([side / (right - left), -side / (top - bottom)])

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Returns pixels ``[..., 2]``, x from the left and y from the top."""
        return (np.asarray(points, dtype=np.float64) - self.origin) * self.scale


def region_colors(regions: np.ndarray) -> np.ndarray:
    """Returns the light tint of each cell's class, uint8 ``[y, x, 3]``."""
    palette = np.array([ImageColor.getrgb(class_style(i)[0]) for i in range(int(regions.max()) + 1)])
    return (255 - 0.25 * (255 - palette[regions])).astype(np.uint8)


def score_colors(scores: np.ndarray) -> np.ndarray:
    """Returns scores as greys, the highest white, uint8 ``[y, x, 3]``; equal ones are all light."""
    low, high = float(scores.min()), float(scores.max())
    share = (scores.astype(np.float64) - low) / (high - low) if high > low else np.ones_like(scores, dtype=np.float64)
    return np.repeat((70 + 185 * share).astype(np.uint8)[..., None], 3, axis=-1)
