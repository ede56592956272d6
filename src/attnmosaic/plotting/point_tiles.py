"""2-D mosaics and networks as pixels, by Pillow alone: fast enough to be drawn while a run trains."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from attnmosaic.plotting.palette import FRAME, RED, class_style
from attnmosaic.plotting.tiles import MARGIN, PAPER, disc, font, verdict, write
from attnmosaic.runs.snapshots import Plane, PredictedMosaics

DARK, BEHIND = "#222222", "#444444"
"""Outlines, and points of the background."""

TINT = 0.25
"""How much of its class's colour a region has, the rest is white."""


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


def class_colors(labels: int) -> np.ndarray:
    """Returns the colours of so many foreground classes, uint8 ``[F, 3]``."""
    return np.array([ImageColor.getrgb(class_style(label)[0]) for label in range(labels)], dtype=np.uint8)


def region_colors(regions: np.ndarray) -> np.ndarray:
    """Returns the light tint of each cell's class, uint8 ``[y, x, 3]``."""
    return np.rint(255 - TINT * (255.0 - class_colors(int(regions.max()) + 1)))[regions].astype(np.uint8)


def score_colors(scores: np.ndarray) -> np.ndarray:
    """Returns scores as greys, the highest white, uint8 ``[y, x, 3]``; equal ones are all light."""
    low, high = float(scores.min()), float(scores.max())
    light = (scores.astype(np.float64) - low) / (high - low) if high > low else np.ones_like(scores, dtype=np.float64)
    return np.repeat((70 + 185 * light).astype(np.uint8)[..., None], 3, axis=-1)


def backdrop(colors: np.ndarray, side: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Returns a square picture of the plane from the colour of each cell, uint8 ``[y, x, C]``, from the bottom."""
    return Image.fromarray(np.ascontiguousarray(colors[::-1])).resize((side, side), resample)


def base_points(
    draw: ImageDraw.ImageDraw, to_pixels: Transform, plane: Plane, colors: Sequence[object], radius: float = 1.5
) -> None:
    """Draws the pool's points; `colors` has one for each of all classes."""
    for (x, y), of in zip(to_pixels(plane.points), plane.point_classes, strict=True):
        disc(draw, x, y, radius, fill=colors[int(of)])


def colors_of(names: Iterable[str], classes: Sequence[str], other: str = BEHIND) -> list[str]:
    """Returns a colour for each class: its own if it is a foreground class, one for all others."""
    return [class_style(classes.index(name))[0] if name in classes else other for name in names]


def networks(plane: Plane, classes: Sequence[str], all_classes: Sequence[str], side: int = 380) -> Image.Image:
    """Draws What's decision regions with the aggregates in them, and Where's scores with the base points on them.

    Args:
        plane: what the networks make of the plane.
        classes: foreground classes, in label order.
        all_classes: of the pool.
        side: pixels of either panel's sides.
    """
    to_pixels = Transform(plane.extent, side)
    regions = backdrop(region_colors(plane.regions), side)
    for (x, y), label in zip(to_pixels(plane.held_out_aggregates), plane.held_out_label, strict=True):
        disc(ImageDraw.Draw(regions), x, y, 2.5, fill=class_style(label)[0], outline=DARK)
    scores = backdrop(score_colors(plane.scores), side)
    base_points(ImageDraw.Draw(scores), to_pixels, plane, colors_of(all_classes, classes))
    heading, gap = 24, 12
    image = Image.new("RGB", (2 * side + 3 * gap, side + heading + 28), PAPER)
    draw = ImageDraw.Draw(image)
    for column, (panel, title) in enumerate((
        (regions, "What sees: regions by class; weighted sums by true class"),
        (scores, "Where's score, from dark to light; base points by class"),
    )):  # fmt: skip
        left = gap + column * (side + gap)
        image.paste(panel, (left, heading))
        write(draw, (left, 5), title, 13)
    legend(draw, gap, side + heading + 8, classes)
    return image


def legend(draw: ImageDraw.ImageDraw, x: float, y: float, classes: Sequence[str]) -> None:
    """Names the colours of the foreground classes, and of the rest."""
    names = [*classes, "background"]
    for name, color in zip(names, [*colors_of(classes, classes), BEHIND], strict=True):
        draw.ellipse((x, y + 1, x + 9, y + 10), fill=color)
        write(draw, (x + 13, y - 2), name, 12)
        x += 26 + draw.textlength(name, font=font(12))


def card(looked: PredictedMosaics, i: int, plane: Plane, classes: Sequence[str], side: int = 230) -> Image.Image:
    """Draws a mosaic of points over What's regions: patches by weight, the foreground framed, the aggregate a cross."""
    to_pixels = Transform(plane.extent, side)
    panel = backdrop(region_colors(plane.regions), side)
    draw = ImageDraw.Draw(panel)
    for p, (x, y) in enumerate(to_pixels(looked.patches[i])):
        radius = 3 + 14 * float(looked.alpha[i, p]) ** 0.5
        disc(draw, x, y, radius, outline=DARK, width=2)
        disc(draw, x, y, 1.5, fill=DARK)
        if p == looked.foreground[i]:
            reach = radius + 4
            draw.rectangle((x - reach, y - reach, x + reach, y + reach), outline=FRAME, width=3)
    (x, y) = to_pixels(looked.aggregates[i])
    for width, color in ((6, PAPER), (3, RED)):
        draw.line((x - 7, y - 7, x + 7, y + 7), fill=color, width=width)
        draw.line((x - 7, y + 7, x + 7, y - 7), fill=color, width=width)
    image = Image.new("RGB", (side + 2 * MARGIN, side + 2 * MARGIN + 18), PAPER)
    image.paste(panel, (MARGIN, MARGIN))
    text, color = verdict(looked, i, classes)
    write(ImageDraw.Draw(image), (MARGIN, side + MARGIN + 3), text, 12, color)
    return image
