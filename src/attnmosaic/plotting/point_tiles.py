"""Draws 2-D mosaics and networks with Pillow, fast enough while a run trains."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from attnmosaic.plotting.palette import FRAME, RED, class_style
from attnmosaic.plotting.tiles import MARGIN, PAPER, caption, disc, font, write
from attnmosaic.runs.snapshots import Plane, PredictedMosaics

OUTLINE, BACKGROUND = "#222222", "#444444"
"""Colours of outlines and of background points."""

TINT = 0.25
"""Fraction of the class colour in a region's colour; the rest is white."""


class Transform:
    """Maps points of the plane to pixels of a square picture.

    Args:
        extent: left, right, bottom and top of the plane.
        side: pixels of each side of the picture.
    """

    def __init__(self, extent: np.ndarray, side: int) -> None:
        left, right, bottom, top = map(float, extent)
        self.origin = np.array([left, top])
        self.scale = np.array([side / (right - left), -side / (top - bottom)])

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Returns pixel coordinates ``[..., 2]``: x from the left and y from the top."""
        return (np.asarray(points, dtype=np.float64) - self.origin) * self.scale


def class_colors(labels: int) -> np.ndarray:
    """Returns the colours of the first F foreground classes, uint8 ``[F, 3]``."""
    return np.array([ImageColor.getrgb(class_style(label)[0]) for label in range(labels)], dtype=np.uint8)


def region_colors(regions: np.ndarray) -> np.ndarray:
    """Returns a light tint of the class colour of each cell, uint8 ``[y, x, 3]``."""
    return np.rint(255 - TINT * (255.0 - class_colors(int(regions.max()) + 1)))[regions].astype(np.uint8)


def score_colors(scores: np.ndarray) -> np.ndarray:
    """Returns grey levels of scores, uint8 ``[y, x, 3]``: the highest score is white; equal scores are all white."""
    low, high = float(scores.min()), float(scores.max())
    light = (scores.astype(np.float64) - low) / (high - low) if high > low else np.ones_like(scores, dtype=np.float64)
    return np.repeat((70 + 185 * light).astype(np.uint8)[..., None], 3, axis=-1)


def backdrop(colors: np.ndarray, side: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Returns a square picture of the 2-D plane, from one colour per cell.

    Args:
        colors: colour of each cell, uint8 ``[y, x, C]``, with the bottom row first.
        side: pixels of each side of the picture.
        resample: Pillow's method of enlarging.
    """
    return Image.fromarray(np.ascontiguousarray(colors[::-1])).resize((side, side), resample)


def base_points(
    draw: ImageDraw.ImageDraw, to_pixels: Transform, plane: Plane, colors: Sequence[object], radius: float = 1.5
) -> None:
    """Draws the pool's points; `colors` has a colour for each class of the pool."""
    for (x, y), index in zip(to_pixels(plane.points), plane.point_classes, strict=True):
        disc(draw, x, y, radius, fill=colors[int(index)])


def colors_of(names: Iterable[str], classes: Sequence[str], other: str = BACKGROUND) -> list[str]:
    """Returns the colour of each named class: its class colour for a foreground class, `other` for all others."""
    return [class_style(classes.index(name))[0] if name in classes else other for name in names]


def networks(plane: Plane, classes: Sequence[str], all_classes: Sequence[str], side: int = 380) -> Image.Image:
    """Draws What's decision regions with aggregates, and Where's scores with base points.

    Args:
        plane: the networks' outputs over the plane.
        classes: names of the foreground classes, in label order.
        all_classes: names of all classes of the pool.
        side: pixels of each side of a panel.
    """
    to_pixels = Transform(plane.extent, side)
    regions = backdrop(region_colors(plane.regions), side)
    for (x, y), label in zip(to_pixels(plane.held_out_aggregates), plane.held_out_label, strict=True):
        disc(ImageDraw.Draw(regions), x, y, 2.5, fill=class_style(label)[0], outline=OUTLINE)
    scores = backdrop(score_colors(plane.scores), side)
    base_points(ImageDraw.Draw(scores), to_pixels, plane, colors_of(all_classes, classes))
    heading, gap = 24, 12
    image = Image.new("RGB", (2 * side + 3 * gap, side + heading + 28), PAPER)
    draw = ImageDraw.Draw(image)
    for column, (panel, title) in enumerate((
        (regions, "What: predicted class; dots: aggregates by true class"),
        (scores, "Where: score, dark to light; dots: base points by class"),
    )):  # fmt: skip
        left = gap + column * (side + gap)
        image.paste(panel, (left, heading))
        write(draw, (left, 5), title, 13)
    legend(draw, gap, side + heading + 8, classes)
    return image


def legend(draw: ImageDraw.ImageDraw, x: float, y: float, classes: Sequence[str]) -> None:
    """Draws a legend of the colours of the foreground classes and the background."""
    names = [*classes, "background"]
    for name, color in zip(names, [*colors_of(classes, classes), BACKGROUND], strict=True):
        draw.ellipse((x, y + 1, x + 9, y + 10), fill=color)
        write(draw, (x + 13, y - 2), name, 12)
        x += 26 + draw.textlength(name, font=font(12))


def cards(mosaics: PredictedMosaics, plane: Plane, classes: Sequence[str], side: int = 230) -> list[Image.Image]:
    """Draws each mosaic of points on What's decision regions, with prediction and truth below.

    Patches are circles that grow with their weight, the true foreground has a frame, and the aggregate is a cross.
    """
    regions, to_pixels = backdrop(region_colors(plane.regions), side), Transform(plane.extent, side)
    return [_card(mosaics, i, regions.copy(), to_pixels, classes) for i in range(len(mosaics))]


def _card(
    mosaics: PredictedMosaics, i: int, panel: Image.Image, to_pixels: Transform, classes: Sequence[str]
) -> Image.Image:
    """Draws a mosaic on a picture of the regions."""
    draw, side = ImageDraw.Draw(panel), panel.width
    for p, (x, y) in enumerate(to_pixels(mosaics.patches[i])):
        radius = 3 + 14 * float(mosaics.alpha[i, p]) ** 0.5
        disc(draw, x, y, radius, outline=OUTLINE, width=2)
        disc(draw, x, y, 1.5, fill=OUTLINE)
        if p == mosaics.foreground[i]:
            half = radius + 4
            draw.rectangle((x - half, y - half, x + half, y + half), outline=FRAME, width=3)
    (x, y) = to_pixels(mosaics.aggregates[i])
    for width, color in ((6, PAPER), (3, RED)):
        draw.line((x - 7, y - 7, x + 7, y + 7), fill=color, width=width)
        draw.line((x - 7, y + 7, x + 7, y - 7), fill=color, width=width)
    image = Image.new("RGB", (side + 2 * MARGIN, side + 2 * MARGIN + 18), PAPER)
    image.paste(panel, (MARGIN, MARGIN))
    text, color = caption(mosaics, i, classes)
    write(ImageDraw.Draw(image), (MARGIN, side + MARGIN + 3), text, 12, color)
    return image
